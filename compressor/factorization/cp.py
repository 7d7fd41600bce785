"""CP decomposition of k x k convolutions through TensorLy (Lebedev et al. 2015).

W (Co, Ci, kh, kw) becomes a sum of K products of four vectors, and the layer four convolutions: 1 x 1 to K channels,
kh x 1 and 1 x kw on each channel alone, 1 x 1 to Co. Stride, padding and dilation are split over the middle two as in
the spatial split, so every geometry stays exact.

CP components are not nested: no single decomposition has every rank as a slice. So factors are computed on a ladder of
ranks 1, 2, 3, 4, 6, ... up to break-even. A step starts from the step below plus the leading components of its
residual, found in closed form, and is refined by alternating least squares (ALS). A rank between two steps is the
step below plus components of its residual. So the factors depend on the weight and the rank alone, and the error does
not grow with the rank. At full rank the closed form alone is exact.

ALS is TensorLy's `parafac`, called on one half of the factors at a time with the other half fixed. On the whole tensor
`parafac` forms Khatri-Rao products of Co * Ci * kw rows: gigabytes and seconds a sweep for 512 x 512 x 3 x 3 at rank
128, where the two halves take a tenth of a second. Their cost bounds the number of sweeps: that weight takes 6 s up to
rank 32, 9 s up to 128 and 24 s up to break-even (2290) on one thread, once; a candidate is then a slice.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from tensorly.cp_tensor import cp_to_tensor
from tensorly.decomposition import parafac
from tensorly.tenalg import khatri_rao
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from compressor.factorization.base import Factors
from compressor.factorization.layers.kinds import weight_of
from compressor.factorization.layers.making import chain, make_conv, make_pointwise, part_of_geometry
from compressor.factorization.least_squares import NestedRefit, refit_layer, refit_of
from compressor.factorization.moments import LayerMoments

LADDER_RATIO = 2**0.5
MAX_SWEEPS = 12
MAX_STEP_FLOPS = 3e10  # for all sweeps of one step
MAX_PRODUCT_BYTES = 2**29  # of the largest Khatri-Rao product; only kernels of 14 x 14 and more come near
# Without a ridge ALS lets components grow that cancel each other: a hundred times the weight's energy at no gain.
RIDGE = 1e-4  # of the weight's norm, on the sum of the components' norms
MAX_REFITS = 3  # the latest are kept: a search stays near one rank
MAX_CANCELLATION = 100.0  # energy of the components over the weight's; beyond, float32 would lose digits
OVERSAMPLING, NUM_POWERS, SEED = 8, 3, 0  # of the randomized range finder

Array = NDArray[np.floating]
# Columns of the four factors, one component each: (Co, K), (Ci, K), (kh, K), (kw, K).
Parts = tuple[Array, Array, Array, Array]


class CpFactors(Factors):
    """CP factors of a convolution without groups; steps of the ladder are computed on demand, lowest first.

    With moments the last factor and the bias are refitted to the outputs; the other three are the weight's.
    """

    @staticmethod
    def factor_params(shape: Sequence[int], groups: int, rank: int) -> tuple[int, ...]:
        """See `Factors.factor_params`."""
        num_out, num_in, height, width = shape
        return rank * num_in, rank * height, rank * width, rank * num_out

    @staticmethod
    def full_rank(shape: Sequence[int], groups: int) -> int:
        """Where the closed form is exact: min(Co, Ci) components for each of kh * kw spatial patterns."""
        num_out, num_in, height, width = shape
        return min(num_out, num_in) * height * width

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d, moments: LayerMoments | None = None) -> None:
        self._layer = layer
        self._moments = moments
        self._weight: Array = weight_of(layer).detach().double().cpu().numpy()
        self.max_rank = self.full_rank(self._weight.shape, layer.groups)
        self._break_even = self._weight.size // sum(self._weight.shape)
        self._ladder = _ladder_ranks(self._break_even)
        self._steps: list[Step] = []
        self._refits: dict[tuple[int, int], NestedRefit] = {}

    def build(self, rank: int) -> nn.Sequential:
        """See `Factors.build`."""
        self.check_rank(rank)
        layer, step = self._layer, self._nearest_step(rank)
        parts = step.parts_at(rank)
        out, inside, rows, columns = map(self._as_tensor, parts)
        bias = layer.bias
        if self._moments is not None:
            out, bias = refit_layer(layer, self._moments, _features(parts), self._refit(step, rank))
        return chain(
            make_pointwise(inside.T, None, layer),
            make_conv(rows.T[:, None, :, None], None, layer, rank, **part_of_geometry(layer, axes=[0])),
            make_conv(columns.T[:, None, None, :], None, layer, rank, **part_of_geometry(layer, axes=[1])),
            make_pointwise(out, bias, layer),
        )

    def _as_tensor(self, part: Array) -> Tensor:
        return torch.from_numpy(part).to(self._layer.weight)

    def squared_error(self, rank: int) -> float:
        """See `Factors.squared_error`."""
        step = self._nearest_step(rank)
        return step.error_at(rank) if self._moments is None else self._refit(step, rank).squared_error(rank)

    def _refit(self, step: "Step", rank: int) -> NestedRefit:
        """Last factors for all ranks of a step up to break-even, or up to `rank` if that is higher."""
        assert self._moments is not None
        first, last = step.parts[0].shape[1], max(rank, min(step.last, self._break_even))
        if (first, last) not in self._refits:
            features = _features(step.parts_at(last))
            self._refits[first, last] = refit_of(self._layer, self._moments, features)
            if len(self._refits) > MAX_REFITS:
                del self._refits[next(iter(self._refits))]
        return self._refits[first, last]

    def _nearest_step(self, rank: int) -> "Step":
        """The step that is extended to `rank`."""
        count = sum(step_rank <= rank for step_rank in self._ladder)
        if len(self._steps) < count:
            # More threads would change the last bits of sums.
            with threadpool_limits(limits=1, user_api="blas"):
                while len(self._steps) < count:
                    self._steps.append(self._next_step())
        return _best_step(self._steps[:count], rank)

    def _next_step(self) -> "Step":
        if not self._steps:
            out, inside, rows, columns = (np.zeros((length, 0)) for length in self._weight.shape)
            return _make_step(self._weight, (out, inside, rows, columns), self.max_rank)
        first, last = [*self._ladder, self.max_rank][len(self._steps) :][:2]
        below = _best_step(self._steps, first)
        return _make_step(self._weight, _refine(self._weight, below.parts_at(first), below.error_at(first)), last)


@dataclass(frozen=True)
class Step:
    """A CP of some rank, and orthogonal components of its residual, largest first, for the ranks up to the next step.

    Attributes:
        parts: the components of the CP, in single precision as in the layers.
        extension: the components of its residual, likewise.
        errors: squared errors with 0, 1, ... components of the residual.
    """

    parts: Parts
    extension: Parts
    errors: list[float]

    @property
    def last(self) -> int:
        """The largest rank that the step reaches."""
        return self.parts[0].shape[1] + len(self.errors) - 1

    def error_at(self, rank: int) -> float:
        """Squared error of the first `rank` components."""
        return self.errors[rank - self.parts[0].shape[1]]

    def parts_at(self, rank: int) -> Parts:
        """The first `rank` components, in double precision."""
        pairs = zip(self.parts, self.extension, strict=True)
        out, inside, rows, columns = (np.hstack(pair)[:, :rank].astype(np.float64) for pair in pairs)
        return out, inside, rows, columns


def _features(parts: Parts) -> Tensor:
    """The last factor's inputs as combinations of a patch, (K, Ci * kh * kw)."""
    _, *others = parts
    return torch.from_numpy(khatri_rao(others)).T


