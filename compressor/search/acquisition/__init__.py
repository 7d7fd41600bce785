"""Acquisition functions of a posterior, one per file, and their optimization over the lattice of ranks."""
