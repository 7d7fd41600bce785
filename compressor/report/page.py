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
from compressor.files import write_text
from compressor.report import figures, formatting, search_figures, svg, wording
from compressor.report import finetuning_wording as tuning
from compressor.report import precision_wording as precisions
from compressor.report.records import Report
from compressor.report.templating import load_template
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
    "provider": formatting.format_provider,
    "words": join_words,
}


@dataclass(frozen=True)
class Row:
    """One row of the table of key figures, formatted."""

    name: str
    original: str
    compressed: str
    ratio: str
    note: str = ""  # small, under the ratio
    part: bool = False  # belongs to the row above


def read_report(path: Path) -> Report:
    """Read `report.json`.

    Raises:
        InputError: the file is missing, is not JSON, or a field is missing or wrong (the sentence names it).
    """
    try:
        return Report.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
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
        search_pictures=_draw_search(report),
        reconstruction_figure=_draw_reconstruction(report),
        latency_pictures=_draw_latency(report),
        words=wording,
        light=svg.LIGHT,
        dark=svg.DARK,
    )


@cache
def _load_template() -> Template:
    return load_template(TEMPLATES, "report.html.jinja", _FILTERS)


def _describe_first(error: ValidationError) -> str:
    """The first error and its field: 'field fidelity.images: Field required'."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return f"it does not hold JSON ({first['msg'].removeprefix('Invalid JSON: ')})"
    field = ".".join(str(part) for part in first["loc"]) or "at the top"
    return f"field {field}: {first['msg']}"


def _draw_layers(report: Report) -> list[Markup]:
    """The pictures as Markup, which is not escaped again: matplotlib and `svg` escape what they are given."""
    if not figures.list_compressible(report.layers):
        return []
    draws = (figures.draw_ranks, figures.draw_params, figures.draw_macs)
    return [Markup(draw(report.layers)) for draw in draws]


def _draw_search(report: Report) -> list[Markup]:
    drawn = [search_figures.draw_objectives(report), search_figures.draw_tradeoff(report)]
    return [Markup(picture) for picture in drawn if picture]


def _draw_reconstruction(report: Report) -> Markup:
    return Markup(figures.draw_reconstruction(report.reconstruction) if report.reconstruction else "")


def _draw_latency(report: Report) -> dict[str, Markup]:
    drawn = {name: figures.draw_latency(name, record) for name, record in report.latency.items()}
    return {name: Markup(picture) for name, picture in drawn.items() if picture}


def _list_rows(report: Report) -> list[Row]:
    """The rows of the table of key figures, with latency and accuracy where they were measured."""
    count, size = formatting.format_count, formatting.format_bytes
    rows = [
        _compare("Parameters", report.params, count),
        _compare("in compressible layers", report.params_compressible, count, part=True),
        _compare("not zero", report.nonzero_params, count, part=True),
        _compare("MACs per image", report.macs, count),
        _compare("ONNX file", report.onnx_bytes, size),
        _compare("gzipped", report.gzip_bytes, size, part=True),
    ]
    for provider, record in report.latency.items():
        rows += _list_latency_rows(formatting.format_provider(provider), record)
    if report.top1 is not None:
        rows.append(_compare_top1(report.top1))
    if report.risk is not None:
        rows.append(_compare_risk(report.risk))
    return rows


def _compare(name: str, pair: Pair[int], show: Callable[[float], str], part: bool = False) -> Row:
    ratio = formatting.format_ratio(pair.compressed / pair.original) if pair.original else "—"
    return Row(name, show(pair.original), show(pair.compressed), ratio, part=part)


def _list_latency_rows(provider: str, record: LatencyRecord) -> list[Row]:
    show = formatting.format_ms
    interval = formatting.format_interval(record.ratio_low, record.ratio_high)
    pairs = {
        "90th percentile": (record.original_p90_ms, record.compressed_p90_ms),
        "99th percentile": (record.original_p99_ms, record.compressed_p99_ms),
    }
    ratio = formatting.format_ratio(record.ratio)
    median = Row(
        f"Latency on {provider}, median", show(record.original_ms), show(record.compressed_ms), ratio, interval
    )
    return [median] + [
        Row(name, show(old), show(new), formatting.format_ratio(new / old) if old else "—", part=True)
        for name, (old, new) in pairs.items()
    ]


def _compare_top1(top1: Pair[float]) -> Row:
    """Accuracy as a difference in points: a ratio of two percentages says little."""
    show = formatting.format_percent
    points = f"{100 * (top1.compressed - top1.original):+.1f} points".replace("-", "−")
    return Row("Top-1 accuracy", show(top1.original), show(top1.compressed), points)


def _compare_risk(risk: Pair[float]) -> Row:
    """Cross-entropy as a difference: the original's may be near zero."""
    show = formatting.format_number
    change = risk.compressed - risk.original
    sign = "−" if change < 0 else "+"
    return Row("Cross-entropy", show(risk.original), show(risk.compressed), f"{sign}{show(abs(change))}", part=True)
