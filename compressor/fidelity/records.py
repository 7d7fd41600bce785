"""Records of fidelity: function norm, agreement and accuracies."""

from typing import Literal

from pydantic import Field

from compressor.schema import Record

Fidelity = Literal["norm", "risk", "error"]
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
    output has one sign throughout: then it is a quantity, and nothing is decided.
    """

    function_norm: float = Field(ge=0)
    stderr: float = Field(ge=0)
    relative: float = Field(ge=0)
    output_energy: float = Field(ge=0)
    images: int = Field(ge=2)
    top1_agreement: float | None = Field(default=None, ge=0, le=1)
    by_sign: bool = False


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
