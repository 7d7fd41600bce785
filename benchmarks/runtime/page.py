"""The files of a benchmark: `benchmark.json`, `benchmark.md` and one self-contained page."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Template
from markupsafe import Markup

from benchmarks.records import BenchmarkRecord, SettingRecord
from benchmarks.runtime import figures
from benchmarks.runtime.compare import describe_setting, is_alike
from benchmarks.runtime.tables import (
    TextTable,
    describe_noise,
    format_ratio_interval,
    list_notes,
    tabulate_files,
    tabulate_nodes,
    tabulate_operators,
    tabulate_timings,
)
from compressor.files import prepare_folder, write_text
from compressor.report import formatting, svg
from compressor.report.templating import load_template

TEMPLATES = Path(__file__).parent / "templates"
MARKDOWN = re.compile(r"[\\|`*\[\]]")
OUTPUTS = ("benchmark.json", "benchmark.md", "benchmark.html")


@dataclass(frozen=True)
class Section:
    """One setting, formatted for the page."""

    name: str
    setting: SettingRecord
    timings: TextTable
    noise: str
    operators: TextTable | None
    nodes: list[TextTable]


@dataclass(frozen=True)
class Figures:
    """The figures of one setting; empty where there is nothing to draw."""

    distributions: Markup
    ratios: Markup
    operators: Markup


def write_benchmark(record: BenchmarkRecord, folder: Path) -> None:
    """Write the three files into the folder, which is created where it is missing.

    Raises:
        InputError: the folder or a file cannot be written.
    """
    prepare_folder(folder)
    contents = (record.model_dump_json(indent=2) + "\n", render_markdown(record), render_page(record))
    for name, content in zip(OUTPUTS, contents, strict=True):
        write_text(folder / name, content)


def render_page(record: BenchmarkRecord) -> str:
    """The page as self-contained HTML, the same bytes for the same record."""
    return _load_template("benchmark.html.jinja", escape=True).render(
        record=record,
        heading=describe_result(record),
        files=tabulate_files(record),
        sections=list(zip(_list_sections(record), map(_draw, record.settings), strict=True)),
        notes=list_notes(record),
        light=svg.LIGHT,
        dark=svg.DARK,
    )


def render_markdown(record: BenchmarkRecord) -> str:
    """The same tables as Markdown."""
    return _load_template("benchmark.md.jinja", escape=True).render(
        record=record,
        heading=describe_result(record),
        files=tabulate_files(record),
        sections=_list_sections(record),
        notes=list_notes(record),
    )


def describe_result(record: BenchmarkRecord) -> str:
    """One sentence on the first setting: the fastest file compared with the reference, or the only file."""
    setting = record.settings[0]
    where = describe_setting(setting.provider, setting.threads, setting.batch_size, setting.runtime)
    reference, *others = setting.timings
    if not others:
        return f"{reference.file} takes {formatting.format_ms(reference.median_ms)} on {where}"
    best = min(others, key=lambda timing: timing.ratio.value if timing.ratio else 1.0)
    assert best.ratio is not None
    if is_alike(best.ratio, setting.noise):
        return (
            f"{best.file} cannot be distinguished from {reference.file} on {where}: {format_ratio_interval(best.ratio)}"
        )
    return f"{best.file} takes {format_ratio_interval(best.ratio)} of the time of {reference.file} on {where}"


def _list_sections(record: BenchmarkRecord) -> list[Section]:
    return [
        Section(
            name=describe_setting(setting.provider, setting.threads, setting.batch_size, setting.runtime),
            setting=setting,
            timings=tabulate_timings(setting),
            noise=describe_noise(setting),
            operators=tabulate_operators(setting) if setting.profiles else None,
            nodes=[tabulate_nodes(profile) for profile in setting.profiles],
        )
        for setting in record.settings
    ]


def _draw(setting: SettingRecord) -> Figures:
    """The figures as Markup, which is not escaped again: matplotlib and `svg` escape what they are given."""
    return Figures(
        distributions=Markup(figures.draw_distributions(setting)),
        ratios=Markup(figures.draw_ratios(setting)),
        operators=Markup(figures.draw_operators(setting)),
    )


@cache
def _load_template(name: str, escape: bool) -> Template:
    filters = {"duration": formatting.format_duration, "plural": formatting.format_plural, "cell": _escape_cell}
    return load_template(TEMPLATES, name, filters, escape, keep_trailing_newline=True)


def _escape_cell(text: str) -> str:
    """Text for a cell of a Markdown table, with bars and what Markdown acts upon escaped; the template escapes HTML."""
    return MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))
