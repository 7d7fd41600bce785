"""A matplotlib figure as inline SVG: its text stays text, and its colours are the page's CSS variables.

The same figure gives the same bytes on every run, so that a report can be compared with an older one.
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
    "start": "#b45309",
    "again": "#7c3aed",
    "other": "#0f766e",
    "warning": "#9a5b00",
    "tint": "#fff6e5",
}
DARK = {
    "paper": "#14171a",
    "ink": "#e6e9ec",
    "muted": "#9da7b1",
    "line": "#333a42",
    "track": "#262c32",
    "original": "#6b7682",
    "compressed": "#5aa9ff",
    "start": "#f0a04b",
    "again": "#b996ff",
    "other": "#3fc7b5",
    "warning": "#f2b558",
    "tint": "#2b2416",
}
_NAMES = {colour: name for name, colour in LIGHT.items()}
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

    `name` salts the identifiers inside the picture: they stay apart from those of other pictures on the page.
    """
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": name}]):
        yield


def new_axes(width: float, height: float, left: float, right: float, top: float, bottom: float) -> Axes:
    """Axes on a fresh figure of `width` by `height` points, with the four margins given in points."""
    figure = Figure(figsize=(width / _UNITS_PER_INCH, height / _UNITS_PER_INCH), facecolor="none")
    FigureCanvasSVG(figure)
    inside = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    return figure.add_axes(inside, facecolor="none")


def to_inline_svg(axes: Axes, label: str) -> str:
    """The axes' figure as an <svg> element; `label` tells screen readers what it shows."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    buffer = io.StringIO()
    # A long legend or label makes the picture larger: cut off, it would say nothing.
    whole = Bbox.union([figure.bbox_inches, figure.get_tightbbox()])
    figure.savefig(buffer, format="svg", metadata=_NO_METADATA, transparent=True, bbox_inches=whole)
    return _make_inline(buffer.getvalue(), label)


def _make_inline(document: str, label: str) -> str:
    """Take matplotlib's document to an element that can stand in a page, beside others of its kind."""
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
    """'fill: #1b1f24' -> 'fill: var(--ink)'; a colour that is not the page's own stays."""
    name = _NAMES.get(match[2])
    return f"{match[1]}: var(--{name})" if name else match[0]
