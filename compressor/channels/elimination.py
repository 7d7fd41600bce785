"""A nested order of channels by backward elimination: the one whose removal costs least goes first.

With inputs x of covariance C and a layer W x whose outputs weigh as G, removing the inputs R and refitting the others
by least squares costs tr(W_R (H_RR)^-1 W_R^T G), H = C^-1, and leaves W - W_R (H_RR)^-1 H_R: an optimal brain surgeon
(Hassibi and Stork 1993) whose Hessian is the layer's Gram matrix. H and P = W^T G W are all that is needed of C, W
and G. Both are down-dated exactly after every removal, so that the costs of all steps add up to the least-squares
error of the inputs that are left.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri
from threadpoolctl import threadpool_limits

from compressor.arrays import Array, Ranks

Mask = NDArray[np.bool_]
Matrix = NDArray[np.floating[Any]]  # in single precision where covariances are

PENDING_COLUMNS = 64  # down-dates are applied to the matrices this many columns at a time, as matrix products
ROWS_AT_ONCE = 512  # of the matrices; what is subtracted would take as much memory as they


@dataclass(frozen=True)
class Elimination:
    """An order of units, and what is lost at every width.

    Attributes:
        order: the units (U,), the last one to be removed first; width k keeps the first k.
        losses: weighted mean squared error (U + 1,) of the readers' outputs at widths 0, 1, ..., U, where they are
            refitted to the units that are left; in the units of G times those of the outputs, squared.
    """

    order: Ranks
    losses: Array


def eliminate(covariances: Iterable[Matrix], importances: Iterable[Matrix], num_units: int) -> Elimination:
    """Order units by backward elimination.

    Takes O(n^3) operations per reader, in the covariances' precision on one BLAS thread; inverses are found in float64.

    Args:
        covariances: per reader C (n, n) of its inputs, positive definite, the inputs of a unit being contiguous.
        importances: per reader P = W^T G W (n, n), positive semi-definite, of the same precision; overwritten.
        num_units: U.
    """
    with threadpool_limits(1):
        readers = [_Reader(*pair, num_units) for pair in zip(covariances, importances, strict=True)]
        removed: list[int] = []
        costs: list[float] = []
        left = np.ones(num_units, dtype=bool)
        for _ in range(num_units):
            total = np.where(left, sum(reader.costs() for reader in readers), np.inf)
            unit = int(np.argmin(total))
            removed.append(unit)
            costs.append(max(0.0, float(total[unit])))
            left[unit] = False
            for reader in readers:
                reader.remove(unit, left)
    losses = np.concatenate([[0.0], np.cumsum(costs)])[::-1]
    return Elimination(np.array(removed[::-1], dtype=np.int64), np.ascontiguousarray(losses))


class _Reader:
    """H and P of one reader, for the units that are left.

    Down-dates are kept as products of thin matrices until there are enough of them; the diagonal blocks, from which the
    costs follow, are always up to date, and in float64.
    """

    def __init__(self, covariance: Matrix, importance: Matrix, num_units: int) -> None:
        self._size = len(covariance) // num_units
        self._inverse = _inverse(covariance).astype(covariance.dtype, copy=False)
        self._importance = importance
        self._units = np.arange(num_units)  # that the matrices still hold
        self._inverse_blocks = self._diagonal(self._inverse)
        self._importance_blocks = self._diagonal(self._importance)
        self._shares, self._scaled, self._moved = self._nothing(), self._nothing(), self._nothing()

    def costs(self) -> Array:
        """What the removal of each unit costs (U,); of no meaning for those that are removed."""
        if self._size == 1:
            return np.asarray(self._importance_blocks[:, 0, 0] / self._inverse_blocks[:, 0, 0])
        solved = np.linalg.solve(self._inverse_blocks, self._importance_blocks)
        return np.asarray(np.trace(solved, axis1=1, axis2=2))

    def remove(self, unit: int, left: Mask) -> None:
        """Remove a unit; `left` (U,) says which stay."""
        rows = self._rows(int(np.searchsorted(self._units, unit)))
        column = self._inverse[:, rows] - self._scaled @ self._shares[rows].T
        weight = self._importance[:, rows] - self._moved @ self._shares[rows].T - self._shares @ self._moved[rows].T
        block = (column[rows] + column[rows].T) / 2
        share = np.linalg.solve(block, column.T).T
        moved = weight - share @ weight[rows] / 2
        self._shares = np.hstack([self._shares, share])
        self._scaled = np.hstack([self._scaled, share @ block])
        self._moved = np.hstack([self._moved, moved])
        self._down_date_blocks(share, share @ block, moved, left)
        if self._shares.shape[1] >= PENDING_COLUMNS:
            self._apply(left)

    def _down_date_blocks(self, share: Matrix, scaled: Matrix, moved: Matrix, left: Mask) -> None:
        by_unit = [values.reshape(len(self._units), self._size, -1) for values in (share, scaled, moved)]
        share, scaled, moved = (values[left[self._units]] for values in by_unit)
        kept = self._units[left[self._units]]
        self._inverse_blocks[kept] -= scaled @ share.transpose(0, 2, 1)
        change = moved @ share.transpose(0, 2, 1)
        self._importance_blocks[kept] -= change + change.transpose(0, 2, 1)

    def _apply(self, left: Mask) -> None:
        """Carry out the pending down-dates on the units that are left, and drop the others."""
        keep = np.flatnonzero(np.repeat(left[self._units], self._size))
        shares, scaled, moved = self._shares[keep], self._scaled[keep], self._moved[keep]
        # In place, as rows only move up: a second matrix would take as much memory again.
        for begin in range(0, len(keep), ROWS_AT_ONCE):
            rows = slice(begin, min(begin + ROWS_AT_ONCE, len(keep)))
            from_here = np.ix_(keep[rows], keep)
            self._inverse[rows, : len(keep)] = self._inverse[from_here] - scaled[rows] @ shares.T
            change = moved[rows] @ shares.T + shares[rows] @ moved.T
            self._importance[rows, : len(keep)] = self._importance[from_here] - change
        self._inverse = self._inverse[: len(keep), : len(keep)]
        self._importance = self._importance[: len(keep), : len(keep)]
        self._units = self._units[left[self._units]]
        self._shares, self._scaled, self._moved = self._nothing(), self._nothing(), self._nothing()

    def _nothing(self) -> Matrix:
        return np.zeros((len(self._inverse), 0), self._inverse.dtype)

    def _rows(self, position: int) -> slice:
        return slice(position * self._size, (position + 1) * self._size)

    def _diagonal(self, matrix: Matrix) -> Array:
        by_unit = matrix.reshape(len(self._units), self._size, len(self._units), self._size)
        return np.array(np.einsum("iaib->iab", by_unit), dtype=np.float64)


def _inverse(matrix: Matrix) -> Array:
    """The inverse of a positive definite matrix, float64; LAPACK overwrites one copy, and its triangle is mirrored.

    Raises:
        LinAlgError: the matrix is not positive definite.
    """
    root, failed = dpotrf(np.array(matrix, dtype=np.float64, order="F"), lower=1, overwrite_a=1)
    if failed:
        raise np.linalg.LinAlgError("the covariance is not positive definite")
    inverse: Array = np.asarray(dpotri(root, lower=1, overwrite_c=1)[0])
    for begin in range(0, len(inverse), ROWS_AT_ONCE):
        end = min(begin + ROWS_AT_ONCE, len(inverse))
        block = inverse[begin:end, begin:end]
        block[:] = np.tril(block) + np.tril(block, -1).T
        inverse[begin:end, end:] = inverse[end:, begin:end].T
    return inverse
