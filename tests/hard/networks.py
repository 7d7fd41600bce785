"""A small network and images for it; a whole job on them takes seconds."""

import torch
from torch import nn

from compressor.data.images import ImageSet

SIZE, CLASSES = 12, 5


def make_network() -> nn.Sequential:
    """Two convolutions and two linear layers, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2), nn.ReLU()]
        head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES)]
        return nn.Sequential(*layers, *head)


def make_images(count: int) -> ImageSet:
    """Noise of the network's size, the same each time."""
    data = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return ImageSet(data, "noise")
