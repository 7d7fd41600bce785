"""A matplotlib figure as inline SVG whose text stays text and whose colours are the page's CSS variables.

The same figure gives the same bytes on every run, so that reports can be compared.
"""

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

# Figures are drawn in the light colours; each becomes var(--name), which the page sets for light and dark.
LIGHT = {
    "paper": "#ffffff",
    "ink": "#1b1f24",
    "muted": "#59636e",
    "line": "#dde2e7",
    "track": "#edf0f3",
    "original": "#a9b3bd",
    "compressed": "#0a66c2",
    "initial": "#b45309",
    "again": "#7c3aed",
    "other": "#0f766e",
    "warning": "#9a5b00",
    "tint": "#fff6e5",
    "failure": "#b42318",
    "failure-tint": "#fdecea",
}
DARK = {
    "paper": "#14171a",
    "ink": "#e6e9ec",
    "muted": "#9da7b1",
    "line": "#333a42",
    "track": "#262c32",
    "original": "#6b7682",
    "compressed": "#5aa9ff",
    "initial": "#f0a04b",
    "again": "#b996ff",
    "other": "#3fc7b5",
    "warning": "#f2b558",
    "tint": "#2b2416",
    "failure": "#ff8a80",
    "failure-tint": "#331b1a",
}
_NAMES = {colour: name for name, colour in LIGHT.items()}
MAX_LEGEND_MARKER = 7.0  # points
_UNITS_PER_INCH = 72  # matplotlib's SVG counts in points
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a layer or a folder may have a dollar in its name
    "font.size": 10.5,
    "text.color": LIGHT["ink"],
    "axes.edgecolor": LIGHT["line"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.6,
    "xtick.color": LIGHT["line"],
    "ytick.color": LIGHT["line"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 10,
}


@contextmanager
def page_style(name: str) -> Iterator[None]:
    """Draw in the page's style, whatever the user's matplotlibrc says.

    `name` salts the identifiers inside the figure, so that they differ from those of other figures on the page.
    """
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": name}]):
        yield


def new_axes(width: float, height: float, left: float, right: float, top: float, bottom: float) -> Axes:
    """Axes on a fresh figure.

    Args:
        width: of the figure, in points, as all that follows.
        height: of the figure.
        left: margin beside the axes.
        right: margin beside the axes.
        top: margin above the axes.
        bottom: margin below the axes.
    """
    figure = Figure(figsize=(width / _UNITS_PER_INCH, height / _UNITS_PER_INCH), facecolor="none")
    FigureCanvasSVG(figure)
    inside = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    return figure.add_axes(inside, facecolor="none")


def new_plot(height: float, top: float, xlabel: str, ylabel: str) -> Axes:
    """Axes of one of the page's plots, 400 points wide, with margins for labels.

    Args:
        height: of the figure, in points.
        top: of the row for a title, in points.
        xlabel: below the axes.
        ylabel: beside the axes.
    """
    axes = new_axes(400, height, left=54, right=8, top=top, bottom=38)
    axes.grid(axis="y")
    axes.tick_params(length=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return axes


def format_log_axis(axes: Axes) -> None:
    """Label the log axis with plain figures, and with more of them where it spans little."""
    low, high = axes.get_ylim()
    steps = (1,) if high / low > 1000 else (1, 3)
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=9))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)


def add_legend(axes: Axes) -> None:
    """Put the legend above the plot, out of the way of the points."""
    spacing = {"columnspacing": 1.1, "handletextpad": 0.3, "handlelength": 1.4}
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderpad=0.2, borderaxespad=0.4, **spacing)
    for handle in legend.legend_handles:
        if isinstance(handle, Line2D):  # a ring as large as in the plot would be cut off
            handle.set_markersize(min(handle.get_markersize(), MAX_LEGEND_MARKER))


def to_inline_svg(axes: Axes, label: str) -> str:
    """The axes' figure as an <svg> element; `label` describes it to screen readers."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    buffer = io.StringIO()
    # Grow the figure where a legend or label would be cut off.
    whole = Bbox.union([figure.bbox_inches, figure.get_tightbbox()])
    figure.savefig(buffer, format="svg", metadata=_NO_METADATA, transparent=True, bbox_inches=whole)
    return _make_inline(buffer.getvalue(), label)


def _make_inline(document: str, label: str) -> str:
    """Turn matplotlib's document into an element for a page with others like it."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)  # its style would reach the page
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # axes_1, text_3: the same in every picture
    svg = re.sub(r"(fill|stroke): (#[0-9a-f]{6})", _use_variable, svg)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    opening = f'<svg {box[0]} role="img" aria-label="{html.escape(label)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return opening + svg[svg.index(">") + 1 :].strip()


def _use_variable(match: re.Match[str]) -> str:
    """'fill: #1b1f24' -> 'fill: var(--ink)'; other colours than the page's stay."""
    name = _NAMES.get(match[2])
    return f"{match[1]}: var(--{name})" if name else match[0]
