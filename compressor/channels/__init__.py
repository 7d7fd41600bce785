"""Hidden channels: find groups of layers that share them, order them, remove some, refit the layers that read them."""
