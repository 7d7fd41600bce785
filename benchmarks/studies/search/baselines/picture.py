"""Objective against image passes: the median over the seeds, and a band from the lowest to the highest.

On the left bocompress and the baselines, on the right its own variants. The axis of -J is logarithmic and reversed, so
that better is higher and the good end has room.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.studies.search.baselines import DEFAULT, SEARCHES
from compressor.report.svg import LIGHT, page_style

WIDTH_INCHES, HEIGHT_INCHES = 12.0, 4.8
BAND_OPACITY = 0.12
HEADROOM = 1.06  # on the logarithmic axis, beyond the best
MIN_GAP = 0.042  # of the axes' height, between names at the curves' ends
# One colour per curve of a panel, told apart by more than hue; bocompress has the page's blue.
COLOURS = (
    *("#b45309", "#0f766e", "#7c3aed", "#be123c", "#4d7c0f", "#a16207"),
    *("#0e7490", "#9d174d", "#57534e", "#1d4ed8", "#15803d", "#c2410c"),
)
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
Values = np.ndarray


def draw(study: Mapping[str, Any]) -> str:
    """An SVG document of the study's rows."""
    curves = curves_of(study["rows"])
    panels = (
        ("bocompress and baselines", [name for name in curves if name == DEFAULT or not SEARCHES[name].ours]),
        ("bocompress and its variants", [name for name in curves if SEARCHES[name].ours]),
    )
    with page_style(str(study["study"])):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), facecolor=LIGHT["paper"])
        FigureCanvasSVG(figure)
        for column, (title, names) in enumerate(panels):
            axes = figure.add_axes((0.07 + 0.49 * column, 0.12, 0.30, 0.78), facecolor="none")
            axes.set_title(title, loc="left", fontsize=11)
            if not column:
                axes.set_ylabel("objective J on test images")
            _draw_panel(axes, study["checkpoints"], {name: curves[name] for name in names})
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def curves_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
    """J at the checkpoints (seeds, checkpoints) by search, in the table's order."""
    names = [name for name in SEARCHES if any(row["search"] == name for row in rows)]
    return {name: np.array([row["objectives"] for row in rows if row["search"] == name]) for name in names}


def _draw_panel(axes: Axes, passes: Sequence[int], curves: Mapping[str, Values]) -> None:
    colours = dict(zip([name for name in curves if name != DEFAULT], COLOURS * 2, strict=False))
    for name, values in curves.items():
        colour = colours.get(name, LIGHT["compressed"])
        axes.fill_between(passes, -values.min(0), -values.max(0), color=colour, alpha=BAND_OPACITY, linewidth=0)
        width, order = (2.4, 5) if name == DEFAULT else (1.2, 3)
        axes.plot(passes, -np.median(values, axis=0), color=colour, linewidth=width, zorder=order)
    axes.set_xscale("log")
    axes.set_yscale("log")
    best = -max(values.max() for values in curves.values())
    axes.set_ylim(1.05, best / HEADROOM)
    axes.set_xlim(passes[0], passes[-1])
    axes.set_xlabel("image passes")
    _label_axes(axes, best, passes)
    _name_curves(axes, {name: float(np.median(values[:, -1])) for name, values in curves.items()}, colours)


def _label_axes(axes: Axes, best: float, passes: Sequence[int]) -> None:
    marks = [
        mark for mark in (1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02) if mark >= best / HEADROOM
    ]
    axes.set_yticks(marks)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"-{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([mark for mark in (100, 300, 1000, 3000, 10_000, 30_000) if passes[0] <= mark <= passes[-1]])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.grid(axis="y")


def _name_curves(axes: Axes, ends: Mapping[str, float], colours: Mapping[str, str]) -> None:
    """Each curve's name at its right end, moved apart where ends meet."""
    heights = {
        name: axes.transAxes.inverted().transform(axes.transData.transform((1.0, -end)))[1]
        for name, end in ends.items()
    }
    names = sorted(heights, key=lambda name: -heights[name])
    positions = spread([heights[name] for name in names], MIN_GAP)
    for name, height in zip(names, positions, strict=True):
        colour = colours.get(name, LIGHT["compressed"])
        axes.annotate(
            f"{name}  {ends[name]:.3f}",
            (1.0, heights[name]),
            (1.05, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=9.5,
            color=colour,
            fontweight="bold" if name == DEFAULT else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Descending heights, moved apart to at least `gap`, within 0 and 1 where there is room."""
    positions: list[float] = []
    for height in heights:
        positions.append(min(height, positions[-1] - gap) if positions else min(height, 1.0))
    short = max(0.0, -min(positions, default=0.0))
    if not short:
        return positions
    lifted: list[float] = []
    for height in reversed(positions):
        lifted.append(max(height, lifted[-1] + gap if lifted else 0.0))
    return lifted[::-1]