def _ladder_ranks(break_even: int) -> list[int]:
    """0, 1, 2, 3, 4, 6, ... up to `break_even`."""
    count = int(np.log(max(break_even, 1)) / np.log(LADDER_RATIO)) + 1
    return sorted({0, *(round(LADDER_RATIO**power) for power in range(count))})


def _best_step(steps: Sequence[Step], rank: int) -> Step:
    """The last step, or the first where the closed form alone has less error at `rank`."""
    return min((steps[-1], steps[0]), key=lambda step: step.error_at(rank))


def _make_step(weight: Array, parts: Parts, last: int) -> Step:
    """The step with these parts and with components of the residual up to rank `last`."""
    kept = _in_single_precision(parts)
    residual = weight - _compose(kept)
    extension, errors = _expand(residual, last - parts[0].shape[1])
    return Step(kept, _in_single_precision(extension), errors)


# The closed form


def _expand(residual: Array, limit: int) -> tuple[Parts, list[float]]:
    """The `limit` largest of min(Co, Ci) kh kw orthogonal components whose sum is a tensor (Co, Ci, kh, kw).

    The tensor is a sum over the kh * kw products of its principal row and column patterns, with a matrix (Co, Ci) for
    each, and a matrix is the sum of its singular triples. All are orthogonal to each other, so energies add up.

    Returns:
        The components, and the squared errors with 0, 1, ... `limit` of them.
    """
    rows, columns = (_principal_patterns(residual, axis) for axis in (2, 3))
    matrices = np.einsum("oiyx,yr,xc->rcoi", residual, rows, columns, optimize=True)
    matrices = matrices.reshape(-1, *residual.shape[:2])
    wide = residual.shape[0] <= residual.shape[1]
    short, long, energies = _singular_triples(matrices if wide else matrices.transpose(0, 2, 1), limit)
    order = np.argsort(-energies, axis=None, kind="stable")
    pattern, index = np.divmod(order[:limit], energies.shape[1])
    sides = (short[pattern, :, index].T, long[pattern, index].T)
    out, inside = sides if wide else sides[::-1]
    row, column = np.divmod(pattern, columns.shape[1])
    beyond = max(0.0, np.square(residual).sum() - energies.sum())
    tails = beyond + energies.ravel()[order][::-1].cumsum()[::-1]
    return (out, inside, rows[:, row], columns[:, column]), [*tails.tolist(), beyond]


