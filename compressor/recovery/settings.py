"""Settings of fine-tuning; importing them does not import torch."""

from dataclasses import dataclass

from compressor.recovery.records import Schedule, TuneTarget
from compressor.schema import Count, Natural, Positive

PAPER_RATE = 1e-4
# Rates at which the schedules did best on ResNet-18 at 5 % of its weights, see docs/results.md.
DEFAULT_RATES: dict[Schedule, float] = {"cosine": 0.003, "step": PAPER_RATE, "cyclic": PAPER_RATE}


@dataclass(frozen=True)
class TuneSettings:
    """How a network is fine-tuned.

    Attributes:
        epochs: at most; 0 leaves the network as it is.
        by: what it learns from: the original's outputs ("teacher": squared distance over the outputs' energy), which
            needs no labels, or labels (cross-entropy).
        schedule: of the learning rate, see `compressor.recovery.schedules`.
        learning_rate: the highest; None for the schedule's default.
        batch_size: images in one step.
        patience: epochs without a new lowest loss on the check images after which it stops.
        autocast: forward and backward passes in bfloat16 where torch considers that safe; weights, and the loss on the
            check images, stay in float32.
    """

    epochs: Natural = 0
    by: TuneTarget = "teacher"
    schedule: Schedule = "cosine"
    learning_rate: Positive | None = None
    batch_size: Count = 32
    patience: Count = 3
    autocast: bool = False

    @property
    def max_rate(self) -> float:
        """The highest learning rate."""
        return DEFAULT_RATES[self.schedule] if self.learning_rate is None else self.learning_rate
