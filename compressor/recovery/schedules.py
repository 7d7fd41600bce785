"""TODO docstring."""

import math
from dataclasses import dataclass

from compressor.recovery.records import Schedule, TuneTarget

LOWEST_CYCLIC_RATE = 1e-7
STEP_FACTOR = 10.0
PAPER_RATE = 1e-4
# Rates at which the schedules did best on ResNet-18 at 5 % of its weights, see docs/method.md.
DEFAULT_RATES: dict[Schedule, float] = {"cosine": 0.003, "step": PAPER_RATE, "cyclic": PAPER_RATE}


@dataclass(frozen=True)
class TuneSettings:
    """How a network is tuned. `epochs` 0 leaves it as it is.

    `by` is what it learns from: the original's outputs ("teacher": squared distance over the outputs' energy), which
    needs no labels, or labels (cross-entropy). `learning_rate` is the highest, None for the schedule's own. It stops
    early when the loss on the check images has not been the lowest for `patience` epochs. `autocast`: forward and
    backward passes in bfloat16 where torch holds that safe; weights and the check stay in float32.
    """

    epochs: int = 0
    by: TuneTarget = "teacher"
    schedule: Schedule = "cosine"
    learning_rate: float | None = None
    batch_size: int = 32
    patience: int = 3
    autocast: bool = False

    @property
    def highest_rate(self) -> float:
        """The learning rate that the schedule begins with or comes back to."""
        return DEFAULT_RATES[self.schedule] if self.learning_rate is None else self.learning_rate


def rate_at(schedule: Schedule, highest: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Learning rate of one step, counted from 0 over all epochs.

    step: divided by 10 each epoch; cyclic: from 1e-7 to the highest and back, once an epoch (Smith 2017); cosine: from
    the highest to zero along half a cosine.
    """
    epoch, within = divmod(step, steps_per_epoch)
    if schedule == "step":
        return highest / STEP_FACTOR**epoch
    if schedule == "cyclic":
        height = 1 - abs(2 * (within + 0.5) / steps_per_epoch - 1)
        return LOWEST_CYCLIC_RATE + (highest - LOWEST_CYCLIC_RATE) * height
    return highest * (1 + math.cos(math.pi * step / (steps_per_epoch * epochs))) / 2
