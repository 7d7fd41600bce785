"""Other nested orders of channels, to compare elimination with."""

import numpy as np

from compressor.arrays import Array
from compressor.channels.elimination import Elimination

EPSILON = 1e-12


def by_norm(covariance: Array, importance: Array, num_units: int) -> Elimination:
    """The units by what each alone adds to the layer's weighted outputs, tr(C_uu P_uu), the largest first.

    The losses are what the units left out add, each by itself: without a refit, where they are uncorrelated.

    Args:
        covariance: C (n, n) of the layer's inputs, those of a unit being contiguous.
        importance: P = W^T G W (n, n).
        num_units: U.
    """
    size = len(covariance) // num_units
    added = (_blocks(covariance, size) * _blocks(importance, size)).sum((1, 2))
    return _ordered(np.argsort(-added, kind="stable"), added)


def by_pivoted_qr(covariance: Array, num_units: int) -> Elimination:
    """The units by QR with column pivoting of their values: next the one that those before predict worst.

    It looks at the layer's inputs alone. The losses are the variances that were left when each unit was chosen.

    Args:
        covariance: C (n, n) of the layer's inputs, those of a unit being contiguous.
        num_units: U.
    """
    size = len(covariance) // num_units
    left = np.array(covariance)
    chosen: list[int] = []
    variances = np.zeros(num_units)
    for _ in range(num_units):
        traces = np.einsum("uaa->u", _blocks(left, size))
        traces[chosen] = -np.inf
        unit = int(np.argmax(traces))
        chosen.append(unit)
        variances[unit] = max(0.0, traces[unit])
        rows = slice(unit * size, (unit + 1) * size)
        block = left[rows, rows] + EPSILON * np.eye(size) * max(1e-30, float(np.trace(left[rows, rows])))
        left -= left[:, rows] @ np.linalg.solve(block, left[rows])
    return _ordered(np.array(chosen, dtype=np.int64), variances)


def _blocks(matrix: Array, size: int) -> Array:
    units = len(matrix) // size
    return np.asarray(np.einsum("iaib->iab", matrix.reshape(units, size, units, size)))


def _ordered(order: np.ndarray, parts: Array) -> Elimination:
    losses = np.concatenate([[0.0], np.cumsum(parts[order][::-1])])[::-1]
    return Elimination(order.astype(np.int64), np.ascontiguousarray(losses))
