"""Tucker-2 decomposition of k x k convolutions through TensorLy (Kim et al. 2016).

W (Co, Ci, kh, kw) becomes a 1 x 1 convolution to Rin channels, the kh x kw core to Rout, and a 1 x 1 to Co.
One rank drives both: it counts the larger channel side, and the other side follows in proportion.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tensorly.decomposition import partial_tucker
from torch import Tensor, nn

from compressor.factors.base import Factors, chain, make_conv, untouched_geometry


def side_ranks(shape: Sequence[int], rank: int) -> tuple[int, int]:
    """(Rout, Rin) of a weight of `shape` (Co, Ci, kh, kw) at `rank`, the rank of its larger channel side."""
    num_out, num_in, height, width = shape
    larger = max(num_out, num_in)
    rank_out, rank_in = (max(1, round(rank * side / larger)) for side in (num_out, num_in))
    return min(rank_out, num_in * height * width), min(rank_in, num_out * height * width)


def num_params(shape: Sequence[int], groups: int, rank: int) -> int:
    """Parameters of the three factors; `groups` must be 1."""
    num_out, num_in, height, width = shape
    rank_out, rank_in = side_ranks(shape, rank)
    return num_in * rank_in + rank_in * rank_out * height * width + rank_out * num_out


def max_rank(shape: Sequence[int], groups: int) -> int:
    """Rank at which the product is exact."""
    return max(shape[0], shape[1])


class TuckerFactors(Factors):
    """Truncated higher-order SVD: one full-rank decomposition, of which every rank is a slice."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self._layer = layer
        self._shape = tuple(layer.weight.shape)
        self.max_rank = max_rank(self._shape, layer.groups)
        # TensorLy's NumPy backend is its default: no global state is switched.
        weight = layer.weight.detach().double().cpu().numpy()
        (core, (side_out, side_in)), _ = partial_tucker(
            weight, rank=list(side_ranks(self._shape, self.max_rank)), modes=[0, 1], init="svd", n_iter_max=1
        )
        self._core, self._out, self._in = (self._as_tensor(part) for part in (core, side_out, side_in))

    def _as_tensor(self, values: Any) -> Tensor:
        return torch.from_numpy(values).to(self._layer.weight)

    def build(self, rank: int) -> nn.Sequential:
        self.check_rank(rank)
        layer = self._layer
        rank_out, rank_in = side_ranks(self._shape, rank)
        reduce = self._in[:, :rank_in].T[..., None, None]
        expand = self._out[:, :rank_out][..., None, None]
        geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        return chain(
            make_conv(reduce, None, layer, 1, **untouched_geometry()),
            make_conv(self._core[:rank_out, :rank_in], None, layer, 1, **geometry),
            make_conv(expand, layer.bias, layer, 1, **untouched_geometry()),
        )

    def squared_error(self, rank: int) -> float:
        # The side factors are orthonormal, so energy outside the kept core is the error.
        rank_out, rank_in = side_ranks(self._shape, rank)
        squares = self._core.double().square()
        return float(squares.sum() - squares[:rank_out, :rank_in].sum())
