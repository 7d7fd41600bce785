"""Records of fidelity: function norm, agreement and accuracies."""

from typing import Literal

from pydantic import Field

from compressor.schema import Pair, Record

Fidelity = Literal["norm", "risk", "error"]
DropUnit = Literal["top-1", "mean IoU", "mean AP"]
"""What points of a drop are of."""
FIDELITY_WORDS: dict[Fidelity, str] = {
    "norm": "the function norm",
    "risk": "the cross-entropy above the original’s",
    "error": "the share of wrong decisions above the original’s",
}


class FidelityRecord(Record):
    """Function norm L = E||f~(x) - f*(x)||^2 (Eq. 5) on the test images.

    `stderr` is the standard error of `function_norm`, `output_energy` is E||f*(x)||^2 and `relative` the ratio of the
    two, L / E||f*(x)||^2. `top1_agreement` is the share of images on which both networks decide for the same
    class: that of the largest output or, `by_sign`, the sign of a single one. It is null where the original's single
    output has one sign throughout: then it is a quantity, and nothing is decided; and where outputs are no scores of
    classes. `outputs` are all of a network that does not return one matrix of scores: L is then the sum of their
    function norms, by weight and, where several count, over their energies on the search's images.
    """

    function_norm: float = Field(ge=0)
    stderr: float = Field(ge=0)
    relative: float = Field(ge=0)
    output_energy: float = Field(ge=0)
    images: int = Field(ge=2)
    top1_agreement: float | None = Field(default=None, ge=0, le=1)
    by_sign: bool = False
    outputs: list["OutputRecord"] = Field(default_factory=list)


class OutputRecord(Record):
    """One output of a network that has others, or that is no matrix of scores.

    `shape` is that of one image. `function_norm` is the squared distance on the test images, at a position on average,
    `energy` the squared length of the original's, likewise, and `relative` their ratio, null where the original's is
    zero. `weight` is by how much it counts in L; 0 where it does not.
    """

    name: str
    shape: list[int]
    weight: float = Field(ge=0)
    function_norm: float = Field(ge=0)
    energy: float = Field(ge=0)
    relative: float | None = Field(default=None, ge=0)


class ChangeRecord(Record):
    """A change of a figure on the same images, with its 95 % interval from `low` to `high`."""

    change: float
    low: float
    high: float


class ClassRecord(Record):
    """A class of pixels, with the intersection over union of both networks."""

    name: str
    iou: Pair[float]


class SegmentationRecord(Record):
    """Classes of pixels by two networks on the test images, in full.

    `pixel_agreement` is the share of pixels to which both give the same class. Where there are masks, `mean_iou` is the
    mean intersection over union of the `classes` that these show, over all images together, with its `change`, and
    `pixel_accuracy` the share of pixels whose class is right. Void pixels are left out of both.
    """

    output: str
    images: int
    pixel_agreement: float = Field(ge=0, le=1)
    mean_iou: Pair[float] | None = None
    change: ChangeRecord | None = None
    pixel_accuracy: Pair[float] | None = None
    classes: list[ClassRecord] = Field(default_factory=list)


class FlowRecord(Record):
    """Optical flow of two networks on the test pairs of frames, in pixels.

    `length` is how long the original's flow is, and `moved` how far its ends are from the compressed network's, both on
    average over all pixels; `near` is the share of pixels where that is at most one.
    """

    images: int
    length: float = Field(ge=0)
    moved: float = Field(ge=0)
    near: float = Field(ge=0, le=1)


class DetectorFileRecord(Record):
    """A whole detector's file: how many detections in how many images were compared with torch's, and by how much their
    scores differ at most."""

    file: str
    size_bytes: int
    images: int
    detections: int
    max_score_error: float = Field(ge=0)


class DetectionRecord(Record):
    """Detections of two networks on the test images.

    Of the `confident` ones of the original, with a score of 0.5 and more, `kept` is the share that the compressed
    network has, too: of the same class, at an IoU of 0.5 and more and with a score of 0.25 and more. Where there are
    `boxes`, the averages of precision are COCO's, over IoU thresholds of 0.5 to 0.95, and at 0.5, with the `change` of
    the former. `note` says why they are missing. `whole` is the file that gives detections; null where there is none.
    """

    images: int
    confident: int
    kept: float | None = None
    boxes: int = 0
    average_precision: Pair[float] | None = None
    average_precision_50: Pair[float] | None = None
    change: ChangeRecord | None = None
    note: str = ""
    whole: DetectorFileRecord | None = None


class PairedChange(Record):
    """Top-1 decisions of two networks on the same images.

    `lost` images were right before and are wrong now, `gained` ones the other way round. `change` is (gained - lost) /
    images, and `low` to `high` its 95 % interval for paired shares (Newcombe 1998, method 10).
    """

    images: int
    lost: int
    gained: int
    change: float
    low: float
    high: float


class Metrics(Record):
    """A network on the test images; accuracies are null without labels, `top5` with five classes or fewer."""

    function_norm: float
    top1: float | None = None
    top5: float | None = None
