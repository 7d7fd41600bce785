"""Hidden channels in a run: groups of layers, channels against ranks, costs, and the network that comes of it."""
