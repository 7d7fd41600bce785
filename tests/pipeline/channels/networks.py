"""Small networks with hidden channels, images, and contexts of runs on them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.data.batches import from_batches
from compressor.data.images import ImageSet
from compressor.pipeline.context import Context
from compressor.pipeline.prepare import prepare
from compressor.pipeline.settings import Settings
from compressor.search.optimizer import SearchSettings

NUM_IMAGES = 120


class Inverted(nn.Module):
    """An inverted residual: six times as many channels between two pointwise convolutions, and a depthwise one."""

    def __init__(self, channels: int, gate: bool = False) -> None:
        super().__init__()
        hidden = 6 * channels
        self.expand, self.norm1 = nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.depthwise, self.norm2 = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False), nn.PReLU(hidden)
        self.squeeze, self.excite = nn.Conv2d(hidden, 6, 1), nn.Conv2d(6, hidden, 1)
        self.project, self.norm3 = nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm2(self.depthwise(self.norm1(self.expand(x)).relu()))
        if self.gate:
            hidden = hidden * self.excite(self.squeeze(hidden.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x + self.norm3(self.project(hidden))


class Bottleneck(nn.Module):
    """Three convolutions in a row: that between costs what both widths say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(channels, 16, 1),
            nn.Conv2d(16, 12, 3, padding=1),
            nn.Conv2d(12, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv3(self.conv2(self.conv1(x).relu()).relu())


def make_network(gate: bool = False) -> nn.Sequential:
    """An inverted residual, a bottleneck and two linear layers, with the statistics of random images."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        Inverted(8, gate),
        Bottleneck(8),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 24),
        nn.GELU(),
        nn.Linear(24, 5),
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(make_images().batch(slice(None)))
    return network.eval().requires_grad_(False)


def make_images(count: int = NUM_IMAGES) -> ImageSet:
    """Smooth random images."""
    noise = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return from_batches([nn.functional.interpolate(noise, size=15, mode="bilinear")], count)


def make_settings(**changes: Any) -> Settings:
    """Settings of a short search for channels."""
    search = SearchSettings(max_evaluations=12, samples=12, certificate="pointwise", seed=0)
    return Settings(**{"method": "channels", "search": search, **changes})


def make_context(network: nn.Module, folder: Path, **changes: Any) -> Context:
    """The context of a run in a folder."""
    return prepare(network, make_images(), folder, make_settings(**changes))
