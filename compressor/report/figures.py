"""Figures of layers, reconstruction and latency, each a function of records that returns inline SVG."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from compressor.cost.records import LatencyRecord
from compressor.network.records import LayerRecord
from compressor.recovery.records import ReconstructionRecord, ReconstructionStep
from compressor.report.formatting import format_count, format_ms
from compressor.report.svg import LIGHT, add_legend, format_log_axis, new_axes, new_plot, page_style, to_inline_svg

_ROW = 17.0  # height of one layer's row, in points
_BAR_WIDTH, _LABEL_WIDTH, _HEAD = 118.0, 96.0, 24.0
_LETTER = 5.7  # width of a letter of a layer's name in points, at most
_BAR = 0.62  # share of a row that its bar fills
_MAX_NAME = 24  # characters
_STEP_STYLES = {
    "last factor": ("o", "compressed"),
    "both factors": ("s", "initial"),
    "channels left": ("^", "initial"),
    "batch-norm statistics": ("D", "again"),
}
_MAX_LINEAR_FALL = 20.0  # of the function norm in reconstruction: beyond, the axis is logarithmic


def list_compressible(layers: Sequence[LayerRecord]) -> list[LayerRecord]:
    """The layers that a plan has ranks for, in the network's order."""
    return [layer for layer in layers if layer.skipped is None and layer.break_even_rank is not None]


def list_chosen_ranks(layers: Sequence[LayerRecord]) -> list[int | None]:
    """The chosen plan: a rank per compressible layer, None where dense."""
    return [layer.rank for layer in list_compressible(layers)]


def draw_ranks(layers: Sequence[LayerRecord]) -> str:
    """A bar per compressible layer: its rank as a share of its break-even rank; dense layers are hatched."""
    layers = list_compressible(layers)
    with page_style("ranks"):
        axes = _start_layer_panel(layers, "Rank / break-even rank")
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
        return to_inline_svg(axes, f"Rank of each of {len(layers)} layers as a share of its break-even rank")


def draw_params(layers: Sequence[LayerRecord]) -> str:
    """A pair of bars per compressible layer: its parameters before and after."""
    pairs = [(layer.params, layer.params_compressed) for layer in list_compressible(layers)]
    return _draw_costs(layers, "Parameters", pairs)


def draw_macs(layers: Sequence[LayerRecord], noun: str = "image") -> str:
    """A pair of bars per compressible layer: its multiply-accumulates for one image, or clip, before and after."""
    pairs = [(layer.macs, layer.macs_compressed) for layer in list_compressible(layers)]
    return _draw_costs(layers, f"MACs per {noun}", pairs)


def draw_reconstruction(record: ReconstructionRecord) -> str:
    """The function norm after each step of layer-wise reconstruction; empty without steps."""
    if not record.steps:
        return ""
    with page_style("reconstruction"):
        axes = new_plot(230, top=42, xlabel="step, front to back", ylabel="function norm L")
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
        add_legend(axes)
        return to_inline_svg(
            axes, f"Function norm after each of {len(record.steps)} steps of layer-wise reconstruction"
        )


def draw_latency(provider: str, record: LatencyRecord) -> str:
    """Histograms of the measured times of both files; empty where no samples were kept."""
    samples = (record.original_samples_ms, record.compressed_samples_ms)
    if not all(samples):
        return ""
    with page_style(f"latency {provider}"):
        axes = new_plot(190, top=22, xlabel="milliseconds per batch", ylabel="runs")
        edges = _choose_bins(np.concatenate(samples))
        for values, name in zip(samples, ("original", "compressed"), strict=True):
            axes.hist(np.clip(values, edges[0], edges[-1]), edges, color=LIGHT[name], alpha=0.8)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        _mark_medians(axes, record)
        return to_inline_svg(axes, f"Distribution of latency on {provider}, original and compressed")


# Layers --------------------------------------------------------------------------------------------------


