"""The report's table of precisions side by side, and its sentences about quantization."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compressor.cost.records import LatencyRecord
from compressor.report import formatting
from compressor.report.formatting import GAP, format_number, format_plural
from compressor.report.records import PrecisionRecord, Report
from compressor.text import join_words
from exporters.records import QuantizationRecord

NAMES = {"fp32": "float32", "fp16": "fp16", "int8": "int8"}
ABSENT = "—"


@dataclass(frozen=True)
class Cell:
    """One figure, and a note in small print under it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class PrecisionRow:
    """One row: cells for the original, for float32 and for every other precision."""

    name: str
    cells: list[Cell]
    part: bool = False  # belongs to the row above


def list_precision_rows(report: Report) -> list[PrecisionRow]:
    """The table's rows; none where only float32 was written."""
    others = report.precisions
    if not others:
        return []
    every = [report.fidelity, *(record.fidelity for record in others)]
    size, share = formatting.format_bytes, formatting.format_percent
    same = "Same sign" if report.fidelity.by_sign else "Same top-1 class"
    rows = [
        _row("ONNX file", [*report.onnx_bytes.both, *(r.onnx_bytes for r in others)], size),
        _row("gzipped", [*report.gzip_bytes.both, *(r.gzip_bytes for r in others)], size, part=True),
    ]
    for provider, float32 in report.latency.items():
        rows += _latency_rows(formatting.format_provider(provider), provider, float32, others)
    rows += [
        _row("Function norm L", [0, *(each.function_norm for each in every)], format_number),
        _row("from float32’s", [None, 0, *(r.norm_to_float32 for r in others)], format_number, part=True),
    ]
    if report.fidelity.top1_agreement is not None:
        rows += [
            _row(same, [None, *(each.top1_agreement for each in every)], share),
            _row("as float32", [None, None, *(r.agreement_to_float32 for r in others)], share, part=True),
        ]
    if report.segmentation is not None and report.segmentation.mean_iou is not None:
        ious = [*report.segmentation.mean_iou.both, *(record.mean_iou for record in others)]
        rows.append(_row("Mean IoU", ious, share))
    if report.detection is not None and report.detection.average_precision is not None:
        found = [*report.detection.average_precision.both, *(record.average_precision for record in others)]
        rows.append(_row("Mean AP", found, share))
    if report.top1 is not None:
        rows.append(_row("Top-1 accuracy", [*report.top1.both, *(record.top1 for record in others)], share))
    return rows


def describe_quantization(record: QuantizationRecord, noun: str = "image") -> str:
    """How the int8 file was quantized, and which layers stay in float32."""
    sources = {"min-max": "extremes", "percentile": "percentiles", "entropy": "least relative entropy"}
    left = len(record.float_layers)
    adjusted = ", channels scaled to like ranges and biases corrected for rounding" if record.adjusted else ""
    text = (
        f"int8: {record.layers - left} of {format_plural(record.layers, 'layer')} are quantized, weights per channel, "
        f"activation ranges by {sources[record.calibration]} on "
        f"{format_plural(record.calibration_images, f'calibration {noun}')}, the best of three methods on "
        f"{record.check_images} check {noun}s{adjusted}. With every layer in int8, the function norm there grows by "
        f"{format_number(record.added_norm_all)} over the float32 file’s; {format_number(record.allowed_norm)} was "
        f"allowed"
    )
    if not left and record.added_norm <= record.allowed_norm:
        return f"{text}, so no layer stays in float32."
    if not left:
        return f"{text}, but keeping single layers in float32 hardly helped."
    kept = join_words([f"{layer.name} (alone {format_number(layer.added_norm)})" for layer in record.float_layers])
    return f"{text}. These layers stay in float32, which brings it down to {format_number(record.added_norm)}: {kept}."


def describe_columns(report: Report) -> str:
    """The files behind the columns, and how they were measured."""
    files = join_words([f"{record.file}" for record in report.precisions])
    return (
        f"original.onnx, model.onnx (float32), {files}: each run in ONNX Runtime on "
        f"{format_plural(report.fidelity.images, f'test {report.images.noun}')}. Times are ratios to another file’s, "
        f"measured in interleaved runs, with 95{GAP}% intervals."
    )


def _row(name: str, values: Sequence[float | None], show: Callable[[float], str], part: bool = False) -> PrecisionRow:
    return PrecisionRow(name, [Cell(ABSENT if value is None else show(value)) for value in values], part)


def _latency_rows(
    name: str, provider: str, float32: LatencyRecord, others: Sequence[PrecisionRecord]
) -> list[PrecisionRow]:
    beside = [record.latency.get(provider) for record in others]
    within = [record.latency_to_float32.get(provider) for record in others]
    one = Cell(f"1{formatting.TIMES}")
    return [
        PrecisionRow(f"Time on {name}, of the original’s", [one, *map(_ratio, (float32, *beside))]),
        PrecisionRow("of float32’s", [Cell(ABSENT), one, *map(_ratio, within)], part=True),
    ]


def _ratio(record: LatencyRecord | None) -> Cell:
    if record is None:
        return Cell(ABSENT)
    return Cell(formatting.format_ratio(record.ratio), formatting.format_interval(record.ratio_low, record.ratio_high))
