"""TODO docstring."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_LOSS = 1e-12


@dataclass(frozen=True)
class Losses:
    """Per-image losses of one candidate on the images `indices`; both (m,).

    l_i = ||f~(x_i) - f*(x_i)||^2, or another loss; then `squares` (m,) holds these squared distances. With labels,
    `harms` (m,) are 1 where only the original decides rightly, -1 where only the candidate does, else 0.
    """

    indices: NDArray[np.int64]
    values: NDArray[np.float64]
    squares: NDArray[np.float64] | None = None
    flips: NDArray[np.float64] | None = None

    @property
    def mean(self) -> float:
        """The estimate of L."""
        return float(self.values.mean())

    @property
    def variance(self) -> float:
        """Variance of the estimate: sample variance over m."""
        return float(self.values.var(ddof=1) / len(self.values))

    @property
    def distances(self) -> NDArray[np.float64]:
        """The squared distances of the outputs (m,), whatever the loss is."""
        return self.values if self.squares is None else self.squares

    @property
    def function_norm(self) -> float:
        """The function norm on these images, whatever the loss is."""
        return float(self.distances.mean())

    def on(self, indices: NDArray[np.int64]) -> "Losses":
        """Those on the images `indices` (k,), in the order they have here."""
        return self._where(np.isin(self.indices, indices))

    def without(self, indices: NDArray[np.int64]) -> "Losses":
        """Those on other images than `indices` (k,)."""
        return self._where(~np.isin(self.indices, indices))

    def _where(self, chosen: NDArray[np.bool_]) -> "Losses":
        squares, flips = (None if values is None else values[chosen] for values in (self.squares, self.flips))
        return Losses(self.indices[chosen], self.values[chosen], squares, flips)


@dataclass(frozen=True)
class NoiseSpecification:
    """How a loss behaves, as far as a search needs to know beforehand.

    `floor`: what the loss of the original itself is taken to be, so that L + `floor` is positive.
    `noise_power`: the deviation of the losses grows as this power of the function norm.
    `likeness_power`: two plans' losses on an image are the less alike the more their function norms differ: the
    correlation goes with this power of the smaller over the larger.
    `per_norm`: a first guess of how much L comes with a function norm of 1.
    """

    floor: float = 0.0
    noise_power: float = 1.0
    likeness_power: float = 0.3
    per_norm: float = 1.0
