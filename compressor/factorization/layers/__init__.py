"""The kinds of layers that are factorized, and new ones around existing tensors."""
