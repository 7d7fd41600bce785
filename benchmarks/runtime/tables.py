"""The tables of `bocompress benchmark` as text, the same for the terminal, Markdown and the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.records import BenchmarkRecord, OperatorRecord, ProfileRecord, SettingRecord, TimingRecord
from benchmarks.runtime.compare import describe_setting
from compressor.cost.records import RatioRecord
from compressor.data.transforms import CLIP_AXES
from compressor.report.formatting import (
    GAP,
    TIMES,
    format_bytes,
    format_count,
    format_ms,
    format_percent,
    format_plural,
    format_shape,
)
from compressor.text import join_words
from exporters.runtimes.registry import open_runtime

NONE = "—"
MAX_TYPES = 8


@dataclass(frozen=True)
class TextTable:
    """Formatted cells; columns in `left` are flush left, the others flush right."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    left: tuple[int, ...] = (0,)


def tabulate_files(record: BenchmarkRecord) -> TextTable:
    """Bytes of every file, as stored and as shipped, and their share of the reference's."""
    first = record.files[0]
    rows = [
        (
            file.name,
            format_bytes(file.onnx_bytes),
            _ratio(file.onnx_bytes / first.onnx_bytes),
            format_bytes(file.gzip_bytes),
            _ratio(file.gzip_bytes / first.gzip_bytes),
        )
        for file in record.files
    ]
    return TextTable("Size", ("file", "bytes", "ratio", "gzipped", "ratio"), rows)


def tabulate_timings(setting: SettingRecord) -> TextTable:
    """Times, throughput, load time, memory and paired ratio in one setting: a column per file."""
    rows: dict[str, Callable[[TimingRecord], str]] = {
        "median": lambda timing: format_ms(timing.median_ms),
        "ratio": lambda timing: _ratio(timing.ratio.value) if timing.ratio else f"1{TIMES}",
        "95 % interval": lambda timing: f"{timing.ratio.low:.3f} to {timing.ratio.high:.3f}" if timing.ratio else "",
        "p90": lambda timing: format_ms(timing.p90_ms),
        "p99": lambda timing: format_ms(timing.p99_ms),
        "median wall time": lambda timing: format_ms(timing.wall_ms),
        "images per second": lambda timing: _three_digits(timing.images_per_second),
        "load": lambda timing: format_ms(timing.load_ms),
        "peak memory": lambda timing: (
            NONE if timing.peak_memory_bytes is None else format_bytes(timing.peak_memory_bytes)
        ),
    }
    if not setting.on_core:  # all times are wall times
        del rows["median wall time"]
    return TextTable(
        f"Time on {describe_setting(setting.provider, setting.threads, setting.batch_size, setting.runtime)}",
        (open_runtime(setting.runtime).label, *(timing.file for timing in setting.timings)),
        [(name, *map(show, setting.timings)) for name, show in rows.items()],
    )


def tabulate_operators(setting: SettingRecord) -> TextTable:
    """Milliseconds and share of every file by operator type, the most expensive in any file first."""
    tables = [{entry.op_type: entry for entry in profile.operators} for profile in setting.profiles]
    types = sorted(
        {name for table in tables for name in table},
        key=lambda name: -max(table[name].median_ms for table in tables if name in table),
    )
    rows = [(name, *(_share_cell(table.get(name)) for table in tables)) for name in types[:MAX_TYPES]]
    rows.append(("all nodes", *(format_ms(sum(entry.median_ms for entry in table.values())) for table in tables)))
    rows.append(("whole run", *(format_ms(profile.run_ms) for profile in setting.profiles)))
    title = f"Time by operator on {describe_setting(setting.provider, setting.threads, setting.batch_size)}"
    return TextTable(f"{title} (share, nodes)", ("operator", *(profile.file for profile in setting.profiles)), rows)


def tabulate_nodes(profile: ProfileRecord) -> TextTable:
    """The most expensive nodes of one file."""
    rows = [
        (
            node.name,
            node.op_type,
            format_shape(node.output_shape) if node.output_shape else NONE,
            format_ms(node.median_ms),
            format_percent(node.share),
        )
        for node in profile.nodes
    ]
    return TextTable(
        f"Most expensive nodes of {profile.file}", ("node", "operator", "output", "median", "share"), rows, left=(0, 1)
    )


def describe_noise(setting: SettingRecord) -> str:
    """How the measurement was made, and the reference's ratio to itself in it."""
    made = (
        f"{format_plural(setting.rounds, 'round')} in {format_plural(setting.sessions, 'session')} per file; "
        f"the first file against itself: {format_ratio_interval(setting.noise)}"
    )
    clock = "processor time" if setting.on_core else "wall time"
    taken = "" if setting.others is None else f"; other processes took {format_percent(setting.others)} of the machine"
    return f"{made}; {clock}{taken}"


def list_notes(record: BenchmarkRecord) -> list[str]:
    """Notes on all figures of this run."""
    kind = "clip" if len(record.input_shape) == CLIP_AXES else "image"
    inputs = f"inputs: random, {format_shape(record.input_shape)} per {kind}"
    absent = [f"not available here: {join_words(record.skipped)}"] if record.skipped else []
    runtimes = {setting.runtime: bool(setting.profiles) for setting in record.settings}
    profiled = ["time by operator: from ONNX Runtime alone"] if len(set(runtimes.values())) > 1 else []
    return [inputs, *absent, *profiled]


def list_lines(record: BenchmarkRecord) -> list[TextTable | str]:
    """Tables and lines in the order in which the terminal shows them."""
    lines: list[TextTable | str] = [tabulate_files(record)]
    for setting in record.settings:
        lines += [tabulate_timings(setting), describe_noise(setting)]
        if setting.profiles:
            lines += [tabulate_operators(setting), *map(tabulate_nodes, setting.profiles)]
        lines += [f"warning: {warning}" for warning in setting.warnings]
    return lines + [f"note: {note}" for note in list_notes(record)]


def format_ratio_interval(ratio: RatioRecord) -> str:
    """'0.308× (0.297 to 0.319)'."""
    return f"{_ratio(ratio.value)} ({ratio.low:.3f} to {ratio.high:.3f})"


def _three_digits(value: float) -> str:
    return format_count(value) if value >= 100 else f"{value:.1f}"


def _share_cell(entry: OperatorRecord | None) -> str:
    if entry is None:
        return NONE
    return f"{format_ms(entry.median_ms)}{GAP}({format_percent(entry.share)}, {entry.nodes})"


def _ratio(value: float) -> str:
    return f"{value:.3f}{TIMES}"
