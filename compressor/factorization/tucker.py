"""Tucker-2 decomposition of convolutions through TensorLy (Kim et al. 2016), here of k x k; others alike.

W (Co, Ci, kh, kw) becomes a 1 x 1 convolution to Rin channels, the kh x kw core to Rout, and a 1 x 1 to Co.
One rank drives both: it counts the larger channel side, and the other side follows in proportion.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from tensorly.decomposition import partial_tucker
from torch import Tensor, linalg, nn

from compressor.arrays import Array
from compressor.factorization.base import Factors, svd_by_gram
from compressor.factorization.layers.kinds import Convolution, weight_of
from compressor.factorization.layers.making import chain, geometry_of, make_conv, make_pointwise
from compressor.factorization.least_squares import refit_layer, refit_of
from compressor.factorization.moments import LayerMoments


def side_ranks(shape: Sequence[int], rank: int) -> tuple[int, int]:
    """(Rout, Rin) of a weight of `shape` (Co, Ci, ...) at `rank`, the rank of its larger channel side."""
    num_out, num_in, positions = shape[0], shape[1], prod(shape[2:])
    larger = max(num_out, num_in)
    rank_out, rank_in = (max(1, round(rank * side / larger)) for side in (num_out, num_in))
    return min(rank_out, num_in * positions), min(rank_in, num_out * positions)


class TuckerFactors(Factors):
    """Truncated higher-order SVD of a convolution without groups: one full-rank decomposition, each rank a slice.

    With moments it decomposes the weight between whitened input channels (their covariance averaged over the positions
    of the kernel) and weighted outputs, and refits the last factor and the bias at every rank.
    """

    @staticmethod
    def factor_params(shape: Sequence[int], groups: int, rank: int) -> tuple[int, ...]:
        """See `Factors.factor_params`."""
        rank_out, rank_in = side_ranks(shape, rank)
        return shape[1] * rank_in, rank_in * rank_out * prod(shape[2:]), rank_out * shape[0]

    @staticmethod
    def full_rank(shape: Sequence[int], groups: int) -> int:
        """See `Factors.full_rank`."""
        return max(shape[0], shape[1])

    def __init__(self, layer: Convolution, moments: LayerMoments | None = None) -> None:
        self._layer = layer
        weight = weight_of(layer).detach().double().cpu()
        self._shape = tuple(weight.shape)
        self._moments = moments  # kept for refits at any rank
        self.max_rank = self.full_rank(self._shape, layer.groups)
        root_in, root_out = _roots(moments, self._shape)
        whitened = torch.einsum("oik,ij,op->pjk", weight.flatten(2), root_in, root_out)
        # TensorLy's default backend is NumPy, so no global state changes. At full rank its first core is exact, and
        # iterations would only rotate it.
        ranks = list(side_ranks(self._shape, self.max_rank))
        (core, sides), _ = partial_tucker(
            whitened.numpy(), rank=ranks, modes=[0, 1], init="svd", svd=_svd_of_unfolding, n_iter_max=0
        )
        self._core = torch.from_numpy(core)
        self._out = linalg.solve_triangular(root_out.T, torch.from_numpy(sides[0]), upper=True)
        self._in = linalg.solve_triangular(root_in.T, torch.from_numpy(sides[1]), upper=True)

    def build(self, rank: int) -> nn.Sequential:
        """See `Factors.build`."""
        self.check_rank(rank)
        layer = self._layer
        rank_out, rank_in = side_ranks(self._shape, rank)
        core, reduce = self._core[:rank_out, :rank_in], self._in[:, :rank_in].T
        expand, bias = self._out[:, :rank_out], layer.bias
        if self._moments is not None:
            features = self._features(rank)
            expand, bias = refit_layer(layer, self._moments, features, refit_of(layer, self._moments, features))
        core = core.unflatten(-1, self._shape[2:])
        return chain(
            make_pointwise(reduce.to(layer.weight), None, layer),
            make_conv(core.to(layer.weight), None, layer, 1, **geometry_of(layer)),
            make_pointwise(expand.to(layer.weight), bias, layer),
        )

    def _features(self, rank: int) -> Tensor:
        """The last factor's inputs as combinations of a patch, (Rout, n)."""
        rank_out, rank_in = side_ranks(self._shape, rank)
        return torch.einsum("rsk,is->rik", self._core[:rank_out, :rank_in], self._in[:, :rank_in]).flatten(1)

    def squared_error(self, rank: int) -> float:
        """See `Factors.squared_error`."""
        if self._moments is not None:
            refit = refit_of(self._layer, self._moments, self._features(rank))
            return refit.squared_error(side_ranks(self._shape, rank)[0])
        # The side factors are orthonormal, so the error is the energy outside the kept core.
        rank_out, rank_in = side_ranks(self._shape, rank)
        squares = self._core.square()
        return float(squares.sum() - squares[:rank_out, :rank_in].sum())


def _svd_of_unfolding(matrix: Array, n_eigenvecs: int, **_: Any) -> tuple[Array, Array, Array]:
    """TensorLy's own choices are an SVD with full matrices, and eigenvectors of the longer side."""
    left, values, right = (part.numpy() for part in svd_by_gram(torch.from_numpy(matrix)))
    return left[:, :n_eigenvecs], values[:n_eigenvecs], right[:n_eigenvecs]


def _roots(moments: LayerMoments | None, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Cholesky factors of the input channels' covariance (Ci, Ci) and of the output gradients' (Co, Co)."""
    num_out, num_in, positions = shape[0], shape[1], prod(shape[2:])
    if moments is None:
        return torch.eye(num_in, dtype=torch.float64), torch.eye(num_out, dtype=torch.float64)
    covariance = moments.covariance[0].reshape(num_in, positions, num_in, positions)
    of_inputs = torch.einsum("ipjp->ij", covariance).double() / positions
    return linalg.cholesky(of_inputs), linalg.cholesky(moments.outputs[0])
