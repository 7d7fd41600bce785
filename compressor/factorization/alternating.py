"""Both factors in turn: the first factor that suits a given second one, in a layer's metric.

With the second factor H given, tr(G (W~ - W) C (W~ - W)^T) is quadratic in the first factor V. Its matrix,
sum over columns w, v of (H_w^T G H_v) x C_wv, is too large to form: the minimum is found by conjugate gradients,
preconditioned by its main part (sum_w H_w^T G H_w) x (mean_w C_ww); for kw = 1 that is all, and one step is exact.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, linalg

from compressor.factorization.least_squares import NestedRefit, regular
from compressor.factorization.moments import LayerMoments
from compressor.factorization.two_factor import column_covariance

SWEEPS = 2
CONJUGATE_STEPS = 3
ENOUGH = 1e-10  # of the first residual's square


def alternate(kernel: Tensor, moments: LayerMoments, first: Tensor, sweeps: int = SWEEPS) -> Tensor:
    """First factors (groups, K, a), float64, after `sweeps` of refitting the second and then the first factor.

    Works in single precision: the second factor is refitted in double precision from what comes out anyway.

    Args:
        kernel: what to approximate, (groups, Co/groups, a, kw).
        metric: its metric.
        first: where to begin, (groups, K, a).
    """
    kernel, first = kernel.float(), first.float()
    moments = LayerMoments(moments.covariance.float(), moments.mean.float(), moments.outputs.float())
    seen = (kernel.flatten(2) @ moments.covariance).reshape(kernel.shape)
    for _ in range(sweeps):
        second = NestedRefit(kernel, moments, _orthonormal(first)).second(first.shape[1])
        first = _best_first(seen, moments, _orthonormal(first), second)
    return first.double()


@dataclass(frozen=True)
class _Quadratic:
    """The quadratic in V (groups, K, a) and its preconditioner."""

    gram: Tensor  # H_w^T G H_v, (groups, K, kw, K, kw)
    covariance: Tensor  # (groups, a, kw, a, kw)
    root_gram: Tensor
    root_covariance: Tensor

    def apply(self, first: Tensor) -> Tensor:
        mixed = torch.einsum("gkwlv,glb->gkwbv", self.gram, first)
        groups, rank, _width, num_in, _ = mixed.shape
        by_column = self.covariance.permute(0, 2, 3, 4, 1).reshape(groups, -1, num_in)
        return mixed.reshape(groups, rank, -1) @ by_column

    def precondition(self, residual: Tensor) -> Tensor:
        half = torch.cholesky_solve(residual, self.root_gram)
        return torch.cholesky_solve(half.mT, self.root_covariance).mT


def _best_first(seen: Tensor, moments: LayerMoments, first: Tensor, second: Tensor) -> Tensor:
    """The best first factor for `second`; `seen` is W C in the kernel's shape."""
    groups, _, num_in, width = seen.shape
    weighted = torch.einsum("gop,gpkw->gokw", moments.outputs, second)
    gram = torch.einsum("gokw,golv->gkwlv", weighted, second)
    quadratic = _Quadratic(
        gram,
        moments.covariance.reshape(groups, num_in, width, num_in, width),
        linalg.cholesky(regular(torch.einsum("gkwlw->gkl", gram))),
        linalg.cholesky(column_covariance(moments, width)),
    )
    wanted = torch.einsum("gokw,goaw->gka", weighted, seen)
    return _conjugate_gradients(quadratic, wanted, first)


def _conjugate_gradients(quadratic: _Quadratic, wanted: Tensor, first: Tensor) -> Tensor:
    residual = wanted - quadratic.apply(first)
    step = quadratic.precondition(residual)
    size = begin = _dot(residual, step)
    for _ in range(CONJUGATE_STEPS):
        going = size > ENOUGH * begin
        if not bool(going.any()):
            break
        seen = quadratic.apply(step)
        # A group that has converged stays where it is: rounding would carry it off.
        length = torch.where(going, size / _dot(step, seen).clamp_min(1e-30), 0.0)
        first = first + length * step
        residual = residual - length * seen
        preconditioned = quadratic.precondition(residual)
        size, before = _dot(residual, preconditioned), size
        step = preconditioned + size / before.clamp_min(1e-30) * step
    return first


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum((-2, -1), keepdim=True)


def _orthonormal(first: Tensor) -> Tensor:
    """The same features spanned by orthonormal rows, which keeps the next refit well conditioned."""
    basis, _ = linalg.qr(first.mT)
    return basis.mT
