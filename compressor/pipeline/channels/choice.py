"""Whether the layers of a group lose channels or rank, by measurement at equal numbers of parameters.

Groups that have layers in common are decided on together: a layer whose channels go has no rank. Function norms are to
first order around the original, of one linear model for all layers and one for all groups, and are added up.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compressor.channels.costs import ChannelCosts
from compressor.channels.groups import ChannelGroup
from compressor.factorization.registry import CHANNELS
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.linearization import Linearizer
from compressor.network.layers import FoundLayer
from compressor.pipeline.channels.factors import order_channels
from compressor.pipeline.channels.found import groups_to_search
from compressor.pipeline.context import Context
from compressor.pipeline.state import Decomposed, OrderedGroup, Part

GROUP_SHARES = (0.25, 0.5, 0.75, 0.9)  # of the layers' parameters, at which channels and ranks are compared
TRIAL_IMAGES, TRIAL_DIRECTIONS = 16, 4
MIN_LOSS = 1e-12
RANKS = "ranks"  # beside CHANNELS, among trials


@dataclass(frozen=True)
class _Block:
    """Groups that have layers in common, with the layers that have ranks."""

    groups: list[OrderedGroup]
    parts: list[Decomposed]
    params: int


def choose_groups(context: Context, names: Collection[str] | None = None) -> list[OrderedGroup]:
    """The groups with these names, or all that there are, with their channels in order."""
    groups = [group for group in groups_to_search(context) if names is None or group.name in names]
    return order_groups(context, groups)


def order_groups(context: Context, groups: Sequence[ChannelGroup]) -> list[OrderedGroup]:
    """The groups with their channels in order."""
    factors = order_channels(context, groups) if groups else {}
    return [OrderedGroup(group, factors[group.name], {}) for group in groups]


def outside(groups: Sequence[OrderedGroup], layers: Sequence[FoundLayer]) -> list[FoundLayer]:
    """The layers that are in none of the groups."""
    inside = {name for group in groups for name in group.layer.layers}
    return [layer for layer in layers if layer.name not in inside]


def in_order(context: Context, parts: Sequence[Part]) -> list[Part]:
    """The parts in the order of the network's layers, groups at the place of their first."""
    order = {layer.name: number for number, layer in enumerate(context.layers)}

    def place(part: Part) -> int:
        names = part.layer.layers if isinstance(part, OrderedGroup) else [part.layer.name]
        return min(order[name] for name in names if name in order)

    return sorted(parts, key=place)


def compare_with_channels(context: Context, parts: Sequence[Decomposed], norm: FunctionNorm) -> list[Part]:
    """The layers with their factors, and groups in place of those that lose less by fewer channels.

    Args:
        context: of the run.
        parts: all layers with their factors.
        norm: the function norm that decides.
    """
    groups = choose_groups(context)
    if not groups:
        return list(parts)
    blocks = list(_blocks(context, groups, parts))
    with context.progress.stage("comparing channels with ranks"):
        trials = _measure(context, blocks, norm)
    chosen = [
        replace(group, trials=losses)
        for block, losses in zip(blocks, trials, strict=True)
        if _mean(losses[CHANNELS]) < _mean(losses[RANKS])
        for group in block.groups
    ]
    context.progress.log(f"fewer channels rather than ranks: {len(chosen)} of {len(groups)} groups of layers")
    inside = {name for group in chosen for name in group.layer.layers}
    return [*chosen, *(part for part in parts if part.layer.name not in inside)]


def _blocks(context: Context, groups: Sequence[OrderedGroup], parts: Sequence[Decomposed]) -> Iterator[_Block]:
    """The groups, those together that have layers in common."""
    params = {layer.name: layer.params for layer in context.layers}
    left = list(groups)
    while left:
        block = [left.pop(0)]
        names = set(block[0].layer.layers)
        while joined := [group for group in left if names & set(group.layer.layers)]:
            block += joined
            names |= {name for group in joined for name in group.layer.layers}
            left = [group for group in left if group not in joined]
        inside = [part for part in parts if part.layer.name in names]
        yield _Block(block, inside, sum(params.get(name, 0) for name in names))


def _measure(context: Context, blocks: Sequence[_Block], norm: FunctionNorm) -> list[dict[str, list[float]]]:
    """By block the summed function norms of channels and of ranks at GROUP_SHARES."""
    groups = [group for block in blocks for group in block.groups]
    parts = [part for block in blocks for part in block.parts]
    costs = ChannelCosts(context.original, [group.layer for group in groups], context.example.to(context.device))
    widths = [row for block in blocks for row in _widths(block, groups, costs)]
    ranks = [row for block in blocks for row in _ranks(block)]
    subset = norm.subset(min(TRIAL_IMAGES, len(norm.images)))
    of_groups = _losses_alone(context, groups, widths, subset)
    of_parts = _losses_alone(context, parts, ranks, subset)
    return [
        {
            CHANNELS: _sums([of_groups[group.layer.name] for group in block.groups]),
            RANKS: _sums([of_parts[part.layer.name] for part in block.parts]),
        }
        for block in blocks
    ]


def _losses_alone(
    context: Context, parts: Sequence[Part], rows: Sequence[Sequence[int]], norm: FunctionNorm
) -> dict[str, list[float]]:
    """Function norms with each part alone compressed, at the ranks of its row, by name."""
    layers, factors = [part.layer for part in parts], {part.layer.name: part.factors for part in parts}
    dense = np.array([layer.dense_rank for layer in layers], dtype=np.int64)
    linearize = Linearizer(norm, context.original, layers, factors)
    model = linearize(dense, [sorted(set(row)) for row in rows], np.arange(len(norm.images)), TRIAL_DIRECTIONS)
    norms = model.norms_alone()
    return {layer.name: [own[k] for k in row] for layer, own, row in zip(layers, norms, rows, strict=True)}


def _widths(block: _Block, groups: Sequence[OrderedGroup], costs: ChannelCosts) -> list[list[int]]:
    """Widths of the block's groups at GROUP_SHARES of its parameters, the same share of all units in every group."""
    fractions = np.linspace(0.0, 1.0, 101)[1:]
    own = {number for number, group in enumerate(groups) if group in block.groups}
    terms = [(term.full, len(term.groups)) for term in costs.weights_terms if own & set(term.groups)]
    counts = np.sum([full * fractions**power for full, power in terms], axis=0)
    shares = [fractions[max(0, int((counts <= share * counts[-1]).sum()) - 1)] for share in GROUP_SHARES]
    return [[max(1, round(share * group.layer.num_units)) for share in shares] for group in block.groups]


def _ranks(block: _Block) -> list[list[int]]:
    """Ranks of the block's layers at GROUP_SHARES of its parameters; those that have none stay as they are."""
    layers = [part.layer for part in block.parts]
    searched = sum(layer.params for layer in layers)
    rows = []
    for layer in layers:
        counts = np.array(layer.params_by_rank())
        allowed = [share * block.params - (block.params - searched) for share in GROUP_SHARES]
        rows.append([max(1, int((counts <= layer.params * most / searched).sum())) for most in allowed])
    return rows


def _sums(rows: Sequence[Sequence[float]]) -> list[float]:
    return [float(total) for total in np.sum(rows, axis=0)] if rows else [np.inf] * len(GROUP_SHARES)


def _mean(losses: Sequence[float]) -> float:
    """Geometric mean: losses at different costs differ by orders of magnitude."""
    return float(np.exp(np.log(np.maximum(losses, MIN_LOSS)).mean()))
