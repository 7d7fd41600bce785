"""Decompositions of layers into factors, one per file; `registry` lists them."""
