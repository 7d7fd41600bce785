"""A drop in accuracy as the search's target: the limit of L that costs so much, learnt from prediction flips.

Predictions flip where outputs move by more than their margin. Their number grows with how far outputs move, the root of
the function norm. Some flips cancel, and drops grow a little faster than flips do: the power 0.55 was measured
(docs/method). How many predictions flip, and what share of them is lost, differs from network to network. A few dozen
evaluations on labelled images determine both well enough for the first network that is built.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from compressor.fidelity.accuracy_drop import DROP_EXPONENT
from compressor.fidelity.losses import Losses
from compressor.search.target.target import SearchTarget

# Prior guesses (ResNet-18 on CIFAR-10) and their weights in flips: of flips either way per root of the function norm
# over the output energy, and of the share of them that is a net loss. Initial plans flip much the same predictions: a
# dozen of them are worth three or four independent ones.
FLIP_RATE, FLIP_RATE_WEIGHT = 0.3, 40.0
LOST_SHARE, LOST_SHARE_WEIGHT = 0.35, 120.0
MIN_LOST_SHARE = 0.05
MAX_FACTOR = 30.0  # evaluations whose L is farther from the limit than this factor do not count


@dataclass(frozen=True)
class DropTarget(SearchTarget):
    """The limit of L at which the drop is expected to be small enough.

    Args:
        asked: points of top-1 that may be lost.
        energy: of the original's outputs, in the unit of L.
        num_images: number of images on which the drop will be measured.
        deviations: standard deviations by which the measured mean must stay below `asked`.
        gain: factor by which L falls between the search and the network that is measured.
    """

    asked: float = 1.0
    energy: float = 1.0
    num_images: int = 1
    deviations: float = 0.0
    gain: float = 1.0

    def learn(self, all_losses: Sequence[Losses]) -> "DropTarget":
        """This target with the limit that follows from the flips of evaluations; without any, the prior guess stays."""
        flips = lost = exposure = 0.0
        for losses in all_losses:
            if losses.flips is not None and 1 / MAX_FACTOR <= losses.function_norm / self.upper <= MAX_FACTOR:
                flips += float(np.abs(losses.flips).sum())
                lost += float(losses.flips.sum())
                exposure += len(losses.flips) * (losses.function_norm / self.energy) ** DROP_EXPONENT
        rate = (FLIP_RATE_WEIGHT + flips) / (FLIP_RATE_WEIGHT / FLIP_RATE + exposure)
        share = (LOST_SHARE * LOST_SHARE_WEIGHT + lost) / (LOST_SHARE_WEIGHT + flips)
        return replace(self, upper=self._limit(rate, max(MIN_LOST_SHARE, share)))

    def _limit(self, rate: float, share: float) -> float:
        """L where the drop and the deviations of its measurement add up to `asked`: quadratic in L^(exponent / 2)."""
        slope, root = 100.0 * rate * share, 100.0 * self.deviations * (rate / self.num_images) ** 0.5
        solution = (((root**2 + 4.0 * slope * self.asked) ** 0.5 - root) / (2.0 * slope)) ** 2
        return float(self.energy * solution ** (1.0 / DROP_EXPONENT) / self.gain)


def drop_target(asked: float, energy: float, num_images: int, deviations: float, gain: float) -> DropTarget:
    """The target by the prior guesses alone; arguments as for `DropTarget`."""
    first = DropTarget(
        "loss", energy, asked=asked, energy=energy, num_images=num_images, deviations=deviations, gain=gain
    )
    return first.learn([])
