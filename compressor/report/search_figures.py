"""Figures of the search, each a function of a report that returns inline SVG."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from compressor.report.figures import list_chosen_ranks
from compressor.report.records import Report
from compressor.report.svg import LIGHT, add_legend, format_log_axis, new_plot, page_style, to_inline_svg
from compressor.search.records import EvaluationRecord, ParetoRecord

_SOURCE_STYLES = {"initial": ("s", "initial"), "candidate": ("o", "compressed"), "re-measure": ("D", "again")}
_FURTHER_STYLES = (("^", "other"), ("P", "muted"), ("X", "warning"))
_DEVIATIONS = 2  # of error bars


def draw_objectives(report: Report) -> str:
    """The objective of every evaluation, with error bars of two standard deviations, and the best so far."""
    search = report.search
    limit = None if search is None else search.limit
    history = [entry for entry in search.history if limit is None or entry.ratio <= limit] if search else []
    if not history:
        return ""
    weight = 1.0 if limit is not None or report.gamma is None else report.gamma
    label = "objective J" if limit is None else "−L within the limit of R"
    with page_style("objectives"):
        axes = new_plot(290, top=58, xlabel="evaluation", ylabel=f"{label}, higher is better")
        floor = _find_floor([entry.objective for entry in history])
        _draw_running_best(axes, history)
        for entries, style in _group_by_source(history):
            _draw_bars(axes, entries, style, weight, floor)
        _ring(axes, [(entry.index, entry.objective) for entry in _list_chosen(report)])
        axes.set_ylim(*_pad_limits(history, floor, weight))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        add_legend(axes)
        return to_inline_svg(axes, f"Objective of {len(history)} evaluations in the order they were made")


def draw_tradeoff(report: Report) -> str:
    """Ratio against L (log scale) for every evaluated plan and the Pareto front, the chosen plan ringed.

    All are posterior means, so that no point lies below the front. Reports of versions that kept only what was observed
    of evaluations show that, without a front.
    """
    history = report.search.history if report.search else []
    if not history:
        return ""
    is_posterior = all(entry.posterior_norm is not None for entry in history)
    floor = _find_smallest_norm(history)
    norms = {entry.index: max(_plotted_norm(entry), floor) for entry in history}
    kind = "posterior mean" if is_posterior else "observed"
    with page_style("tradeoff"):
        axes = new_plot(290, top=58, xlabel="ratio R, compressed / original", ylabel=f"{_name_loss(report)} L, {kind}")
        axes.set_yscale("log")
        for entries, style in _group_by_source(history):
            _draw_points(axes, entries, style, norms)
        _draw_pareto_front(axes, report.search.pareto_front if report.search and is_posterior else [], floor)
        _ring_middle(axes, [(entry.ratio, norms[entry.index]) for entry in _list_chosen(report)])
        _draw_equal_objective(axes, report)
        format_log_axis(axes)
        add_legend(axes)
        return to_inline_svg(axes, f"Ratio against {_name_loss(report)} of {len(history)} evaluations")


def _plotted_norm(entry: EvaluationRecord) -> float:
    """The posterior mean of L; in older reports what was observed."""
    return entry.function_norm if entry.posterior_norm is None else entry.posterior_norm


def _name_loss(report: Report) -> str:
    return "function norm" if report.searched == "norm" else f"excess {report.searched}"


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
    """Points with error bars; values far below the others become arrows at the lower edge."""
    inside = [entry for entry in entries if entry.objective >= floor]
    below = [entry.index for entry in entries if entry.objective < floor]
    axes.errorbar(
        [entry.index for entry in inside],
        [entry.objective for entry in inside],
        yerr=[_find_halfbar(entry, gamma) for entry in inside],
        linestyle="none", markersize=4, elinewidth=0.8, **style,
    )  # fmt: skip
    at_edge = axes.get_xaxis_transform()
    axes.plot(below, [0.02] * len(below), "v", markersize=4, color=style["color"], alpha=0.6, transform=at_edge)


def _draw_points(
    axes: Axes, entries: Sequence[EvaluationRecord], style: dict[str, Any], norms: Mapping[int, float]
) -> None:
    ratios = [entry.ratio for entry in entries]
    axes.plot(
        ratios,
        [norms[entry.index] for entry in entries],
        linestyle="none",
        markersize=4.5,
        alpha=0.85,
        markeredgewidth=0,
        **style,
    )


def _draw_pareto_front(axes: Axes, pareto_front: Sequence[ParetoRecord], floor: float) -> None:
    """Steps through the Pareto front, with the function norms of the Gaussian process."""
    if pareto_front:
        norms = [max(plan.function_norm, floor) for plan in pareto_front]
        ratios = [plan.ratio for plan in pareto_front]
        axes.step(
            ratios, norms, where="post", color=LIGHT["ink"], linewidth=0.9, alpha=0.7, label="Pareto front", zorder=1
        )


def _draw_running_best(axes: Axes, history: Sequence[EvaluationRecord]) -> None:
    best = np.maximum.accumulate([entry.objective for entry in history])
    indices = [entry.index for entry in history]
    axes.step(indices, best, where="post", color=LIGHT["muted"], linewidth=1, label="best so far")


def _list_chosen(report: Report) -> list[EvaluationRecord]:
    """The evaluations of the chosen plan; none where the search never evaluated it in this form."""
    ranks = list_chosen_ranks(report.layers)
    history = report.search.history if report.search else []
    return [entry for entry in history if entry.ranks == ranks]


def _ring(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Draw rings round the chosen plan, above the points, of which there may be many."""
    if points:
        ring: dict[str, Any] = {"markeredgecolor": LIGHT["ink"], "markeredgewidth": 1.8, "markersize": 11}
        columns = zip(*points, strict=True)
        axes.plot(*columns, "o", markerfacecolor="none", label="chosen plan", zorder=4, **ring)


