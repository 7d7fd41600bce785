"""The figures of a benchmark, each a function of records that returns inline SVG."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.records import SettingRecord
from compressor.report.formatting import format_ms
from compressor.report.svg import LIGHT, new_axes, page_style, to_inline_svg

_WIDTH = 420.0
_ROW, _TOP, _BOTTOM, _RIGHT = 52.0, 14.0, 38.0, 14.0
_LETTER, _MAX_NAME = 5.7, 22  # points, characters
_BINS = 60
_FILL = 0.62  # share of a row that its histogram fills
_SLOWEST_SHOWN = 0.995  # quantile at which the axis ends; slower runs are in the last bar
_OPERATOR_COLOURS = ("compressed", "initial", "again", "other", "warning", "original")


def draw_distributions(setting: SettingRecord) -> str:
    """A row per file: a histogram of its times with a line at the median; one logarithmic axis for all."""
    names = [timing.file for timing in setting.timings]
    samples = [np.asarray(timing.samples_ms) for timing in setting.timings]
    low = min(values.min() for values in samples)
    high = max(float(np.quantile(values, _SLOWEST_SHOWN)) for values in samples)
    edges = np.geomspace(low, max(high, 1.01 * low), _BINS + 1)
    with page_style(f"distributions {setting.runtime} {setting.provider} {setting.threads} {setting.batch_size}"):
        axes = _start_rows(names, "milliseconds per batch")
        axes.set_xscale("log")
        for row, (values, timing) in enumerate(zip(samples, setting.timings, strict=True)):
            counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
            heights = _FILL * counts / counts.max()
            colour = LIGHT["compressed" if row else "original"]
            foot = row + _FILL / 2
            axes.stairs(foot - heights, edges, baseline=foot, fill=True, color=colour, linewidth=0)
            axes.plot([timing.median_ms] * 2, [foot, foot - _FILL], color=LIGHT["ink"], linewidth=1)
            axes.text(timing.median_ms, foot - _FILL - 0.04, format_ms(timing.median_ms), ha="center", fontsize=9.5)
        axes.set_xlim(edges[0] / 1.06, edges[-1] * 1.06)
        _format_log_axis(axes)
        return to_inline_svg(axes, f"Distribution of the times of {len(names)} files")


def draw_ratios(setting: SettingRecord) -> str:
    """The paired ratios with their intervals; the band is the reference's ratio to itself."""
    compared = [(timing.file, timing.ratio) for timing in setting.timings if timing.ratio]
    if not compared:
        return ""
    with page_style(f"ratios {setting.runtime} {setting.provider} {setting.threads} {setting.batch_size}"):
        axes = _start_rows([name for name, _ in compared], "time / time of the first file")
        axes.axvspan(setting.noise.low, setting.noise.high, color=LIGHT["track"], linewidth=0)
        axes.axvline(1.0, color=LIGHT["muted"], linewidth=1)
        for row, (_, ratio) in enumerate(compared):
            axes.plot([ratio.low, ratio.high], [row, row], color=LIGHT["compressed"], linewidth=2)
            axes.plot([ratio.value], [row], "o", color=LIGHT["compressed"], markersize=6)
            axes.text(ratio.value, row - 0.16, f"{ratio.value:.3f}", ha="center", va="bottom", fontsize=9.5)
        highest = max([1.0, setting.noise.high, *(ratio.high for _, ratio in compared)])
        axes.set_xlim(0, 1.08 * highest)
        return to_inline_svg(axes, f"Paired ratios of {len(compared)} files to the first")


def draw_operators(setting: SettingRecord) -> str:
    """A bar per file, divided by operator type; the most expensive types have colours. Empty without profiles."""
    if not setting.profiles:
        return ""
    names = [profile.file for profile in setting.profiles]
    costs = [{entry.op_type: entry.median_ms for entry in profile.operators} for profile in setting.profiles]
    most = {name: max(cost.get(name, 0.0) for cost in costs) for cost in costs for name in cost}
    shown = sorted(most, key=lambda name: -most[name])[: len(_OPERATOR_COLOURS)]
    with page_style(f"operators {setting.runtime} {setting.provider} {setting.threads} {setting.batch_size}"):
        axes = _start_rows(names, "milliseconds per batch", legend_rows=math.ceil((len(shown) + 1) / 3))
        rows, left = np.arange(len(names)), np.zeros(len(names))
        for name, colour in zip(shown, _OPERATOR_COLOURS, strict=False):
            widths = np.array([cost.get(name, 0.0) for cost in costs])
            axes.barh(rows, widths, 0.5, left=left, color=LIGHT[colour], label=name.lstrip("_"))
            left += widths
        rest = np.array([sum(cost.values()) for cost in costs]) - left
        if len(most) > len(shown):
            axes.barh(rows, rest, 0.5, left=left, color=LIGHT["line"], label="other operators")
        axes.set_xlim(0, 1.02 * float((left + rest).max()))
        spacing = {"columnspacing": 1.1, "handletextpad": 0.4, "handlelength": 1.0}
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderpad=0, borderaxespad=0.4, **spacing)
        return to_inline_svg(axes, f"Time of {len(names)} files by type of operator")


def _start_rows(names: Sequence[str], xlabel: str, legend_rows: int = 0) -> Axes:
    """Empty axes with one named row per file, the first on top."""
    labels = [name if len(name) <= _MAX_NAME else "…" + name[1 - _MAX_NAME :] for name in names]
    top = _TOP + 16.0 * legend_rows
    left = 8 + _LETTER * max(map(len, labels))
    axes = new_axes(_WIDTH, top + _ROW * len(names) + _BOTTOM, left=left, right=_RIGHT, top=top, bottom=_BOTTOM)
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.tick_params(length=0)
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"])
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(xlabel)
    return axes


def _format_log_axis(axes: Axes) -> None:
    """Label the axis with plain figures, and with more of them where it spans little."""
    low, high = axes.get_xlim()
    steps = (1, 2, 5) if high / low > 4 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
