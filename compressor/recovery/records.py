"""TODO docstring."""

from typing import Literal

from compressor.fidelity.records import Metrics
from compressor.schema import Record

StepKind = Literal["last factor", "both factors", "batch-norm statistics"]
TuneTarget = Literal["teacher", "labels"]
Schedule = Literal["cosine", "step", "cyclic"]


class ReconstructionStep(Record):
    """One step of the recalibration: function norm on the check images before and after; `layer` is empty where the
    step speaks of the whole network."""

    layer: str
    kind: StepKind
    before: float
    after: float
    kept: bool


class ReconstructionRecord(Record):
    """What refitting the layers of the compressed network brought, on images outside calibration."""

    calibration_images: int
    check_images: int
    before: float
    after: float
    seconds: float
    steps: list[ReconstructionStep]


class TuneEpoch(Record):
    """One epoch of a fine-tuning; epoch 0 is the network before it. Losses are those trained on (null where they were
    not finite), `check_loss` and `function_norm` on the check images; `learning_rate` is that of the last step."""

    epoch: int
    learning_rate: float
    train_loss: float | None
    check_loss: float | None
    function_norm: float
    seconds: float


class TuneRecord(Record):
    """A fine-tuning: what it learnt from (`by`), how, and what every epoch brought. The weights of `kept_epoch` were
    kept, those with the lowest loss on the check images, which are outside training and judging.

    `before` and `after` are on the images outside the search; `excluded` counts images that were left out of the
    training because they judge."""

    by: TuneTarget
    schedule: Schedule
    learning_rate: float
    batch_size: int
    autocast: bool
    epochs: int
    train_images: int
    check_images: int
    excluded: int = 0
    kept_epoch: int
    stopped_because: str
    seconds: float
    rows: list[TuneEpoch]
    before: Metrics | None = None
    after: Metrics | None = None
