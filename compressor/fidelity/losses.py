"""Per-image losses of a candidate, and how their noise depends on the function norm."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_LOSS = 1e-12


@dataclass(frozen=True)
class Losses:
    """Per-image losses of one candidate.

    Attributes:
        indices: the images (m,).
        values: l_i = ||f~(x_i) - f*(x_i)||^2, or another loss (m,).
        squares: the squared distances (m,) where `values` are another loss.
        flips: with labels, prediction flips (m,): 1 where only the original is right, -1 where only the candidate is,
            else 0.
    """

    indices: NDArray[np.int64]
    values: NDArray[np.float64]
    squares: NDArray[np.float64] | None = None
    flips: NDArray[np.float64] | None = None

    @property
    def mean(self) -> float:
        """The estimate of L: the mean of the losses."""
        return float(self.values.mean())

    @property
    def variance(self) -> float:
        """Variance of the estimate: the sample variance over m."""
        return float(self.values.var(ddof=1) / len(self.values))

    @property
    def distances(self) -> NDArray[np.float64]:
        """Squared distances of the outputs (m,), whatever the loss."""
        return self.values if self.squares is None else self.squares

    @property
    def function_norm(self) -> float:
        """The function norm on these images, whatever the loss."""
        return float(self.distances.mean())

    def scaled(self, factor: float) -> "Losses":
        """These losses times a factor; decisions that flip are the same."""
        squares = None if self.squares is None else factor * self.squares
        return Losses(self.indices, factor * self.values, squares, self.flips)

    def on(self, indices: NDArray[np.int64]) -> "Losses":
        """The losses on the images `indices` (k,), in the present order."""
        return self._where(np.isin(self.indices, indices))

    def without(self, indices: NDArray[np.int64]) -> "Losses":
        """The losses on images other than `indices` (k,)."""
        return self._where(~np.isin(self.indices, indices))

    def _where(self, chosen: NDArray[np.bool_]) -> "Losses":
        squares, flips = (None if values is None else values[chosen] for values in (self.squares, self.flips))
        return Losses(self.indices[chosen], self.values[chosen], squares, flips)


@dataclass(frozen=True)
class NoiseSpecification:
    """What a search must know of a loss beforehand.

    Attributes:
        floor: loss that the original itself is taken to have, so that L + `floor` is positive.
        noise_power: the standard deviation of the losses grows as this power of the function norm.
        correlation_decay: the correlation of two plans' losses on an image is proportional to this power of the smaller
            over the larger function norm.
        per_norm: initial estimate of L at a function norm of 1.
    """

    floor: float = 0.0
    noise_power: float = 1.0
    correlation_decay: float = 0.3
    per_norm: float = 1.0
