"""The tables and figures of Ma et al. 2019, on any checkpoint and folder of images."""
