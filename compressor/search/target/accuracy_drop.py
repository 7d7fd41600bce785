"""A drop in accuracy as the search's target: the limit of L that costs so much, learnt from the looks' own decisions.

Decisions change where outputs move by more than their margin: by as many images as the outputs move far, the root of
the function norm. Some changes cancel, and drops rise a little faster than changes do: the power 0.55 was measured
(docs/method.md). How many change and what share of them is lost differs from network to network; a few dozen looks at
labelled images say it well enough to know where to build.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from compressor.fidelity.accuracy_drop import DROP_EXPONENT
from compressor.fidelity.losses import Losses
from compressor.search.target.target import SearchTarget

# First guesses (ResNet-18 on CIFAR-10), and what they weigh: of decisions that change for better or worse per root of
# the function norm over the output energy, and of the share of them that is lost on balance. Plans of the start change
# much the same decisions: a dozen of them say no more than three or four that had nothing in common.
CHANGES, WEIGHT_OF_CHANGES = 0.3, 40.0
LOST_SHARE, WEIGHT_OF_LOST = 0.35, 120.0
MIN_LOST_SHARE = 0.05
WIDEST = 30.0  # looks whose L is so many times as large or small say nothing about the limit


@dataclass(frozen=True)
class DropTarget(SearchTarget):
    """The limit of L at which a drop is expected to be found small enough.

    Args:
        asked: points of top-1 that may be lost.
        energy: of the original's outputs, in the unit of L.
        num_images: on which the drop will be measured.
        deviations: of the measured mean, by which it must stay below `asked`.
        gain: by how much L falls between the search and the network that is measured.
    """

    asked: float = 1.0
    energy: float = 1.0
    num_images: int = 1
    deviations: float = 0.0
    gain: float = 1.0

    def learn(self, evaluations: Sequence[Losses]) -> "DropTarget":
        """With the limit that follows from the looks' decisions; looks without any leave the first guess."""
        changes = lost = exposure = 0.0
        for evaluation in evaluations:
            if evaluation.flips is not None and 1 / WIDEST <= evaluation.function_norm / self.most <= WIDEST:
                changes += float(np.abs(evaluation.flips).sum())
                lost += float(evaluation.flips.sum())
                exposure += len(evaluation.flips) * (evaluation.function_norm / self.energy) ** DROP_EXPONENT
        rate = (WEIGHT_OF_CHANGES + changes) / (WEIGHT_OF_CHANGES / CHANGES + exposure)
        share = (LOST_SHARE * WEIGHT_OF_LOST + lost) / (WEIGHT_OF_LOST + changes)
        return replace(self, most=self._limit(rate, max(MIN_LOST_SHARE, share)))

    def _limit(self, rate: float, share: float) -> float:
        """L where drop and deviations of its measurement come to `asked`: a square equation in L^(exponent / 2)."""
        slope, root = 100.0 * rate * share, 100.0 * self.deviations * (rate / self.num_images) ** 0.5
        place = (((root**2 + 4.0 * slope * self.asked) ** 0.5 - root) / (2.0 * slope)) ** 2
        return float(self.energy * place ** (1.0 / DROP_EXPONENT) / self.gain)


def drop_target(asked: float, energy: float, num_images: int, deviations: float, gain: float) -> DropTarget:
    """The target by first guesses alone."""
    first = DropTarget(
        "loss", energy, asked=asked, energy=energy, num_images=num_images, deviations=deviations, gain=gain
    )
    return first.learn([])
