"""Interpolative decomposition of linear layers and convolutions (Cheng et al. 2005; Chee et al. 2022 for networks).

Of the rows of W as Co x (Ci kh kw), K are kept and the others are linear combinations of them: the layer with K of its
outputs, then a 1 x 1 layer from these to the other Co - K. At equal rank this has K^2 parameters fewer than a product
of two factors, and below full rank always fewer than the layer. Rows of the layer approximate it less well than
singular vectors; the method wins where Co is large compared with Ci kh kw, and near full rank.

QR with column pivoting of W^T chooses the rows, in one order for all ranks. Then W^T P = Q (R1 R2), with the kept
columns in R1: the least-squares coefficients are R1^-1 R2, and the residual is the part of R below row K.
`scipy.linalg.interpolative` chooses the same rows (checked on trained layers), but needs one call per rank.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpstrf
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from compressor.factorization.base import Factors, tail_energy
from compressor.factorization.layers.kinds import Layer, axes_of, weight_of
from compressor.factorization.layers.making import make_like, make_pointwise
from compressor.factorization.moments import LayerMoments

# A pivot below this share of the first is rounding of a float32 weight: its row of W depends on those before it.
MAX_DEPENDENT_PIVOT = 1e-7

Array = NDArray[np.float64]


class Interpolated(nn.Module):
    """A layer of which `keep` computes some outputs and `rest` the others from these; `order` sorts them.

    Args:
        keep: the layer with K of its outputs.
        rest: a linear layer or a 1 x 1 convolution from these K to the other Co - K.
        order: (Co,), integers: for every output its index in the kept ones followed by the others.
    """

    order: Tensor

    def __init__(self, keep: Layer, rest: Layer, order: Tensor) -> None:
        super().__init__()
        self.keep = keep
        self.rest = rest
        self.register_buffer("order", order)
        # Counted from the end, for any batch shape.
        self._axis = -1 - axes_of(keep)

    def forward(self, input: Tensor) -> Tensor:
        """The layer's outputs for (..., Ci), or (..., Ci) and the axes of images."""
        kept = self.keep(input)
        return torch.cat([kept, self.rest(kept)], self._axis).index_select(self._axis, self.order)


class InterpolativeFactors(Factors):
    """Pivot order and triangular factor of a linear layer or a convolution without groups.

    With moments the rows are those of W C^(1/2), so that outputs are chosen and combined by their covariance.
    """

    @staticmethod
    def factor_params(shape: Sequence[int], groups: int, rank: int) -> tuple[int, ...]:
        """See `Factors.factor_params`: the kept rows, and the other rows' coefficients.

        Their sum grows with the rank up to (Co + Ci kh kw) / 2, which is never below the full rank.
        """
        num_out, num_in = shape[0], prod(shape[1:])
        return rank * num_in, rank * (num_out - rank)

    @staticmethod
    def full_rank(shape: Sequence[int], groups: int) -> int:
        """See `Factors.full_rank`."""
        return min(shape[0], prod(shape[1:]))

    def __init__(self, layer: Layer, moments: LayerMoments | None = None) -> None:
        self._layer = layer
        self._mean = None if moments is None else moments.mean[0]
        rows = weight_of(layer).detach().flatten(1).double().cpu()
        self.max_rank = self.full_rank(rows.shape, 1)
        weighted = rows if moments is None else moments.crossed(rows[None])[0].double()
        self._triangle, self._order = _pivoted_triangle((weighted @ rows.mT).numpy())
        self._tail = tail_energy(torch.from_numpy(np.square(self._triangle).sum(1))[None])

    def build(self, rank: int) -> nn.Module:
        """An `Interpolated`, or the layer itself at rank Co, where no output is left to combine."""
        self.check_rank(rank)
        layer, weight = self._layer, weight_of(self._layer)
        if rank == len(self._order):
            return make_like(layer, weight, layer.bias)
        kept, others = (part.to(layer.weight.device) for part in (self._order[:rank], self._order[rank:]))
        coefficients = self._coefficients(rank).to(kept.device)
        keep = make_like(layer, weight[kept], None if layer.bias is None else layer.bias[kept])
        bias = self._bias_left(kept, others, coefficients)
        rest = make_pointwise(coefficients.to(weight.dtype), bias, layer)
        return Interpolated(keep, rest, torch.cat([kept, others]).argsort()).eval()

    def _coefficients(self, rank: int) -> Tensor:
        """Least-squares coefficients (Co - rank, rank) of the other rows in the kept ones, float64."""
        diagonal = np.abs(np.diagonal(self._triangle))
        count = min(rank, int((diagonal > MAX_DEPENDENT_PIVOT * diagonal[0]).sum()))
        found = np.zeros((len(self._order) - rank, rank))
        if count:
            found[:, :count] = solve_triangular(self._triangle[:count, :count], self._triangle[:count, rank:]).T
        return torch.from_numpy(found)

    def _bias_left(self, kept: Tensor, others: Tensor, coefficients: Tensor) -> Tensor | None:
        """Bias (Co - rank,) of the combinations, which makes the means of their outputs right; None for none.

        Without moments the layer's inputs are taken to have mean zero.
        """
        layer = self._layer
        if layer.bias is None and self._mean is None:
            return None
        weight = weight_of(layer).detach().flatten(1).double()
        means = weight.new_zeros(len(weight)) if self._mean is None else weight @ self._mean.to(weight.device)
        if layer.bias is not None:
            means = means + layer.bias.detach().double()
        return (means[others] - coefficients @ means[kept]).to(layer.weight.dtype)

    def squared_error(self, rank: int) -> float:
        """See `Factors.squared_error`."""
        return self._tail[rank]


def _pivoted_triangle(gram: Array) -> tuple[Array, Tensor]:
    """Triangle R (K, Co) and pivot order (Co,) of a QR with column pivoting, from its columns' Gram matrix (Co, Co).

    Pivots depend on inner products alone, so that a Cholesky decomposition with pivoting finds them, in far less time
    where the columns are long. Rows below the numerical rank are zero.

    Raises:
        LinAlgError: the Gram matrix is not finite.
    """
    if not np.isfinite(gram).all():
        raise np.linalg.LinAlgError("the Gram matrix is not finite")
    # More threads would change the last bits of sums, and with them the choice between equal rows.
    with threadpool_limits(limits=1, user_api="blas"):
        factor, pivots, rank, _ = dpstrf(gram)
    triangle = np.triu(factor)
    triangle[rank:] = 0.0
    return triangle, torch.from_numpy(pivots.astype(np.int64) - 1)
