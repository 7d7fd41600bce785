"""Whether the layers of a group lose channels or rank, by measurement at equal numbers of parameters.

Groups that have layers in common are decided on together: a layer whose channels go has no rank. Function norms are to
first order around the original, of one linear model for all layers and one for all groups, and are added up.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compressor.arrays import Array
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
SHARES = np.linspace(0.05, 1.0, 20)  # of a group's units, at which it is measured
TRIAL_IMAGES, TRIAL_DIRECTIONS = 16, 4
MIN_LOSS = 1e-12
RANKS = "ranks"  # beside CHANNELS, among trials


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
    with context.progress.stage("comparing channels with ranks"):
        chosen = [group for block in _blocks(context, groups, parts, norm) for group in block.choose()]
    context.progress.log(f"fewer channels rather than ranks: {len(chosen)} of {len(groups)} groups of layers")
    inside = {name for group in chosen for name in group.layer.layers}
    return [*chosen, *(part for part in parts if part.layer.name not in inside)]


@dataclass(frozen=True)
class _Block:
    """Groups that have layers in common.

    Attributes:
        groups: the groups.
        params: of the weights of all their layers, by name.
        of_channels: function norms (SHARES,) of every group at SHARES of its units, by name.
        of_ranks: function norms (GROUP_SHARES,) of each layer that has ranks, where all layers keep these shares.
    """

    groups: list[OrderedGroup]
    params: Mapping[str, int]
    of_channels: Mapping[str, Array]
    of_ranks: Mapping[str, Array]

    def choose(self) -> list[OrderedGroup]:
        """The groups that lose channels: all or none of them, whichever loses less, then one by one changed to either
        while less is lost; each with the losses at GROUP_SHARES."""
        none, every = self._losses([]), self._losses(self.groups)
        chosen = self.groups if _mean(every) < _mean(none) else []
        best = min(_mean(every), _mean(none))
        is_better = True
        while is_better:
            is_better = False
            for group in self.groups:
                other = [one for one in self.groups if (one in chosen) != (one is group)]
                if _mean(self._losses(other)) < best:
                    chosen, best, is_better = other, _mean(self._losses(other)), True
        trials = {CHANNELS: self._losses(chosen).tolist(), RANKS: none.tolist()}
        return [replace(group, trials=trials) for group in chosen]

    def _losses(self, chosen: Sequence[OrderedGroup]) -> Array:
        """Summed function norms (GROUP_SHARES,) where these groups lose channels, and the layers of none ranks.

        Every group keeps the same share of its units, so that their layers keep each of GROUP_SHARES of the parameters.
        """
        sides = Counter(name for group in chosen for name in group.layer.layers if name in self.params)
        total = np.zeros(len(GROUP_SHARES))
        for name, losses in self.of_ranks.items():
            if name not in sides:
                total += losses
        if chosen:
            counts = np.sum([self.params[name] * SHARES**power for name, power in sides.items()], axis=0)
            kept = np.interp(GROUP_SHARES, counts / counts[-1], SHARES)
            for group in chosen:
                logs = np.log(np.maximum(self.of_channels[group.layer.name], MIN_LOSS))
                total += np.exp(np.interp(kept, SHARES, logs))
        unchanged = [name for name in self.params if name not in self.of_ranks and name not in sides]
        return total if len(unchanged) < len(self.params) else np.full(len(GROUP_SHARES), np.inf)


def _blocks(
    context: Context, groups: Sequence[OrderedGroup], parts: Sequence[Decomposed], norm: FunctionNorm
) -> Iterator[_Block]:
    """The groups, those together that have layers in common, with what their layers lose by either way."""
    params = {layer.name: layer.params for layer in context.layers}
    joined = [(block, {name: params[name] for name in names if name in params}) for block, names in _join(groups)]
    subset = norm.subset(min(TRIAL_IMAGES, len(norm.images)))
    widths = [[max(1, round(share * group.layer.num_units)) for share in SHARES] for group in groups]
    of_channels = _losses_alone(context, groups, widths, subset)
    searched = {part.layer.name: part for part in parts}
    ranks: dict[str, list[int]] = {}
    for _, own in joined:
        ranks |= _ranks([searched[name].layer for name in own if name in searched], sum(own.values()))
    compared = [part for part in parts if part.layer.name in ranks]
    of_ranks = _losses_alone(context, compared, [ranks[part.layer.name] for part in compared], subset)
    for block, own in joined:
        yield _Block(block, own, of_channels, {name: of_ranks[name] for name in own if name in of_ranks})


def _join(groups: Sequence[OrderedGroup]) -> Iterator[tuple[list[OrderedGroup], set[str]]]:
    """Groups that have layers in common, directly or by others, with the names of all their layers."""
    left = list(groups)
    while left:
        block = [left.pop(0)]
        names = set(block[0].layer.layers)
        while joined := [group for group in left if names & set(group.layer.layers)]:
            block += joined
            names |= {name for group in joined for name in group.layer.layers}
            left = [group for group in left if group not in joined]
        yield block, names


def _losses_alone(
    context: Context, parts: Sequence[Part], rows: Sequence[Sequence[int]], norm: FunctionNorm
) -> dict[str, Array]:
    """Function norms with each part alone compressed, at the ranks of its row, by name."""
    layers, factors = [part.layer for part in parts], {part.layer.name: part.factors for part in parts}
    dense = np.array([layer.dense_rank for layer in layers], dtype=np.int64)
    linearize = Linearizer(norm, context.original, layers, factors)
    model = linearize(dense, [sorted(set(row)) for row in rows], np.arange(len(norm.images)), TRIAL_DIRECTIONS)
    norms = model.norms_alone()
    return {layer.name: np.array([own[k] for k in row]) for layer, own, row in zip(layers, norms, rows, strict=True)}


def _ranks(layers: Sequence[FoundLayer], params: int) -> dict[str, list[int]]:
    """Ranks by name at which these layers, and others that have none, keep GROUP_SHARES of `params` in all."""
    searched = sum(layer.params for layer in layers)
    shares = [(share * params - (params - searched)) / max(1, searched) for share in GROUP_SHARES]
    counts = {layer.name: np.array(layer.params_by_rank()) for layer in layers}
    return {name: [max(1, int((own <= share * own[-1]).sum())) for share in shares] for name, own in counts.items()}


def _mean(losses: Array) -> float:
    """Geometric mean: losses at different costs differ by orders of magnitude."""
    return float(np.exp(np.log(np.maximum(losses, MIN_LOSS)).mean()))
