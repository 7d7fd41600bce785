"""Records of exported files: checks against torch, differences of two files, quantization."""

from typing import Literal

from pydantic import Field

from compressor.schema import Pair, Record

Precision = Literal["fp32", "fp16", "int8"]
FileFormat = Literal["onnx", "ort"]
Agreement = Literal["top-1 class", "sign", "integers", "class of a pixel", "nothing"]
CalibrationName = Literal["min-max", "percentile", "entropy"]

MAX_ERROR = 1e30  # records hold no infinity


class ExportCheckRecord(Record):
    """ONNX Runtime against torch on the same images.

    `max_abs_error` is the outputs' largest absolute difference, `max_rel_error` the same over the largest output
    magnitude (at most `tolerance`), that of the output for which it is worst where there are several, `outputs`.
    `top1_agreement` is the share of images with the same top-1 class, or of what `agreement_of` says; null where
    nothing is decided. `image_sizes` are the heights and widths that ran, where the file takes any. `rounding` is what
    torch's own outputs are off those in double precision, over the largest, where that raised the tolerance.
    """

    max_abs_error: float = Field(ge=0)
    max_rel_error: float = Field(ge=0)
    top1_agreement: float | None = Field(ge=0, le=1)
    agreement_of: Agreement = "top-1 class"
    images: int
    batch_sizes: list[int]
    tolerance: float
    rounding: float | None = None
    outputs: list[str] = Field(default_factory=list)
    image_sizes: list[tuple[int, int]] = Field(default_factory=list)


class DivergenceRecord(Record):
    """A tensor in which two files differ: its name, the layer (or operator type) that computes it, and the largest
    absolute difference over the first file's largest magnitude."""

    tensor: str
    layer: str
    relative_error: float = Field(ge=0)


class DifferenceRecord(Record):
    """Two files on the same images, as `bocompress verify` compares them.

    Figures are as in `ExportCheckRecord`, with the first file in torch's place; errors are 1e30 on `not_finite`
    images, where the second gives NaN or infinity. `agreement_of` is what `top1_agreement` counts: the class of the
    largest output, the sign of a single one, the class of every pixel of a map, or integers where the files give those;
    it is null where nothing is decided. `function_norm` is the mean squared distance of the outputs, of maps at a
    position, `worst_image` the number of the image with the largest difference and `worst_file` its name, null where it
    is no file. `output` names the outputs compared, of `outputs` that the first file has: those that both files name,
    else the first of each; `top1` are both files' top-1 accuracies, null without labels of as many classes. On the
    worst image `tensors_compared` inner tensors were compared, up to the first whose relative error exceeds
    `tolerance`: `divergence`, null where there is none.
    """

    max_abs_error: float = Field(ge=0)
    max_rel_error: float = Field(ge=0)
    function_norm: float = Field(ge=0)
    top1_agreement: float | None = Field(ge=0, le=1)
    agreement_of: Agreement = "top-1 class"
    not_finite: int = 0
    images: int
    worst_image: int
    worst_file: str | None = None
    output: str = ""
    outputs: int = 1
    top1: Pair[float] | None = None
    tolerance: float
    same: bool
    divergence: DivergenceRecord | None
    tensors_compared: int


class FloatLayer(Record):
    """A layer that an int8 file keeps in float32, and the function norm it adds when it alone is in int8."""

    name: str
    added_norm: float = Field(ge=0)


class QuantizationRecord(Record):
    """How an int8 file was made.

    Function norms are against the float32 file, on `check_images` of the search's images: `added_norm_all` with every
    layer in int8, `added_norm` with `float_layers` (costliest for their size first, of `layers` in all) left in float32
    because `allowed_norm` was exceeded. `trials` counts the int8 networks that were run for it. `adjusted` is whether
    channels were scaled to like ranges and biases corrected for rounded weights.
    """

    calibration: CalibrationName
    calibration_images: int
    check_images: int
    added_norm: float = Field(ge=0)
    added_norm_all: float = Field(ge=0)
    allowed_norm: float = Field(ge=0)
    layers: int
    float_layers: list[FloatLayer]
    trials: int
    adjusted: bool = False
