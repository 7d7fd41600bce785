"""Spatial split of k x k convolutions (Tai et al. 2016, the paper's "tensor decomposition").

M = W reshaped to (Ci*kh) x (Co*kw) is truncated by SVD, in closed form: a vertical kh x 1 convolution to K
channels, then a horizontal 1 x kw convolution to Co. The split is exact at full rank for every stride,
padding (numbers, 'same', 'valid'), padding mode and dilation, because the vertical half acts on columns and
the horizontal half on rows. Groups are split one by one.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from compressor.factors.base import Factors, chain, make_conv, split_grouped_matrices, tail_energy


def num_params(shape: Sequence[int], groups: int, rank: int) -> int:
    """Parameters of both halves of a weight of `shape` (Co, Ci/groups, kh, kw) at `rank` per group."""
    num_out, num_in, height, width = shape
    return rank * (groups * num_in * height + num_out * width)


def max_rank(shape: Sequence[int], groups: int) -> int:
    """Rank at which the product is exact."""
    num_out, num_in, height, width = shape
    return min(num_in * height, num_out // groups * width)


class SpatialFactors(Factors):
    """Factors of a k x k convolution."""

    def __init__(self, layer: nn.Conv2d) -> None:
        num_out, num_in, height, width = layer.weight.shape
        self._layer = layer
        weight = layer.weight.reshape(layer.groups, num_out // layer.groups, num_in, height, width)
        matrices = weight.permute(0, 2, 3, 1, 4).reshape(layer.groups, num_in * height, -1)
        self._first, self._second, squares = split_grouped_matrices(matrices)
        self._tail = tail_energy(squares)
        self.max_rank = squares.shape[1]

    def build(self, rank: int) -> nn.Sequential:
        self.check_rank(rank)
        layer = self._layer
        num_out, num_in, height, width = layer.weight.shape
        groups = layer.groups
        first = self._first[..., :rank].transpose(1, 2).reshape(groups * rank, num_in, height, 1)
        second = self._second[:, :rank].reshape(groups, rank, num_out // groups, width)
        second = second.transpose(1, 2).reshape(num_out, rank, 1, width)
        vertical = make_conv(first, None, layer, groups, **_one_axis(layer, axis=0))
        horizontal = make_conv(second, layer.bias, layer, groups, **_one_axis(layer, axis=1))
        return chain(vertical, horizontal)

    def squared_error(self, rank: int) -> float:
        return self._tail[rank]


def _one_axis(layer: nn.Conv2d, axis: int) -> dict[str, Any]:
    """The layer's geometry along one axis, and none along the other."""
    padding = layer.padding
    return {
        "stride": _only(layer.stride, axis, 1),
        "padding": padding if isinstance(padding, str) else _only(padding, axis, 0),
        "dilation": _only(layer.dilation, axis, 1),
    }


def _only(values: Sequence[int], axis: int, neutral: int) -> tuple[int, int]:
    return (values[0], neutral) if axis == 0 else (neutral, values[1])
