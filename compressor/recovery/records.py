"""Records of layer-wise reconstruction and of fine-tuning."""

from typing import Literal

from compressor.fidelity.records import Metrics
from compressor.schema import Record

StepKind = Literal["channels left", "last factor", "both factors", "batch-norm statistics"]
TuneTarget = Literal["teacher", "labels"]
Schedule = Literal["cosine", "step", "cyclic"]


class ReconstructionStep(Record):
    """One step of the layer-wise reconstruction: function norm on the check images before and after it, and whether it
    was kept. Layers that were checked together share `before` and `after`; `layer` is empty for a step of the whole
    network."""

    layer: str
    kind: StepKind
    before: float
    after: float
    kept: bool


class ReconstructionRecord(Record):
    """A layer-wise reconstruction: function norm before and after it, on images other than the calibration images."""

    calibration_images: int
    check_images: int
    before: float
    after: float
    seconds: float
    steps: list[ReconstructionStep]


class TuneEpoch(Record):
    """One epoch of a fine-tuning; epoch 0 is the network before it.

    `train_loss` is the mean over the epoch, `check_loss` and `function_norm` are on the check images; losses that are
    not finite are null. `learning_rate` is that of the last step.
    """

    epoch: int
    learning_rate: float
    train_loss: float | None
    check_loss: float | None
    function_norm: float
    seconds: float


class TuneRecord(Record):
    """A fine-tuning: what it learnt from (`by`), its settings, and a row per epoch.

    The weights of `kept_epoch` were kept, which have the lowest loss on the check images. `before` and `after` are on
    the test images; `excluded` counts images left out of the training because they are test images.
    """

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
