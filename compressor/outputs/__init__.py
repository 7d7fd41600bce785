"""Outputs of any structure: their tensors by name, and the rows of numbers that the function norm compares."""
