"""What layer-wise reconstruction is expected to leave of L: by that the search weighs networks yet to be built.

Only the network after reconstruction is delivered. What that recovers is not measured for every plan: a guess serves
until the first network is built, and what that showed afterwards. Of a network that has lost much nothing is recovered.
"""

from dataclasses import dataclass

import numpy as np

from compressor.arrays import Array
from compressor.fidelity.losses import Losses

MIN_LEAST = 0.1  # that a single network is believed


@dataclass(frozen=True)
class ExpectedGain:
    """L after reconstruction, as a function of L before it.

    Attributes:
        least: what is left of a small L, as a factor; 1 where nothing is reconstructed.
        lost: L of a network of which nothing is recovered, all of it is left.
    """

    least: float = 1.0
    lost: float = np.inf

    def factor(self, losses: Array) -> Array:
        """What is left of L, as a factor, in the shape of `losses`; it grows in proportion to L up to 1."""
        return self.least + (1.0 - self.least) * np.clip(losses / self.lost, 0.0, 1.0)

    def delivered(self, losses: Array) -> Array:
        """L after reconstruction, in the shape of `losses`, those before it."""
        return np.asarray(losses * self.factor(losses))

    def before(self, delivered: float) -> float:
        """L before reconstruction, from that after it."""
        rest = 1.0 - self.least
        if rest == 0.0 or delivered >= self.lost:
            return delivered
        root = np.sqrt(self.least**2 + 4.0 * rest * delivered / self.lost)
        return float(2.0 * delivered / (self.least + root))

    def scaled(self, losses: Losses) -> Losses:
        """The losses of one candidate as they are expected to be after reconstruction."""
        return losses if self.least == 1.0 else losses.scaled(float(self.factor(np.array(losses.mean))))

    def through(self, before: float, after: float) -> "ExpectedGain":
        """The gain that one network showed, whose L was lowered from `before` to `after`."""
        share = before / self.lost
        if not 0.0 < share < 1.0:
            return ExpectedGain(1.0, self.lost)
        return ExpectedGain(float(np.clip((after / before - share) / (1.0 - share), MIN_LEAST, 1.0)), self.lost)
