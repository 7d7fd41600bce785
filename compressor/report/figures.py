"""The report's pictures, each a function of records that returns inline SVG."""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from compressor.cost.records import LatencyRecord
from compressor.network.records import LayerRecord
from compressor.recovery.records import ReconstructionRecord, ReconstructionStep
from compressor.report.formatting import format_count, format_ms
from compressor.report.records import Report
from compressor.report.svg import LIGHT, new_axes, page_style, to_inline_svg
from compressor.search.records import EvaluationRecord, ParetoRecord

_ROW = 17.0  # height of one layer's row, in points
_BAR_WIDTH, _LABEL_WIDTH, _HEAD = 118.0, 96.0, 24.0
_LETTER = 5.7  # width of a letter of a layer's name, on the safe side
_BAR = 0.62  # share of a row that its bar fills
_LONGEST_NAME = 24
_SOURCE_STYLES = {"start": ("s", "start"), "candidate": ("o", "compressed"), "re-measure": ("D", "again")}
_FURTHER_STYLES = (("^", "other"), ("P", "muted"), ("X", "warning"))
_STEP_STYLES = {
    "last factor": ("o", "compressed"),
    "both factors": ("s", "start"),
    "batch-norm statistics": ("D", "again"),
}
_WIDE_FALL = 20.0  # of the function norm in recalibration: beyond, a linear axis would hide its end
_DEVIATIONS = 2


def list_compressible(layers: Sequence[LayerRecord]) -> list[LayerRecord]:
    """The layers the plan speaks of, in the network's order."""
    return [layer for layer in layers if layer.skipped is None and layer.break_even_rank is not None]


def list_chosen_ranks(layers: Sequence[LayerRecord]) -> list[int | None]:
    """The chosen plan as the search writes it: a rank per compressible layer, None where dense."""
    return [layer.rank for layer in list_compressible(layers)]


def draw_ranks(layers: Sequence[LayerRecord]) -> str:
    """A bar per compressible layer: how much of its cap the rank fills; layers kept dense stand apart."""
    layers = list_compressible(layers)
    with page_style("ranks"):
        axes = _start_layer_panel(layers, "Rank, of the break-even cap")
        rows = range(len(layers))
        axes.barh(rows, [1.0] * len(layers), _BAR, color=LIGHT["track"])
        dense = [row for row in rows if layers[row].rank is None]
        _hatch_rows(axes, dense)
        shares = [(layer.rank or 0) / (layer.break_even_rank or 1) for layer in layers]
        axes.barh(rows, shares, _BAR, color=LIGHT["compressed"])
        for row, layer in enumerate(layers):
            text = f"{layer.rank} / {layer.break_even_rank}" if layer.rank else "dense"
            _write_label(axes, row, text, quiet=layer.rank is None)
        axes.set_xlim(0, 1)
        return to_inline_svg(axes, f"Rank of each of {len(layers)} layers as a share of its cap")


def draw_params(layers: Sequence[LayerRecord]) -> str:
    """A pair of bars per compressible layer: its parameters before and after."""
    pairs = [(layer.params, layer.params_compressed) for layer in list_compressible(layers)]
    return _draw_costs(layers, "Parameters", pairs)


def draw_macs(layers: Sequence[LayerRecord]) -> str:
    """A pair of bars per compressible layer: its multiply-accumulates for one image, before and after."""
    pairs = [(layer.macs, layer.macs_compressed) for layer in list_compressible(layers)]
    return _draw_costs(layers, "MACs per image", pairs)


def draw_objectives(report: Report) -> str:
    """The objective of every evaluation, with error bars of two deviations, and the best so far."""
    history = report.search.history if report.search else []
    if not history:
        return ""
    with page_style("objectives"):
        axes = _start_plot(290, top=42, xlabel="evaluation", ylabel="objective J, higher is better")
        floor = _find_floor([entry.objective for entry in history])
        _draw_running_best(axes, history)
        for entries, style in _group_by_source(history):
            _draw_bars(axes, entries, style, report.gamma, floor)
        _ring(axes, [(entry.index, entry.objective) for entry in _list_chosen(report)])
        axes.set_ylim(*_pad_limits(history, floor, report.gamma))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        _add_legend(axes)
        return to_inline_svg(axes, f"Objective of {len(history)} evaluations in the order they were made")


def draw_tradeoff(report: Report) -> str:
    """Ratio against function norm (log scale) for every evaluation, the chosen plan ringed."""
    history = report.search.history if report.search else []
    if not history:
        return ""
    floor = _find_smallest_norm(history)
    with page_style("tradeoff"):
        axes = _start_plot(290, top=42, xlabel="ratio R, compressed / original", ylabel=f"{_name_loss(report)} L")
        axes.set_yscale("log")
        for entries, style in _group_by_source(history):
            _draw_points(axes, entries, style, floor)
        _draw_pareto_front(axes, report.search.pareto_front if report.search else [], floor)
        _ring_middle(axes, [(entry.ratio, max(entry.function_norm, floor)) for entry in _list_chosen(report)])
        _draw_equal_objective(axes, report)
        _format_log_axis(axes)
        _add_legend(axes)
        return to_inline_svg(axes, f"Ratio against {_name_loss(report)} of {len(history)} evaluations")