def _principal_patterns(residual: Array, axis: int) -> Array:
    """An orthonormal basis of one axis, by columns."""
    unfolded = np.moveaxis(residual, axis, 0).reshape(residual.shape[axis], -1)
    return np.linalg.eigh(unfolded @ unfolded.T)[1]


def _singular_triples(matrices: Array, limit: int) -> tuple[Array, Array, Array]:
    """U (P, m, k), S V^T (P, k, n) and S^2 (P, k) of wide matrices (P, m, n), in no order, k at least min(limit, m).

    Where U only approximates the singular vectors it still is orthonormal, so that energies add up.
    """
    if 4 * (limit + OVERSAMPLING) > matrices.shape[1]:  # leaving some out would save no time
        return _all_singular_triples(matrices)
    space = _leading_space(matrices, limit + OVERSAMPLING)
    left, right, energies = _all_singular_triples(space.transpose(0, 2, 1) @ matrices)
    return space @ left, right, energies


def _all_singular_triples(matrices: Array) -> tuple[Array, Array, Array]:
    """From the Gram matrices, in half the time: U U^T = 1, so the product is as exact as that of an SVD."""
    left = np.linalg.eigh(matrices @ matrices.transpose(0, 2, 1))[1]
    right = left.transpose(0, 2, 1) @ matrices
    return left, right, np.square(right).sum(-1)


def _leading_space(matrices: Array, count: int) -> Array:
    """An orthonormal basis (P, m, count) near the leading left singular vectors (Halko et al. 2011)."""
    num, _, width = matrices.shape
    space = np.random.default_rng(SEED).standard_normal((num, width, count))
    for _ in range(NUM_POWERS):
        space = matrices.transpose(0, 2, 1) @ np.linalg.qr(matrices @ space)[0]
    return np.linalg.qr(matrices @ space)[0]


# Alternating least squares


def _refine(weight: Array, start: Parts, start_error: float) -> Parts:
    """`start` after some sweeps, or unchanged where these fail (singular systems, overflow) or bring no gain."""
    parts = start
    by_pattern = np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(-1, *weight.shape[1::-1])
    with np.errstate(all="ignore"):
        with suppress(np.linalg.LinAlgError, ValueError):
            for _ in range(_num_sweeps(weight.shape, start[0].shape[1])):
                parts = _sweep(by_pattern, parts)
        return parts if _is_sound(weight, parts) and _error(weight, parts) < start_error else start


