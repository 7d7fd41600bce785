"""Both factors of a layer fitted in turn under its second moments.

With the second factor H fixed, the error tr(G (W~ - W) C (W~ - W)^T) is quadratic in the first factor V. Its matrix,
sum over columns w, v of (H_w^T G H_v) x C_wv, is too large to form, so conjugate gradients find the minimum. Their
preconditioner is (sum_w H_w^T G H_w) x (mean_w C_ww); for kw = 1 that is the whole matrix, and one step is exact.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, linalg

from compressor.factorization.least_squares import NestedRefit, regular
from compressor.factorization.moments import LayerMoments
from compressor.factorization.two_factor import column_covariance

SWEEPS = 2
CONJUGATE_STEPS = 3
TOLERANCE = 1e-10  # on the squared residual, as a share of the first


def alternate(kernel: Tensor, moments: LayerMoments, first: Tensor, sweeps: int = SWEEPS) -> Tensor:
    """The first factor after `sweeps` of refitting the second and then the first factor.

    Computed in single precision, as callers refit the second factor in double precision afterwards.

    Args:
        kernel: the weight to approximate, (groups, Co/groups, a, kw).
        moments: the layer's second moments.
        first: the first factor to start from, (groups, K, a).
        sweeps: how often both are refitted.

    Returns:
        The first factor (groups, K, a), float64.
    """
    kernel, first = kernel.float(), first.float()
    moments = LayerMoments(moments.covariance.float(), moments.mean.float(), moments.outputs.float())
    crossed = moments.crossed(kernel).reshape(kernel.shape)
    for _ in range(sweeps):
        second = NestedRefit(kernel, moments, _orthonormal(first)).second(first.shape[1])
        first = _best_first(crossed, moments, _orthonormal(first), second)
    return first.double()


@dataclass(frozen=True)
class _Quadratic:
    """The matrix of the quadratic in V (groups, K, a), and Cholesky factors of its preconditioner."""

    gram: Tensor  # H_w^T G H_v, (groups, K, kw, K, kw)
    covariance: Tensor  # (groups, a, kw, a, kw), symmetric
    root_gram: Tensor  # (groups, K, K)
    root_covariance: Tensor  # (groups, a, a)

    def apply(self, first: Tensor) -> Tensor:
        mixed = torch.einsum("gkwlv,glb->gkwbv", self.gram, first)
        groups, rank, width, num_in, _ = mixed.shape
        rows = self.covariance.reshape(groups, num_in * width, num_in, width)
        # Column by column: all at once, the covariance would have to be copied.
        total = mixed.new_zeros(groups, rank, num_in)
        for column in range(width):
            total += mixed[:, :, column].flatten(2) @ rows[..., column]
        return total

    def precondition(self, residual: Tensor) -> Tensor:
        half = torch.cholesky_solve(residual, self.root_gram)
        return torch.cholesky_solve(half.mT, self.root_covariance).mT


def _best_first(crossed: Tensor, moments: LayerMoments, first: Tensor, second: Tensor) -> Tensor:
    """The best first factor (groups, K, a) for `second`; `crossed` is W C in the kernel's shape."""
    groups, _, num_in, width = crossed.shape
    weighted = torch.einsum("gop,gpkw->gokw", moments.outputs, second)
    gram = torch.einsum("gokw,golv->gkwlv", weighted, second)
    quadratic = _Quadratic(
        gram,
        moments.covariance.reshape(groups, num_in, width, num_in, width),
        linalg.cholesky(regular(torch.einsum("gkwlw->gkl", gram))),
        linalg.cholesky(column_covariance(moments, width)),
    )
    target = torch.einsum("gokw,goaw->gka", weighted, crossed)
    return _conjugate_gradients(quadratic, target, first)


def _conjugate_gradients(quadratic: _Quadratic, target: Tensor, first: Tensor) -> Tensor:
    residual = target - quadratic.apply(first)
    step = quadratic.precondition(residual)
    size = begin = _dot(residual, step)
    for _ in range(CONJUGATE_STEPS):
        active = size > TOLERANCE * begin
        if not bool(active.any()):
            break
        change = quadratic.apply(step)
        # A group that has converged stops: rounding errors would make it diverge.
        length = torch.where(active, size / _dot(step, change).clamp_min(1e-30), 0.0)
        first = first + length * step
        residual = residual - length * change
        preconditioned = quadratic.precondition(residual)
        size, before = _dot(residual, preconditioned), size
        step = preconditioned + size / before.clamp_min(1e-30) * step
    return first


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum((-2, -1), keepdim=True)


def _orthonormal(first: Tensor) -> Tensor:
    """Orthonormal rows that span the same features; they keep the next refit well conditioned."""
    basis, _ = linalg.qr(first.mT)
    return basis.mT
