"""Stages that find and build the compressed network, one per file."""
