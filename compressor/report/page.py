"""The report's page: `report.json` in, one self-contained HTML file out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Template
from markupsafe import Markup
from pydantic import ValidationError

from compressor.cost.records import LatencyRecord
from compressor.errors import InputError
from compressor.files import read_bytes, write_text
from compressor.report import figures, formatting, search_figures, svg, wording
from compressor.report import finetuning_wording as tuning
from compressor.report import precision_wording as precisions
from compressor.report.records import Report
from compressor.report.structured import rows as structured
from compressor.report.structured.wording import describe_export_check
from compressor.report.templating import load_template
from compressor.report.verdict import describe_failure
from compressor.schema import Pair
from compressor.text import join_words

TEMPLATES = Path(__file__).parent / "templates"
_FILTERS = {
    "duration": formatting.format_duration,
    "plural": formatting.format_plural,
    "count": formatting.format_count,
    "bytes": formatting.format_bytes,
    "shape": formatting.format_shape,
    "number": formatting.format_number,
    "percent": formatting.format_percent,
    "provider": formatting.format_provider,
    "words": join_words,
}


@dataclass(frozen=True)
class Row:
    """One row of the table of key figures, formatted."""

    name: str
    original: str
    compressed: str
    change: str
    note: str = ""  # small, under the change
    part: bool = False  # belongs to the row above


def read_report(path: Path) -> Report:
    """Read `report.json`.

    Raises:
        InputError: the file is missing, is not JSON, or a field is missing or wrong (the sentence names it).
    """
    try:
        return Report.model_validate_json(read_bytes(path, "report"))
    except ValidationError as error:
        raise InputError(f"{path} is not a report: {_describe_first(error)}") from error


def write_report(report: Report, path: Path) -> None:
    """Write the page to `path`, whole or not at all."""
    write_text(path, render_report(report))


def render_report(report: Report) -> str:
    """The page as self-contained HTML, the same bytes for the same report."""
    return _load_template().render(
        report=report,
        rows=_list_rows(report),
        precision_rows=precisions.list_precision_rows(report),
        precisions=precisions,
        tuning=tuning,
        compressible=figures.list_compressible(report.layers),
        skipped=[layer for layer in report.layers if layer.skipped is not None],
        layer_pictures=_draw_layers(report),
        objective_picture=Markup(search_figures.draw_objectives(report)),
        tradeoff_picture=Markup(search_figures.draw_tradeoff(report)),
        failure=describe_failure(report.verdict) if report.verdict and not report.verdict.success else "",
        reconstruction_figure=_draw_reconstruction(report),
        latency_pictures=_draw_latency(report),
        words=wording,
        describe_export_check=describe_export_check,
        light=svg.LIGHT,
        dark=svg.DARK,
    )


@cache
def _load_template() -> Template:
    return load_template(TEMPLATES, "report.html.jinja", _FILTERS)


def _describe_first(error: ValidationError) -> str:
    """The first error and its field, and what may be the reason."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return f"it does not hold JSON ({first['msg'].removeprefix('Invalid JSON: ')})"
    field = ".".join(str(part) for part in first["loc"]) or "at the top"
    return f"field {field}: {first['msg']} (is it of another version of bocompress?)"


def _draw_layers(report: Report) -> list[Markup]:
    """The pictures as Markup, which is not escaped again: matplotlib and `svg` escape what they are given."""
    if not figures.list_compressible(report.layers):
        return []
    pictures = figures.draw_ranks(report.layers), figures.draw_params(report.layers)
    return [Markup(picture) for picture in (*pictures, figures.draw_macs(report.layers, report.images.noun))]


def _draw_reconstruction(report: Report) -> Markup:
    return Markup(figures.draw_reconstruction(report.reconstruction) if report.reconstruction else "")


def _draw_latency(report: Report) -> dict[str, Markup]:
    drawn = {name: figures.draw_latency(name, record) for name, record in report.latency.items()}
    return {name: Markup(picture) for name, picture in drawn.items() if picture}


