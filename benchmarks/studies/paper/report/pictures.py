"""The paper's figures in its axes, as SVG documents."""

import io
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from benchmarks.studies.paper.norms import OUTPUTS
from benchmarks.studies.paper.report.tables import gammas_of, runs_of, seconds, spelled
from benchmarks.studies.paper.ways import OURS
from benchmarks.studies.search.baselines import DEFAULT
from compressor.report.svg import LIGHT, page_style

Study = dict[str, Any]
Draw = Callable[[Figure], None]
PANEL_INCHES, HEIGHT_INCHES = 3.1, 3.0
WAY_COLOURS = {
    OURS: LIGHT["compressed"],
    "random": LIGHT["muted"],
    "fabolas": LIGHT["initial"],
    DEFAULT: LIGHT["other"],
}
WAY_LABELS = {OURS: "the paper's search", "random": "random", "fabolas": "Fabolas", DEFAULT: "bocompress's default"}
GAMMA_COLOURS = ("#b45309", "#0f766e", "#7c3aed", "#be123c", "#0a66c2")
BOUND = 2.0**0.5
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def document(name: str, panels: int, draw: Draw) -> str:
    """An SVG document with this many panels side by side.

    Args:
        name: of the picture, which seeds its ids.
        panels: how many stand side by side.
        draw: adds the axes.
    """
    with page_style(name):
        figure = Figure(
            figsize=(PANEL_INCHES * panels + 0.4, HEIGHT_INCHES), facecolor=LIGHT["paper"], layout="constrained"
        )
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def ratio_against_top1(study: Study) -> str:
    """Fig. 1: for each search and gamma the means over runs."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for way, colour in WAY_COLOURS.items():
            rows = [runs_of(study, way=way, paper_gamma=gamma) for gamma in gammas_of(study, way=way)]
            if rows:
                ratios, tops = ([100 * mean(row[name] for row in own) for own in rows] for name in ("ratio", "top1"))
                axes.plot(ratios, tops, "o-", color=colour, linewidth=1.2, markersize=5, label=WAY_LABELS[way])
        axes.set_xlabel("ratio in %")
        axes.set_ylabel("top-1 in %")
        axes.grid()
        axes.legend()

    return document(study["study"], 2, draw)


def norm_against_error(study: Study) -> str:
    """Figs. 2 and 3: a panel per depth."""
    depths = list(study["rows"][0]["norms"])

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(depths), sharey=True, squeeze=False)[0]
        for axes, depth in zip(panels, depths, strict=True):
            norms = [row["norms"][depth] for row in study["rows"]]
            axes.plot(norms, [1 - row["top1"] for row in study["rows"]], "o", color=LIGHT["compressed"], markersize=3.5)
            axes.set_title(depth, fontsize=10, loc="left")
            axes.set_xlabel("estimated norm")
            axes.grid()
        panels[0].set_ylabel("top-1 error")

    return document(study["study"], len(depths), draw)


def gap_against_bound(study: Study) -> str:
    """The supplement's bound: how much the cross-entropy rises, against sqrt(L)."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        roots = [row["norms"][OUTPUTS] ** 0.5 for row in study["rows"]]
        gaps = [row["risk"] - study["original"]["risk"] for row in study["rows"]]
        axes.plot(roots, gaps, "o", color=LIGHT["compressed"], markersize=4, label="measured")
        axes.plot([0, max(roots)], [0, BOUND * max(roots)], color=LIGHT["initial"], label="√2 · √L")
        axes.set_xlabel("√L")
        axes.set_ylabel("rise of the cross-entropy")
        axes.grid()
        axes.legend()

    return document(f"{study['study']}-bound", 2, draw)


def boxes_by_gamma(study: Study) -> str:
    """Fig. 4: ratio, time, top-1 and top-5 by gamma, a box per gamma over the runs."""
    gammas = gammas_of(study, way=OURS)
    columns: dict[str, Callable[[dict[str, Any]], float]] = {
        "ratio in %": lambda row: 100 * row["ratio"],
        "time in s": seconds,
        "top-1 in %": lambda row: 100 * row["top1"],
        "top-5 in %": lambda row: 100 * row["top5"],
    }

    def draw(figure: Figure) -> None:
        for axes, (title, value) in zip(figure.subplots(1, len(columns)), columns.items(), strict=True):
            values = [[value(row) for row in runs_of(study, way=OURS, paper_gamma=gamma)] for gamma in gammas]
            _boxes(axes, values, [LIGHT["compressed"]] * len(gammas))
            axes.set_title(title, fontsize=10.5, loc="left")
            axes.set_xticks(range(len(gammas)), list(map(spelled, gammas)), rotation=45)
            axes.set_xlabel("γ")

    return document(study["study"], len(columns), draw)


def boxes_by_block(study: Study) -> str:
    """Fig. 5: the ratio of every layer, a box per gamma over the runs."""
    gammas, layers = gammas_of(study, way=OURS), list(study["layers"])
    width = 0.8 / len(gammas)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for number, (gamma, colour) in enumerate(zip(gammas, GAMMA_COLOURS, strict=False)):
            rows = runs_of(study, way=OURS, paper_gamma=gamma)
            values = [[100 * row["blocks"][block] for row in rows] for block in range(len(layers))]
            places = [block - 0.4 + (number + 0.5) * width for block in range(len(layers))]
            _boxes(axes, values, [colour] * len(layers), places, 0.8 * width)
            axes.plot([], [], "s", color=colour, label=f"γ {spelled(gamma)}")
        axes.set_xticks(range(len(layers)), layers, rotation=45 if len(layers) < 20 else 90, fontsize=8)
        axes.set_xlabel("block, by depth")
        axes.set_ylabel("ratio in %")
        axes.grid(axis="y")
        axes.legend(loc="upper right", ncols=2)

    return document(f"{study['study']}-blocks", 3, draw)


def _boxes(
    axes: Axes,
    values: Sequence[Sequence[float]],
    colours: Sequence[str],
    places: Sequence[float] | None = None,
    width: float = 0.6,
) -> None:
    places = range(len(values)) if places is None else places
    drawn = axes.boxplot(values, positions=places, widths=width, manage_ticks=False, flierprops={"markersize": 3})
    for part in ("boxes", "medians"):
        for line, colour in zip(drawn[part], colours, strict=True):
            line.set_color(colour)
    for part in ("whiskers", "caps"):
        for number, line in enumerate(drawn[part]):
            line.set_color(colours[number // 2])
