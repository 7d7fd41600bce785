"""A target in place of gamma: the lowest loss at a size, or the smallest size at a loss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from compressor.fidelity.losses import MIN_LOSS, Losses

Measure = Literal["ratio", "loss"]

MAX_NEARBY_FACTOR = 2.0  # between two limits of L that are near one another


@dataclass(frozen=True)
class SearchTarget:
    """A limit of R ("ratio"), with L minimized, or of L ("loss"), with R minimized.

    R is known, so that its limit is a constraint of the search. L is known with noise: of the smallest plans that seem
    to keep a limit, most were underestimated, and confirming each could cost more than the whole search. So a limit of
    L becomes one of R: that at which the least posterior mean of L comes to it.

    Attributes:
        measure: what is limited.
        upper: the limit.
        is_near: whether a target near this one was searched for before.
    """

    measure: Measure
    upper: float
    is_near: bool = False

    def after(self, other: "SearchTarget | None") -> "SearchTarget":
        """This target, once the search for the other is done."""
        if other is None or not self.measure == other.measure == "loss":
            return self
        return replace(self, is_near=are_near(self.upper, other.upper))

    def learn(self, all_losses: Sequence[Losses]) -> "SearchTarget":
        """This target with what the losses of the initial design tell about it: here nothing."""
        return self

    def worth(self, loss: float) -> float:
        """What an initial plan of this observed L is worth: less L within a limit of R, else an L near the limit."""
        return -loss if self.measure == "ratio" else -abs(float(np.log(max(loss, MIN_LOSS) / self.upper)))


def are_near(loss: float, other: float) -> bool:
    """Whether two limits of L are so near one another that the same evaluations serve both."""
    return bool(abs(np.log(max(loss, MIN_LOSS) / max(other, MIN_LOSS))) <= np.log(MAX_NEARBY_FACTOR))