def _name_loss(report: Report) -> str:
    return "function norm" if report.searched == "norm" else f"excess {report.searched}"


def draw_reconstruction(record: ReconstructionRecord) -> str:
    """The function norm after each step of the recalibration; empty where there was none to take."""
    if not record.steps:
        return ""
    with page_style("recalibration"):
        axes = _start_plot(230, top=42, xlabel="step, front to back", ylabel="function norm L")
        _limit_norms(axes, record)
        kept = [record.before, *(step.after if step.kept else step.before for step in record.steps)]
        axes.step(range(len(kept)), kept, where="post", color=LIGHT["muted"], linewidth=1)
        for numbers, style in _group_by_kind(record.steps):
            _draw_steps(axes, record.steps, numbers, style)
        if not all(step.kept for step in record.steps):
            hollow: dict[str, Any] = {
                "markerfacecolor": LIGHT["paper"],
                "markeredgecolor": LIGHT["muted"],
                "markersize": 5,
            }
            axes.plot([], [], "o", label="not kept", **hollow)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        _add_legend(axes)
        return to_inline_svg(axes, f"Function norm after each of {len(record.steps)} steps of the recalibration")


def draw_latency(provider: str, record: LatencyRecord) -> str:
    """How the measured times of both files are distributed; empty where no samples were kept."""
    samples = (record.original_samples_ms, record.compressed_samples_ms)
    if not all(samples):
        return ""
    with page_style(f"latency {provider}"):
        axes = _start_plot(190, top=22, xlabel="milliseconds per batch", ylabel="runs")
        edges = _choose_bins(np.concatenate(samples))
        for values, name in zip(samples, ("original", "compressed"), strict=True):
            axes.hist(np.clip(values, edges[0], edges[-1]), edges, color=LIGHT[name], alpha=0.8)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        _mark_medians(axes, record)
        return to_inline_svg(axes, f"Distribution of latency on {provider}, original and compressed")


# Layers --------------------------------------------------------------------------------------------------


def _start_layer_panel(layers: Sequence[LayerRecord], title: str) -> Axes:
    """Empty rows with the layers' names; the height grows with their number."""
    names = [_shorten(layer.name) for layer in layers]
    left = 8 + _LETTER * max(len(name) for name in [*names, "layer1.conv1"])
    width, height = left + _BAR_WIDTH + _LABEL_WIDTH, _HEAD + _ROW * len(layers) + 4
    axes = new_axes(width, height, left=left, right=_LABEL_WIDTH, top=_HEAD, bottom=4)
    axes.set_axis_off()
    axes.set_ylim(len(layers) - 0.5, -0.5)
    place = axes.get_yaxis_transform()
    for row, name in enumerate(names):
        axes.text(-0.05, row, name, transform=place, ha="right", va="center", fontsize=9.5)
    axes.text(0, 1 + 7 / (_ROW * len(layers)), title, transform=axes.transAxes, weight="bold", fontsize=10)
    return axes


def _write_label(axes: Axes, row: int, text: str, quiet: bool = False) -> None:
    """The figure that belongs to a row, to the right of its bar."""
    colour = LIGHT["muted" if quiet else "ink"]
    place = axes.get_yaxis_transform()
    axes.text(1.05, row, text, transform=place, ha="left", va="center", fontsize=9.5, color=colour)


def _hatch_rows(axes: Axes, rows: Sequence[int]) -> None:
    """Hatch the bars of layers kept dense: they differ by more than their colour."""
    for row in rows:
        axes.barh(row, 1.0, _BAR, color="none", edgecolor=LIGHT["original"], hatch="////", linewidth=0)


def _draw_costs(layers: Sequence[LayerRecord], title: str, pairs: Sequence[tuple[int, int | None]]) -> str:
    layers = list_compressible(layers)
    before = [original for original, _ in pairs]
    after = [original if compressed is None else compressed for original, compressed in pairs]
    with page_style(title):
        axes = _start_layer_panel(layers, title)
        axes.barh(range(len(layers)), before, _BAR, color=LIGHT["original"])
        changed = [row for row, layer in enumerate(layers) if layer.rank is not None]
        axes.barh(changed, [after[row] for row in changed], _BAR, color=LIGHT["compressed"])
        for row, (old, new) in enumerate(zip(before, after, strict=True)):
            text = f"{format_count(old)} → {format_count(new)}" if row in changed else format_count(old)
            _write_label(axes, row, text, quiet=row not in changed)
        axes.set_xlim(0, max([*before, *after, 1]))
        return to_inline_svg(axes, f"{title} of each of {len(layers)} layers, original and compressed")