def _ring_middle(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Draw one ring for all evaluations of the chosen plan, whose ratio is the same, at their median norm."""
    if points:
        _ring(axes, [(points[0][0], median(norm for _, norm in points))])


def _draw_equal_objective(axes: Axes, report: Report) -> None:
    """Draw the line on which J = -gamma L - R (Eq. 3) has the chosen plan's value, or the limit of R."""
    line: dict[str, Any] = {"color": LIGHT["muted"], "linewidth": 1, "linestyle": (0, (4, 3))}
    if report.search is not None and report.search.limit is not None:
        axes.axvline(report.search.limit, label="limit of R", **line)
        return
    if report.form != "ratio" or report.search is None or report.gamma is None or report.gamma <= 0:
        return
    limits = (axes.get_xlim(), axes.get_ylim())
    ratios = np.linspace(*limits[0], 200)
    norms = (-report.search.objective - ratios) / report.gamma
    seen = norms > limits[1][0]
    axes.plot(ratios[seen], norms[seen], label="same objective", **line)
    axes.set(xlim=limits[0], ylim=limits[1])


def _find_halfbar(entry: EvaluationRecord, gamma: float) -> float:
    """Two standard deviations of the objective, of whose two terms only gamma L is uncertain."""
    return _DEVIATIONS * gamma * math.sqrt(max(entry.variance, 0.0))


def _find_floor(objectives: Sequence[float]) -> float:
    """The lower edge of the plot, such that a few very poor candidates do not flatten all the others."""
    best = max(objectives)
    return max(min(objectives), best - 4 * max(best - median(objectives), 1e-9))


def _pad_limits(history: Sequence[EvaluationRecord], floor: float, gamma: float) -> tuple[float, float]:
    top = max(entry.objective + _find_halfbar(entry, gamma) for entry in history)
    margin = 0.06 * (top - floor) or 0.05 * abs(top) or 0.05
    return floor - 1.5 * margin, top + margin


def _find_smallest_norm(history: Sequence[EvaluationRecord]) -> float:
    """Where norms of zero are drawn on the log scale: at half the smallest other."""
    return min((_plotted_norm(entry) for entry in history if _plotted_norm(entry) > 0), default=2.0) / 2
