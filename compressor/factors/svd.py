"""Truncated SVD of linear layers and 1 x 1 convolutions (Sec. 3.3; Denton et al. 2014).

W (Co x Ci) becomes two layers of K (Ci + Co) parameters; grouped convolutions are split group by group.
"""

from collections.abc import Sequence

from torch import nn

from compressor.factors.base import (
    Factors,
    Layer,
    chain,
    make_conv,
    make_linear,
    split_grouped_matrices,
    tail_energy,
    untouched_geometry,
)


def num_params(shape: Sequence[int], groups: int, rank: int) -> int:
    """Parameters of the two factors of a weight of `shape` (Co, Ci/groups, ...) at `rank` per group."""
    return rank * (shape[0] + groups * shape[1])


def max_rank(shape: Sequence[int], groups: int) -> int:
    """Rank at which the product is exact."""
    return min(shape[0] // groups, shape[1])


class SvdFactors(Factors):
    """Factors of a linear layer or a 1 x 1 convolution."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        weight = layer.weight.flatten(1)
        matrices = weight.reshape(self._groups, -1, weight.shape[1]).transpose(1, 2)
        self._first, self._second, squares = split_grouped_matrices(matrices)
        self._tail = tail_energy(squares)
        self.max_rank = squares.shape[1]

    def build(self, rank: int) -> nn.Sequential:
        self.check_rank(rank)
        layer = self._layer
        first = self._first[..., :rank].transpose(1, 2).flatten(0, 1)
        second = self._second[:, :rank].transpose(1, 2).flatten(0, 1)
        if isinstance(layer, nn.Linear):
            return chain(make_linear(first, None), make_linear(second, layer.bias))
        reduce = make_conv(
            first[..., None, None],
            None,
            layer,
            self._groups,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
        )
        expand = make_conv(second[..., None, None], layer.bias, layer, self._groups, **untouched_geometry())
        return chain(reduce, expand)

    def squared_error(self, rank: int) -> float:
        return self._tail[rank]
