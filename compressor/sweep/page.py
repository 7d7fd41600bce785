"""`sweep.html`: the fronts of all models and the table, on one self-contained page."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import Template
from markupsafe import Markup

from compressor.files import write_text
from compressor.report import formatting, svg
from compressor.report.page import TEMPLATES as REPORT_TEMPLATES
from compressor.report.templating import load_template
from compressor.sweep import figures
from compressor.sweep.records import SweepRecord, SweepRow

TEMPLATES = Path(__file__).parent / "templates"
MAX_LISTED = 1000  # rows in all; sweep.csv has the others
MAX_SHOWN = 40  # rows; beyond them the table shows the fronts, and all others when it is opened
_FILTERS = {"duration": formatting.format_duration, "plural": formatting.format_plural}


@dataclass(frozen=True)
class Line:
    """A file in the table, formatted."""

    job: str
    link: str
    precision: str
    size: str
    size_share: str
    time: str
    time_share: str
    quality: str
    change: str
    fronts: str
    note: str


def write_page(record: SweepRecord, path: Path) -> None:
    """Write the page to `path`, whole or not at all."""
    write_text(path, render_page(record))


def render_page(record: SweepRecord) -> str:
    """The page as self-contained HTML, the same bytes for the same record."""
    files = sorted((row for row in record.rows if row.file), key=lambda row: (row.model, row.file_bytes or 0))
    best = [row for row in files if row.on_size_front or row.on_time_front]
    few = len(files) <= MAX_SHOWN
    return _load_template().render(
        record=record,
        heading=describe_sweep(record),
        pictures=_draw(record),
        has_fronts=record.labelled or len({row.model for row in files}) <= figures.MAX_LEGEND,
        lines=[line_of(row, record.labelled) for row in (files if few else best)],
        all_lines=[] if few else [line_of(row, record.labelled) for row in files[:MAX_LISTED]],
        count=len(files),
        failed=[row for row in record.rows if row.state == "failed"],
        missed=_first_of_jobs([row for row in record.rows if row.state == "no success"]),
        waiting=sum(row.state == "waiting" for row in record.rows),
        processors=sorted({row.processor for row in files}),
        light=svg.LIGHT,
        dark=svg.DARK,
    )


def describe_sweep(record: SweepRecord) -> str:
    """'6 of 6 jobs are done: 2 models'; one sentence."""
    jobs = {row.job for row in record.rows}
    done = {row.job for row in record.rows if row.state in ("done", "no success")}
    models = formatting.format_plural(len({row.model for row in record.rows}), "model")
    if not jobs:
        return "No jobs"
    verb = "is" if len(jobs) == 1 else "are"
    return f"{len(done)} of {formatting.format_plural(len(jobs), 'job')} {verb} done: {models}"


def _draw(record: SweepRecord) -> list[Markup]:
    """The pictures as Markup, which is not escaped again: matplotlib and `svg` escape what they are given."""
    drawn = [figures.draw_front(record.rows, record.labelled, axis) for axis in (figures.SIZE, figures.TIME)]
    return [Markup(picture) for picture in drawn if picture]


@cache
def _load_template() -> Template:
    return load_template((TEMPLATES, REPORT_TEMPLATES), "sweep.html.jinja", _FILTERS)


def _first_of_jobs(rows: list[SweepRow]) -> list[SweepRow]:
    return list({row.job: row for row in reversed(rows)}.values())[::-1]


def line_of(row: SweepRow, labelled: bool) -> Line:
    """A row, formatted; `labelled` says whether files are compared by top-1."""
    percent, size = formatting.format_percent, formatting.format_bytes
    quality, change = percent(row.relative_norm or 0.0), ""
    if labelled and row.top1 is not None:
        quality = percent(row.top1)
        change = "" if row.original_top1 is None else formatting.format_points(row.top1 - row.original_top1)
    fronts = [name for name, is_on in (("size", row.on_size_front), ("time", row.on_time_front)) if is_on]
    return Line(
        job=row.job,
        link=f"{quote(row.job)}/report.html",
        precision=row.precision,
        size=size(row.file_bytes or 0),
        size_share=_share(row.file_bytes, row.original_bytes),
        time="—" if row.latency_ms is None else formatting.format_ms(row.latency_ms),
        time_share=_share(row.latency_ms, row.original_latency_ms),
        quality=quality,
        change=change,
        fronts=", ".join(fronts),
        note="no success" if row.state == "no success" else "",
    )


def _share(value: float | None, original: float | None) -> str:
    return formatting.format_ratio(value / original) if value is not None and original else "—"