def _shorten(name: str) -> str:
    """A long name keeps its end, which tells layers apart; the table beside the picture has it whole."""
    return name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME :]


# Search --------------------------------------------------------------------------------------------------


def _start_plot(height: float, top: float, xlabel: str, ylabel: str) -> Axes:
    axes = new_axes(400, height, left=54, right=8, top=top, bottom=38)
    axes.grid(axis="y")
    axes.tick_params(length=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return axes


def _group_by_source(
    history: Sequence[EvaluationRecord],
) -> list[tuple[list[EvaluationRecord], dict[str, Any]]]:
    """The evaluations by source, in the order the sources first appear, each with a marker of its own."""
    sources = list(dict.fromkeys(entry.source for entry in history))
    further = [source for source in sources if source not in _SOURCE_STYLES]
    groups = []
    for source in sources:
        number = further.index(source) if source in further else 0
        marker, colour = _SOURCE_STYLES.get(source, _FURTHER_STYLES[number % len(_FURTHER_STYLES)])
        label = source.lstrip("_")  # matplotlib leaves labels with a leading underscore out of the legend
        style = {"marker": marker, "color": LIGHT[colour], "label": label}
        groups.append(([entry for entry in history if entry.source == source], style))
    return groups


def _draw_bars(
    axes: Axes, entries: Sequence[EvaluationRecord], style: dict[str, Any], gamma: float, floor: float
) -> None:
    """Points with error bars; those far below the rest become arrows at the lower edge."""
    inside = [entry for entry in entries if entry.objective >= floor]
    below = [entry.index for entry in entries if entry.objective < floor]
    axes.errorbar(
        [entry.index for entry in inside],
        [entry.objective for entry in inside],
        yerr=[_find_halfbar(entry, gamma) for entry in inside],
        linestyle="none", markersize=4, elinewidth=0.8, **style,
    )  # fmt: skip
    place = axes.get_xaxis_transform()
    axes.plot(below, [0.02] * len(below), "v", markersize=4, color=style["color"], alpha=0.6, transform=place)


def _draw_points(axes: Axes, entries: Sequence[EvaluationRecord], style: dict[str, Any], floor: float) -> None:
    norms = [max(entry.function_norm, floor) for entry in entries]
    ratios = [entry.ratio for entry in entries]
    axes.plot(ratios, norms, linestyle="none", markersize=4.5, alpha=0.85, markeredgewidth=0, **style)


def _draw_pareto_front(axes: Axes, pareto_front: Sequence[ParetoRecord], floor: float) -> None:
    """Steps through the plans that none seen beats in both, as the Gaussian process sees them."""
    if pareto_front:
        norms = [max(plan.function_norm, floor) for plan in pareto_front]
        ratios = [plan.ratio for plan in pareto_front]
        axes.step(ratios, norms, where="post", color=LIGHT["ink"], linewidth=0.9, alpha=0.7, label="front", zorder=1)


def _draw_running_best(axes: Axes, history: Sequence[EvaluationRecord]) -> None:
    best = np.maximum.accumulate([entry.objective for entry in history])
    indices = [entry.index for entry in history]
    axes.step(indices, best, where="post", color=LIGHT["muted"], linewidth=1, label="best look so far")


def _list_chosen(report: Report) -> list[EvaluationRecord]:
    """Every look at the chosen plan; none where the search never measured it as it now is."""
    ranks = list_chosen_ranks(report.layers)
    history = report.search.history if report.search else []
    return [entry for entry in history if entry.ranks == ranks]


def _ring(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Rings round the chosen plan, behind the points so that these keep their colours."""
    if points:
        ring: dict[str, Any] = {"markeredgecolor": LIGHT["ink"], "markeredgewidth": 1.2, "markersize": 11}
        columns = zip(*points, strict=True)
        axes.plot(*columns, "o", markerfacecolor="none", label="chosen plan", zorder=1.5, **ring)


def _ring_middle(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """One ring where all looks at the chosen plan have the same ratio and would lie on one another."""
    if points:
        _ring(axes, [(points[0][0], median(norm for _, norm in points))])


def _draw_equal_objective(axes: Axes, report: Report) -> None:
    """The plans as good as the chosen one: J = -gamma L - R (Eq. 3) held at its value."""
    if report.form != "ratio" or report.search is None or report.gamma <= 0:
        return
    limits = (axes.get_xlim(), axes.get_ylim())
    ratios = np.linspace(*limits[0], 200)
    norms = (-report.search.objective - ratios) / report.gamma
    seen = norms > limits[1][0]
    line: dict[str, Any] = {"color": LIGHT["muted"], "linewidth": 1, "linestyle": (0, (4, 3))}
    axes.plot(ratios[seen], norms[seen], label="same objective", **line)
    axes.set(xlim=limits[0], ylim=limits[1])


def _find_halfbar(entry: EvaluationRecord, gamma: float) -> float:
    """Two deviations of the objective; of its two terms only gamma L is uncertain."""
    return _DEVIATIONS * gamma * math.sqrt(max(entry.variance, 0.0))


def _find_floor(objectives: Sequence[float]) -> float:
    """The lower edge of the plot: a few hopeless candidates must not flatten all the others."""
    best = max(objectives)
    return max(min(objectives), best - 4 * max(best - median(objectives), 1e-9))


def _pad_limits(history: Sequence[EvaluationRecord], floor: float, gamma: float) -> tuple[float, float]:
    top = max(entry.objective + _find_halfbar(entry, gamma) for entry in history)
    margin = 0.06 * (top - floor) or 0.05 * abs(top) or 0.05
    return floor - 1.5 * margin, top + margin


def _find_smallest_norm(history: Sequence[EvaluationRecord]) -> float:
    """Where norms of nought are drawn on the log scale: at half the smallest that is not."""
    return min((entry.function_norm for entry in history if entry.function_norm > 0), default=2.0) / 2


def _format_log_axis(axes: Axes) -> None:
    """Plain figures on the log axis, and more of them where it spans little."""
    low, high = axes.get_ylim()
    steps = (1,) if high / low > 1000 else (1, 3)
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=9))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)


def _add_legend(axes: Axes) -> None:
    """Above the plot, out of the way of the points."""
    spacing = {"columnspacing": 1.1, "handletextpad": 0.3, "handlelength": 1.4}
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderpad=0, borderaxespad=0.4, **spacing)


# Reconstruction -------------------------------------------------------------------------------------------


def _group_by_kind(steps: Sequence[ReconstructionStep]) -> list[tuple[list[int], dict[str, Any]]]:
    """The numbers of the steps, from 1, by kind, in the order the kinds first appear."""
    groups = []
    for kind in dict.fromkeys(step.kind for step in steps):
        marker, colour = _STEP_STYLES[kind]
        style = {"marker": marker, "color": LIGHT[colour], "label": kind}
        groups.append(([number for number, step in enumerate(steps, start=1) if step.kind == kind], style))
    return groups


def _draw_steps(axes: Axes, steps: Sequence[ReconstructionStep], numbers: Sequence[int], style: dict[str, Any]) -> None:
    """Filled where kept, hollow where not; what lies far above becomes an arrow at the upper edge."""
    top = axes.get_ylim()[1]
    synthetic: dict[str, Any] = {"linestyle": "none", "markersize": 5, **style}
    refused = {**synthetic, "markerfacecolor": LIGHT["paper"], "label": None}
    for is_kept, evaluation in ((True, synthetic), (False, refused)):
        inside = [number for number in numbers if steps[number - 1].kept == is_kept and steps[number - 1].after <= top]
        axes.plot(inside, [steps[number - 1].after for number in inside], **evaluation)
    above = [number for number in numbers if steps[number - 1].after > top]
    place = axes.get_xaxis_transform()
    axes.plot(above, [0.97] * len(above), transform=place, **{**refused, "marker": "^"})


def _limit_norms(axes: Axes, record: ReconstructionRecord) -> None:
    """From nought to what was kept and a little more, or logarithmic where the fall is long."""
    highest = max([record.before, *(step.after for step in record.steps if step.kept)])
    if record.after > 0 and highest > _WIDE_FALL * record.after:
        axes.set_yscale("log")
        axes.set_ylim(record.after / 1.5, highest * 1.5)
        _format_log_axis(axes)
    else:
        axes.set_ylim(0, highest * 1.15 or 1.0)


# Latency -------------------------------------------------------------------------------------------------


def _choose_bins(samples: np.ndarray) -> list[float]:
    """Forty bins over nearly all samples; the last one also takes the few slowest."""
    low, high = samples.min(), np.quantile(samples, 0.99)
    edges: list[float] = np.linspace(low, high if high > low else low + 1e-3, 41).tolist()
    return edges


def _mark_medians(axes: Axes, record: LatencyRecord) -> None:
    """A line at each median, its figure above the plot."""
    place = axes.get_xaxis_transform()
    middle = (record.original_ms + record.compressed_ms) / 2
    for value in (record.original_ms, record.compressed_ms):
        axes.axvline(value, color=LIGHT["ink"], linewidth=1)
        side = "left" if value >= middle else "right"
        axes.text(value, 1.03, format_ms(value), transform=place, ha=side, va="bottom", fontsize=9.5)