def _start_layer_panel(layers: Sequence[LayerRecord], title: str) -> Axes:
    """Empty rows with the layers' names, as high as their number needs."""
    names = [_shorten(layer.name) for layer in layers]
    left = 8 + _LETTER * max(len(name) for name in [*names, "layer1.conv1"])
    width, height = left + _BAR_WIDTH + _LABEL_WIDTH, _HEAD + _ROW * len(layers) + 4
    axes = new_axes(width, height, left=left, right=_LABEL_WIDTH, top=_HEAD, bottom=4)
    axes.set_axis_off()
    axes.set_ylim(len(layers) - 0.5, -0.5)
    beside = axes.get_yaxis_transform()
    for row, name in enumerate(names):
        axes.text(-0.05, row, name, transform=beside, ha="right", va="center", fontsize=9.5)
    axes.text(0, 1 + 7 / (_ROW * len(layers)), title, transform=axes.transAxes, weight="bold", fontsize=10)
    return axes


def _write_label(axes: Axes, row: int, text: str, quiet: bool = False) -> None:
    """Write a row's figure to the right of its bar."""
    colour = LIGHT["muted" if quiet else "ink"]
    beside = axes.get_yaxis_transform()
    axes.text(1.05, row, text, transform=beside, ha="left", va="center", fontsize=9.5, color=colour)


def _hatch_rows(axes: Axes, rows: Sequence[int]) -> None:
    """Hatch the bars of dense layers, so that they differ by more than their colour."""
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
    """The end of a long name, which tells layers apart; the table next to the figure has it whole."""
    return name if len(name) <= _MAX_NAME else "…" + name[1 - _MAX_NAME :]


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
    """Draw marks, filled where kept and hollow where not; values far above become arrows at the upper edge."""
    top = axes.get_ylim()[1]
    filled: dict[str, Any] = {"linestyle": "none", "markersize": 5, **style}
    hollow = {**filled, "markerfacecolor": LIGHT["paper"], "label": None}
    for is_kept, mark in ((True, filled), (False, hollow)):
        inside = [number for number in numbers if steps[number - 1].kept == is_kept and steps[number - 1].after <= top]
        axes.plot(inside, [steps[number - 1].after for number in inside], **mark)
    above = [number for number in numbers if steps[number - 1].after > top]
    at_edge = axes.get_xaxis_transform()
    axes.plot(above, [0.97] * len(above), transform=at_edge, **{**hollow, "marker": "^"})


def _limit_norms(axes: Axes, record: ReconstructionRecord) -> None:
    """Set limits from zero to a little above what was kept, or logarithmic ones where the fall is long."""
    highest = max([record.before, *(step.after for step in record.steps if step.kept)])
    if record.after > 0 and highest > _MAX_LINEAR_FALL * record.after:
        axes.set_yscale("log")
        axes.set_ylim(record.after / 1.5, highest * 1.5)
        format_log_axis(axes)
    else:
        axes.set_ylim(0, highest * 1.15 or 1.0)


# Latency -------------------------------------------------------------------------------------------------


def _choose_bins(samples: np.ndarray) -> list[float]:
    """Edges of forty bins over nearly all samples; the last bin also takes the few slowest."""
    low, high = samples.min(), np.quantile(samples, 0.99)
    edges: list[float] = np.linspace(low, high if high > low else low + 1e-3, 41).tolist()
    return edges


def _mark_medians(axes: Axes, record: LatencyRecord) -> None:
    """Draw a line at each median, with its figure above the plot."""
    above = axes.get_xaxis_transform()
    middle = (record.original_ms + record.compressed_ms) / 2
    for value in (record.original_ms, record.compressed_ms):
        axes.axvline(value, color=LIGHT["ink"], linewidth=1)
        side = "left" if value >= middle else "right"
        axes.text(value, 1.03, format_ms(value), transform=above, ha=side, va="bottom", fontsize=9.5)
