"""How the outputs of a network move with the ranks of its layers, to first order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.arrays import Array, Ranks


@dataclass(frozen=True)
class LinearModel:
    """Outputs around a plan, along p directions.

    Attributes:
        residuals: f~ - f* of the plan (m, p).
        changes: for every layer what other ranks, alone, add to the residuals (m, p) to first order.
        passes: what it took, in passes of an image.
    """

    residuals: Array
    changes: Sequence[Mapping[int, Array]]
    passes: int

    @property
    def norm(self) -> float:
        """Function norm of the plan."""
        return float((self.residuals**2).sum(1).mean())

    def norms_alone(self) -> list[dict[int, float]]:
        """Function norm of the plan with one layer at another rank, for every layer and rank of `changes`."""
        return [
            {rank: float(((self.residuals + change) ** 2).sum(1).mean()) for rank, change in rows.items()}
            for rows in self.changes
        ]


Linearize = Callable[[Ranks, Sequence[Sequence[int]], np.ndarray, int], LinearModel]
"""Ranks (d,) of a plan, other ranks for every layer, indices of images (m,), and how many directions at most in, the
model around the plan out."""
