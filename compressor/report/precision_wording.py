"""The compressed network's precisions side by side: the rows of the report's table, and what they mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compressor.cost.records import LatencyRecord
from compressor.report import formatting
from compressor.report.formatting import GAP, format_number, format_plural
from compressor.report.records import PrecisionRecord, Report
from compressor.schema import Number, Pair
from compressor.text import join_words
from exporters.records import QuantizationRecord

NAMES = {"fp32": "float32", "fp16": "fp16", "int8": "int8"}
ABSENT = "—"


@dataclass(frozen=True)
class Cell:
    """One figure, and what stands small under it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class PrecisionRow:
    """One line: a cell for the original, for float32 and for every other precision."""

    name: str
    cells: list[Cell]
    part: bool = False  # belongs to the row above


def list_precision_rows(report: Report) -> list[PrecisionRow]:
    """The table's rows; none where float32 alone was written."""
    others = report.precisions
    if not others:
        return []
    every = [report.fidelity, *(record.fidelity for record in others)]
    size, share = formatting.format_bytes, formatting.format_percent
    rows = [
        _row("ONNX file", [*_both(report.onnx_bytes), *(r.onnx_bytes for r in others)], size),
        _row("gzipped", [*_both(report.gzip_bytes), *(r.gzip_bytes for r in others)], size, part=True),
    ]
    for provider, float32 in report.latency.items():
        rows += _latency_rows(formatting.format_provider(provider), provider, float32, others)
    rows += [
        _row("Function norm L", [0, *(each.function_norm for each in every)], format_number),
        _row("from float32’s", [None, 0, *(r.norm_to_float32 for r in others)], format_number, part=True),
        _row("Same top-1 decisions", [None, *(each.top1_agreement for each in every)], share),
        _row("as float32", [None, None, *(r.agreement_to_float32 for r in others)], share, part=True),
    ]
    if report.top1 is not None:
        rows.append(_row("Top-1 accuracy", [*_both(report.top1), *(record.top1 for record in others)], share))
    return rows


def describe_quantization(record: QuantizationRecord) -> str:
    """How the int8 file came about, and what stays in float."""
    sources = {"min-max": "extremes", "percentile": "percentiles", "entropy": "least relative entropy"}
    left = len(record.float_layers)
    text = (
        f"int8: {record.layers - left} of {format_plural(record.layers, 'layer')} in int8, weights per channel, ranges "
        f"of activations by {sources[record.calibration]} on {format_plural(record.calibration_images, 'image')}, the "
        f"best of three ways on {record.check_images} others. There all layers in int8 add a function norm of "
        f"{format_number(record.added_norm_all)} to the float32 file’s; {format_number(record.allowed_norm)} was meant "
        f"for it"
    )
    if not left and record.added_norm <= record.allowed_norm:
        return f"{text}, and no layer had to stay in float."
    if not left:
        return f"{text}, and leaving single layers in float hardly helped."
    kept = join_words([f"{layer.name} (alone {format_number(layer.added_norm)})" for layer in record.float_layers])
    return f"{text}. With {format_number(record.added_norm)} left, these stay in float: {kept}."


def describe_columns(report: Report) -> str:
    """What the columns are."""
    files = join_words([f"{record.file}" for record in report.precisions])
    return (
        f"original.onnx, model.onnx (float32), {files}: each run in ONNX Runtime on "
        f"{format_plural(report.fidelity.images, 'image')} that had no part in making them. Times are shares of "
        f"another file’s, measured in turn with it, with 95{GAP}% intervals."
    )


def _both(pair: Pair[Number]) -> tuple[Number, Number]:
    return pair.original, pair.compressed


def _row(name: str, values: Sequence[float | None], show: Callable[[float], str], part: bool = False) -> PrecisionRow:
    return PrecisionRow(name, [Cell(ABSENT if value is None else show(value)) for value in values], part)


def _latency_rows(
    place: str, provider: str, float32: LatencyRecord, others: Sequence[PrecisionRecord]
) -> list[PrecisionRow]:
    beside = [record.latency.get(provider) for record in others]
    within = [record.latency_to_float32.get(provider) for record in others]
    one = Cell(f"1{formatting.TIMES}")
    return [
        PrecisionRow(f"Time on {place}, of the original’s", [one, *map(_ratio, (float32, *beside))]),
        PrecisionRow("of float32’s", [Cell(ABSENT), one, *map(_ratio, within)], part=True),
    ]


def _ratio(record: LatencyRecord | None) -> Cell:
    if record is None:
        return Cell(ABSENT)
    return Cell(formatting.format_ratio(record.ratio), formatting.format_interval(record.ratio_low, record.ratio_high))
