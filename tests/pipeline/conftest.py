"""A small network, images that it labels, and runs that measure nothing."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from compressor.data.batches import from_batches
from compressor.data.images import ImageSet
from tests.unmeasured import without_measuring


@pytest.fixture(scope="module")
def unmeasured() -> Iterator[None]:
    """Export and latency are other tests', and take most of a small run's time."""
    with without_measuring():
        yield


@pytest.fixture(scope="module")
def with_pages() -> Iterator[None]:
    """Likewise, but for the report's page."""
    with without_measuring(pages=True):
        yield


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 16, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(inplace=True),
        nn.Linear(32, 10),
    ).eval()


@pytest.fixture(scope="module")
def images(network: nn.Module) -> ImageSet:
    torch.manual_seed(1)
    inputs = nn.functional.interpolate(torch.randn(120, 3, 3, 3) + 0.5, size=8, mode="bilinear")
    with torch.inference_mode():
        labels = network(inputs).argmax(1)
    return from_batches([(inputs, labels.clone())], 120)
