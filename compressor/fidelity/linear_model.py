"""The first-order model of how a network's outputs change with the ranks of its layers; without torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.arrays import Array, Ranks


@dataclass(frozen=True)
class LinearModel:
    """The outputs around a plan on m images, along p directions.

    Attributes:
        residuals: f~ - f* of the plan (m, p).
        changes: for every layer, by rank, what that rank alone adds to the residuals (m, p) to first order.
        passes: the cost of the model, in forward passes of one image.
    """

    residuals: Array
    changes: Sequence[Mapping[int, Array]]
    passes: int

    @property
    def norm(self) -> float:
        """Function norm of the plan."""
        return float((self.residuals**2).sum(1).mean())

    def single_layer_norms(self) -> list[dict[int, float]]:
        """Function norm of the plan with one layer at another rank, for every layer and rank of `changes`."""
        return [
            {rank: float(((self.residuals + change) ** 2).sum(1).mean()) for rank, change in rows.items()}
            for rows in self.changes
        ]


Linearize = Callable[[Ranks, Sequence[Sequence[int]], np.ndarray, int], LinearModel]
"""From ranks (d,) of a plan, other ranks of every layer, indices of images (m,) and the maximal number of directions to
the model around the plan."""
