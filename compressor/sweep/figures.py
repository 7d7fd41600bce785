"""The pictures of a sweep: loss against size, and against time, of all files, with their fronts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from compressor.report.svg import LIGHT, add_legend, format_log_axis, new_plot, page_style, to_inline_svg
from compressor.sweep.front import loss_of
from compressor.sweep.records import SweepRow

_COLOURS = ("compressed", "initial", "again", "other", "warning", "failure")
_MARKERS = ("o", "s", "^", "D", "P", "X")
MANY_DECADES = 1000
MAX_LEGEND = 11  # models; more would fill the page, and the table has them
_PRECISION_FILL = {"fp32": "full", "fp16": "top", "int8": "none"}


@dataclass(frozen=True)
class _Axis:
    """What is drawn to the right, with the original's, and the flag of its front."""

    name: str
    label: str
    value: Callable[[SweepRow], float | None]
    original: Callable[[SweepRow], float | None]
    on_front: Callable[[SweepRow], bool]


SIZE = _Axis(
    "size",
    "megabytes of the file",
    lambda row: None if row.file_bytes is None else row.file_bytes / 1e6,
    lambda row: None if row.original_bytes is None else row.original_bytes / 1e6,
    lambda row: row.on_size_front,
)
TIME = _Axis(
    "time",
    "milliseconds per batch",
    lambda row: row.latency_ms,
    lambda row: row.original_latency_ms,
    lambda row: row.on_time_front,
)


def draw_front(rows: Sequence[SweepRow], labelled: bool, axis: _Axis) -> str:
    """Top-1, or relative norm, against size or time, a colour and mark per model; empty where nothing is known.

    Args:
        rows: the table.
        labelled: whether all files have a top-1.
        axis: SIZE or TIME.
    """
    shown = [row for row in rows if row.file and axis.value(row) and _height(row, labelled) is not None]
    if not shown:
        return ""
    with page_style(f"front {axis.name}"):
        models = list(dict.fromkeys(row.model for row in shown))
        height = 270 + 13 * (min(len(models), MAX_LEGEND) // 3)
        axes = new_plot(height, top=58, xlabel=axis.label, ylabel=_ylabel(labelled))
        axes.set_xscale("log")
        if not labelled:
            axes.set_yscale("log")
        if len(models) > MAX_LEGEND:
            _draw_points(axes, shown, 0, f"{len(models)} models", labelled, axis)
        else:
            for number, model in enumerate(models):
                _draw_model(axes, [row for row in shown if row.model == model], number, labelled, axis)
        if labelled or len(models) <= MAX_LEGEND:
            _draw_fronts(axes, shown, labelled, axis)
        _format(axes, labelled)
        add_legend(axes)
        return to_inline_svg(axes, f"{_ylabel(labelled)} against {axis.name} of {len(shown)} files")


def _ylabel(labelled: bool) -> str:
    return "top-1, %" if labelled else "function norm, % of output energy"


def _height(row: SweepRow, labelled: bool) -> float | None:
    loss = loss_of(row, labelled)
    if loss is None:
        return None
    return 100 * (1 - loss) if labelled else 100 * max(loss, 1e-6)


def _draw_model(axes: Axes, rows: Sequence[SweepRow], number: int, labelled: bool, axis: _Axis) -> None:
    """The files of a model, and the original as a cross where it has a place."""
    style = _draw_points(axes, rows, number, _name(rows[0].model), labelled, axis)
    place, top1 = axis.original(rows[0]), rows[0].original_top1
    if labelled and top1 is not None and place:
        axes.plot([place], [100 * top1], **(style | {"marker": "+", "markersize": 9}))


def _draw_points(
    axes: Axes, rows: Sequence[SweepRow], number: int, label: str, labelled: bool, axis: _Axis
) -> dict[str, Any]:
    """Files as marks, hollow where they are int8; gives the style, which follows from the number.

    Its arguments are what the points are, and where they go.
    """
    style: dict[str, Any] = {
        "color": LIGHT[_COLOURS[number % len(_COLOURS)]],
        "marker": _MARKERS[(number + number // len(_COLOURS)) % len(_MARKERS)],
        "linestyle": "none",
        "markersize": 5,
        "alpha": 0.9,
    }
    for precision, group in groupby(sorted(rows, key=lambda row: row.precision), lambda row: row.precision):
        points = [(axis.value(row), _height(row, labelled)) for row in group]
        axes.plot(*zip(*points, strict=True), fillstyle=_PRECISION_FILL.get(precision, "full"), **style)
    axes.plot([], [], label=label, **style)
    return style


def _name(model: str) -> str:
    """A model's file, short, and so that matplotlib puts it into the legend."""
    name = model.rpartition("/")[2].lstrip("_")
    return name if len(name) <= 24 else name[:12] + "…" + name[-11:]


def _draw_fronts(axes: Axes, rows: Sequence[SweepRow], labelled: bool, axis: _Axis) -> None:
    """Steps through the files of each front: one of all models with labels, else one for each."""
    fronts: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        value, height = axis.value(row), _height(row, labelled)
        if axis.on_front(row) and value is not None and height is not None:
            fronts.setdefault("" if labelled else row.model, []).append((value, height))
    for number, points in enumerate(fronts.values()):
        label = "_" if number else "front"
        line: dict[str, Any] = {"color": LIGHT["ink"], "linewidth": 0.9, "alpha": 0.7, "zorder": 1, "label": label}
        axes.step(*zip(*sorted(points), strict=True), where="post", **line)


def _format(axes: Axes, labelled: bool) -> None:
    """Plain figures on both axes."""
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < MANY_DECADES else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if not labelled:
        format_log_axis(axes)
    axes.tick_params(which="minor", length=0)
