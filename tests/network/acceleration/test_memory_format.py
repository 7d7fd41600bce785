"""Batches lie channels last where networks are faster so, and take them."""

import pytest
import torch
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.network.acceleration import memory_format
from compressor.network.acceleration.memory_format import in_faster_format

CPU = torch.device("cpu")


class Viewing(nn.Module):
    """Views activations as rows, which those that lie channels last are not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).view(len(x), -1))


def images(side: int) -> ImageSet:
    pixels = torch.randint(0, 256, (6, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels, "random", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.mark.parametrize(("side", "last"), [(64, False), (111, False), (112, True)])
def test_large_images_lie_channels_last_and_are_the_same(side: int, last: bool) -> None:
    given = images(side)
    found, empty = in_faster_format([given, given.subset([])], nn.Conv2d(3, 4, 3), CPU)
    assert found.channels_last == empty.channels_last == last
    for indices in (slice(1, 4), [5, 0, 2]):
        batch = found.batch(indices)
        assert batch.is_contiguous(memory_format=torch.channels_last) == last
        assert torch.equal(batch, given.batch(indices))
    subset = found.subset([3, 1])
    assert subset.channels_last == last
    assert torch.equal(subset.batch([1]), given.batch([1]))


def test_networks_that_view_activations_get_them_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_format, "MIN_PIXELS", 1)
    given = images(8)
    for network, last in ((nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), True), (Viewing().eval(), False)):
        (found,) = in_faster_format([given], network, CPU)
        assert found.channels_last == last


def test_what_are_no_images_is_left() -> None:
    rows = ImageSet(torch.randn(6, 3 * 112 * 112), "random")
    assert in_faster_format([rows], nn.Linear(3 * 112 * 112, 2), CPU) == [rows]
