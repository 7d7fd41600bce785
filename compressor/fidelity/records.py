"""TODO docstring."""

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
    """Function norm L = E||f~(x) - f*(x)||^2 (Eq. 5) on images outside the search.

    `stderr` is the standard error of `function_norm`; `output_energy` is E||f*(x)||^2 and `relative` their
    ratio L / E||f*(x)||^2. `top1_agreement` is the share of images on which both networks decide for the same class.
    """

    function_norm: float = Field(ge=0)
    stderr: float = Field(ge=0)
    relative: float = Field(ge=0)
    output_energy: float = Field(ge=0)
    images: int = Field(ge=2)
    top1_agreement: float = Field(ge=0, le=1)


class Metrics(Record):
    """A network on the images outside the search; accuracies are null without labels, top-5 without five classes."""

    function_norm: float
    top1: float | None = None
    top5: float | None = None