def _list_rows(report: Report) -> list[Row]:
    """The rows of the table of key figures, with latency and accuracy where they were measured."""
    count, size = formatting.format_count, formatting.format_bytes
    rows = [_compare("ONNX file", report.onnx_bytes, size), _compare("gzipped", report.gzip_bytes, size, part=True)]
    for provider, record in report.latency.items():
        rows += _list_latency_rows(formatting.format_provider(provider), record)
    rows += _list_decision_rows(report)
    return [
        *rows,
        _compare(f"MACs per {report.images.noun}", report.macs, count, "fewer", "more"),
        _compare("Parameters", report.params, count, "fewer", "more"),
        _compare("in compressible layers", report.params_compressible, count, "fewer", "more", part=True),
        _compare("not zero", report.nonzero_params, count, "fewer", "more", part=True),
    ]


def _compare(
    name: str,
    pair: Pair[int],
    show: Callable[[float], str],
    less: str = "smaller",
    more: str = "larger",
    part: bool = False,
) -> Row:
    change = formatting.format_factor(pair.compressed / pair.original, less, more) if pair.original else "—"
    return Row(name, show(pair.original), show(pair.compressed), change, part=part)


def _list_latency_rows(provider: str, record: LatencyRecord) -> list[Row]:
    show = formatting.format_ms
    pairs = {
        "90th percentile": (record.original_p90_ms, record.compressed_p90_ms),
        "99th percentile": (record.original_p99_ms, record.compressed_p99_ms),
    }
    name = f"Latency on {provider}, median"
    is_clear = not record.ratio_low <= 1 <= record.ratio_high
    change = _faster(record.ratio) if is_clear else "no clear difference"
    median = Row(name, show(record.original_ms), show(record.compressed_ms), change, _speedup(record))
    return [median] + [
        Row(name, show(old), show(new), _faster(new / old) if old else "—", part=True)
        for name, (old, new) in pairs.items()
    ]


def _faster(ratio: float) -> str:
    return formatting.format_factor(ratio, "faster", "slower")


def _speedup(record: LatencyRecord) -> str:
    """The interval in the form of the ratio above it."""
    if record.ratio_low <= 0:
        return ""
    if record.ratio < 1:
        return formatting.format_interval(1 / record.ratio_high, 1 / record.ratio_low)
    return formatting.format_interval(record.ratio_low, record.ratio_high)


def _list_decision_rows(report: Report) -> list[Row]:
    """Accuracy as a difference in points, since a ratio of two percentages says little, and unchanged decisions."""
    show, points, change = formatting.format_percent, formatting.format_points, report.top1_change
    rows = []
    if report.top1 is not None:
        moved = points(report.top1.compressed - report.top1.original)
        note = f"{points(change.low)} to {points(change.high)}" if change else ""
        rows.append(
            Row("Top-1 accuracy", show(report.top1.original), show(report.top1.compressed), f"{moved} points", note)
        )
    if report.fidelity.top1_agreement is not None:
        name = "Same sign" if report.fidelity.by_sign else "Same decision"
        rows.append(Row(name, "", show(report.fidelity.top1_agreement), "", part=report.top1 is not None))
    if report.risk is not None:
        rows.append(_compare_risk(report.risk))
    extra = [
        *structured.segmentation_rows(report.segmentation),
        *structured.detection_rows(report.detection),
        *structured.flow_rows(report.flow),
        *structured.output_rows(report.fidelity.outputs),
    ]
    return rows + [Row(name[0].upper() + name[1:], old, new, change) for name, old, new, change in extra]


def _compare_risk(risk: Pair[float]) -> Row:
    """Cross-entropy as a difference: the original's may be near zero."""
    show = formatting.format_number
    change = risk.compressed - risk.original
    sign = "−" if change < 0 else "+"
    return Row("Cross-entropy", show(risk.original), show(risk.compressed), f"{sign}{show(abs(change))}", part=True)