def _num_sweeps(shape: Sequence[int], rank: int) -> int:
    """As many as MAX_STEP_FLOPS and MAX_PRODUCT_BYTES allow; a function of shape and rank, not of measured time."""
    num_out, num_in, height, width = shape
    if 8 * height * width * max(num_out, num_in) * rank > MAX_PRODUCT_BYTES:
        return 0
    flops = 6 * num_out * num_in * height * width * rank + 8 * (num_out + num_in) * rank**2 + 4 * rank**3
    return min(MAX_SWEEPS, int(MAX_STEP_FLOPS / flops))


def _sweep(by_pattern: Array, parts: Parts) -> Parts:
    """The spatial factors by least squares, then the channel factors by least squares with a ridge.

    With the Co and Ci factors fixed, W enters through its inner products with their K products only. If the Gram matrix
    of these is L L^T, the problem is that of the tensor (K, kh, kw) of inner products, solved by L, whose first factor
    is L^T. With the kh and kw factors fixed, their products are the one fixed factor of W as (kh kw, Ci, Co).

    Raises:
        LinAlgError or ValueError: a system of equations is singular or not finite.
    """
    out, inside, rows, columns = parts
    root = np.linalg.cholesky((out.T @ out) * (inside.T @ inside))
    products = np.einsum("pir,ir->rp", by_pattern @ out, inside)
    small = solve_triangular(root, products, lower=True).reshape(-1, len(rows), len(columns))
    rows, columns = _solve_unfixed(small, root.T, rows, columns)
    out, inside, rows, columns = _balance((out, inside, rows, columns), unit_patterns=True)
    patterns = khatri_rao([rows, columns])
    inside, out = _solve_unfixed(by_pattern, patterns, inside, out, ridge=RIDGE * float(np.linalg.norm(by_pattern)))
    return out, inside, rows, columns


def _solve_unfixed(tensor: Array, fixed: Array, *factors: Array, ridge: float = 0.0) -> list[Array]:
    """One sweep of ALS over all factors but the first, which is `fixed`."""
    start = (None, [fixed, *factors])
    # A tolerance of 0 spares the computation of the error.
    found = parafac(tensor, fixed.shape[1], n_iter_max=1, tol=0, init=start, fixed_modes=[0], l2_reg=ridge)
    return found.factors[1:]


def _is_sound(weight: Array, parts: Parts) -> bool:
    """Finite, and without large components that cancel each other."""
    energies = np.prod([np.square(part).sum(0) for part in parts], axis=0)
    return bool(energies.sum() <= MAX_CANCELLATION * np.square(weight).sum())  # False for NaN


# Small pieces


def _compose(parts: Parts) -> Array:
    """The tensor (Co, Ci, kh, kw) that the components add up to, in double precision."""
    if not parts[0].shape[1]:
        return np.zeros([len(part) for part in parts])
    return cp_to_tensor((None, [part.astype(np.float64) for part in parts]))


def _error(weight: Array, parts: Parts) -> float:
    return float(np.square(weight - _compose(parts)).sum())


def _balance(parts: Parts, unit_patterns: bool = False) -> Parts:
    """The same components with four vectors of equal length each, so that none over- or underflows in single precision.

    With `unit_patterns` the kh and kw vectors have length 1, and the other two share the rest.
    """
    norms = np.stack([np.linalg.norm(part, axis=0) for part in parts])
    powers = (0.5, 0.5, 0.0, 0.0) if unit_patterns else (0.25,) * 4
    units = [part / np.where(norm > 0, norm, 1.0) for part, norm in zip(parts, norms, strict=True)]
    out, inside, rows, columns = (unit * norms.prod(0) ** power for unit, power in zip(units, powers, strict=True))
    return out, inside, rows, columns


def _in_single_precision(parts: Parts) -> Parts:
    out, inside, rows, columns = (part.astype(np.float32) for part in _balance(parts))
    return out, inside, rows, columns
