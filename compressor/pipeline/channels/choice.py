"""Whether the layers of a group lose channels or rank, by measurement at equal numbers of parameters.

Groups that have layers in common are decided on together: a layer whose channels go has no rank. Function norms are to
first order around the original, of one linear model for all layers and one for all groups, and are added up. Where
channels lose far more than ranks before they are ordered and readers refitted, they are not: that may take minutes.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.arrays import Array
from compressor.channels.groups import ChannelGroup
from compressor.channels.unfitted import unfitted_channels
from compressor.factorization.base import Factors, JointFactors
from compressor.factorization.registry import CHANNELS
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.linearization import Linearizer
from compressor.network.layers import FoundLayer, Ranked
from compressor.pipeline.channels.factors import order_channels
from compressor.pipeline.channels.found import groups_to_search
from compressor.pipeline.context import Context
from compressor.pipeline.state import Decomposed, OrderedGroup, Part

GROUP_SHARES = (0.25, 0.5, 0.75, 0.9)  # of the layers' parameters, at which channels and ranks are compared
SHARES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])  # of a group's units
# Channels are ordered and fitted where they lose at most so many times as much as ranks without that.
PROMISING = 10.0
WEIGHTS, NUM_WEIGHTS = (1e-6, 1e6), 60  # of parameters against function norms, in units of both
SPREAD_IMAGES = 64
TRIAL_IMAGES, TRIAL_DIRECTIONS = 16, 4
MIN_LOSS = 1e-12
RANKS = "ranks"  # beside CHANNELS, among trials
Trials = dict[str, list[float]]


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
    groups = groups_to_search(context)
    if not groups:
        return list(parts)
    comparison = _Comparison(context, groups, parts, norm)
    with context.progress.stage("comparing channels with ranks"):
        images = context.calibration.subset(range(min(SPREAD_IMAGES, len(context.calibration))))
        promising = comparison.choose(unfitted_channels(context.original, groups, images, context.device), PROMISING)
    ordered = order_channels(context, list(promising)) if promising else {}
    with context.progress.stage("comparing channels with ranks"):
        chosen = comparison.choose(ordered)
    context.progress.log(f"fewer channels rather than ranks: {len(chosen)} of {len(groups)} groups of layers")
    inside = {name for group in chosen for name in group.layers}
    found = [OrderedGroup(group, ordered[group.name], trials) for group, trials in chosen.items()]
    return [*found, *(part for part in parts if part.layer.name not in inside)]


class _Comparison:
    """Losses of ranks, and of channels as far as they are asked for.

    Args:
        context: of the run.
        groups: all groups.
        parts: all layers with their factors.
        norm: the function norm that decides.
    """

    def __init__(
        self, context: Context, groups: Sequence[ChannelGroup], parts: Sequence[Decomposed], norm: FunctionNorm
    ) -> None:
        self._original = context.original
        self._params = {layer.name: layer.params for layer in context.layers}
        self._norm = norm.subset(min(TRIAL_IMAGES, len(norm.images)))
        self._blocks = list(_join(groups))
        self._searched = {part.layer.name: part for part in parts}
        self._of_ranks: dict[str, Array] = {}

    def choose(self, factors: Mapping[str, JointFactors], margin: float = 1.0) -> dict[ChannelGroup, Trials]:
        """The groups with factors whose channels lose less than `margin` times what ranks lose, with both losses."""
        if not factors:
            return {}
        groups = [group for block, _ in self._blocks for group in block if group.name in factors]
        widths = [[max(1, round(share * group.num_units)) for share in SHARES] for group in groups]
        of_channels = self._losses_alone(groups, factors, widths)
        scaled = {name: losses / margin for name, losses in of_channels.items()}
        self._measure_ranks()
        found = {}
        for block, names in self._blocks:
            own = {name: self._params[name] for name in names if name in self._params}
            ranks = {name: self._of_ranks[name] for name in own if name in self._of_ranks}
            found.update(_Block([group for group in block if group.name in factors], own, scaled, ranks).choose())
        return found

    def _measure_ranks(self) -> None:
        if self._of_ranks:
            return
        names = {name for _, names in self._blocks for name in names}
        rows = {name: _ranks(part.layer) for name, part in self._searched.items() if name in names}
        parts = [self._searched[name] for name in rows]
        factors = {part.layer.name: part.factors for part in parts}
        self._of_ranks = self._losses_alone([part.layer for part in parts], factors, [rows[name] for name in factors])

    def _losses_alone(
        self, layers: Sequence[Ranked], factors: Mapping[str, Factors | JointFactors], rows: Sequence[Sequence[int]]
    ) -> dict[str, Array]:
        """Function norms with each part alone compressed, at the ranks of its row, by name."""
        if not layers:
            return {}
        dense = np.array([layer.dense_rank for layer in layers], dtype=np.int64)
        others = [sorted(set(row)) for row in rows]
        linearize = Linearizer(self._norm, self._original, layers, factors)
        norms = linearize(dense, others, np.arange(len(self._norm.images)), TRIAL_DIRECTIONS).norms_alone()
        return {
            layer.name: np.array([own[k] for k in row]) for layer, own, row in zip(layers, norms, rows, strict=True)
        }


@dataclass(frozen=True)
class _Block:
    """Groups that have layers in common.

    Attributes:
        groups: the groups.
        params: of the weights of all their layers, by name.
        of_channels: function norms (SHARES,) of every group at SHARES of its units, by name.
        of_ranks: function norms (SHARES,) of each layer that has ranks, at SHARES of its parameters.
    """

    groups: Sequence[ChannelGroup]
    params: Mapping[str, int]
    of_channels: Mapping[str, Array]
    of_ranks: Mapping[str, Array]

    def choose(self) -> dict[ChannelGroup, Trials]:
        """The groups that lose channels: all or none of them, whichever loses less, then one by one changed to either
        while less is lost; each with the losses at GROUP_SHARES."""
        none, every = self._losses([]), self._losses(self.groups)
        chosen = list(self.groups) if _mean(every) < _mean(none) else []
        best = min(_mean(every), _mean(none))
        is_better = True
        while is_better:
            is_better = False
            for group in self.groups:
                other = [one for one in self.groups if (one in chosen) != (one is group)]
                if _mean(self._losses(other)) < best:
                    chosen, best, is_better = other, _mean(self._losses(other)), True
        trials = {CHANNELS: self._losses(chosen).tolist(), RANKS: none.tolist()}
        inside = {name for group in chosen for name in group.layers}
        # A group whose layers have no ranks left to lose may be searched, too: the search can leave it whole.
        without_ranks = [group for group in self.groups if inside.issuperset(set(group.layers) & set(self.of_ranks))]
        return dict.fromkeys([*chosen, *without_ranks] if chosen else [], trials)

    def _losses(self, chosen: Sequence[ChannelGroup]) -> Array:
        """Summed function norms (GROUP_SHARES,) where these groups lose channels, and the layers of none ranks.

        Every group keeps the same share of its units, so that their layers keep each of GROUP_SHARES of the parameters;
        ranks are divided among their layers as loses least.
        """
        sides = Counter(name for group in chosen for name in group.layers if name in self.params)
        searched = [name for name in self.of_ranks if name not in sides]
        total = self._least_by_ranks(searched, [name for name in self.params if name not in sides])
        if not (searched or chosen):
            return np.full(len(GROUP_SHARES), np.inf)
        if chosen:
            counts = np.sum([self.params[name] * SHARES**power for name, power in sides.items()], axis=0)
            kept = np.interp(GROUP_SHARES, counts / counts[-1], SHARES)
            for group in chosen:
                logs = np.log(np.maximum(self.of_channels[group.name], MIN_LOSS))
                total += np.exp(np.interp(kept, SHARES, logs))
        return total

    def _least_by_ranks(self, searched: Sequence[str], names: Sequence[str]) -> Array:
        """The least sums of function norms (GROUP_SHARES,) at which ranks leave these shares of the layers' parameters.

        By Lagrangian allocation, as initial plans are; what all lose at the lowest ranks where these are not enough.

        Args:
            searched: names of layers that have ranks.
            names: of these and others, whose parameters count.
        """
        if not searched:
            return np.zeros(len(GROUP_SHARES))
        total, least = sum(self.params[name] for name in names), np.full(len(GROUP_SHARES), np.inf)
        costs = np.array([self.params[name] * SHARES for name in searched])
        losses = np.array([np.append(self.of_ranks[name][:-1], 0.0) for name in searched])
        fixed = total - costs[:, -1].sum()
        for weight in np.geomspace(*WEIGHTS, NUM_WEIGHTS) * max(float(losses.max()), MIN_LOSS) / total:
            chosen = np.arange(len(searched)), (losses + weight * costs).argmin(1)
            fits = fixed + costs[chosen].sum() <= np.array(GROUP_SHARES) * total
            least = np.where(fits, np.minimum(least, losses[chosen].sum()), least)
        return np.where(np.isinf(least), losses.max(1).sum(), least)


def _join(groups: Sequence[ChannelGroup]) -> Iterator[tuple[list[ChannelGroup], set[str]]]:
    """Groups that have layers in common, directly or by others, with the names of all their layers."""
    left = list(groups)
    while left:
        block = [left.pop(0)]
        names = set(block[0].layers)
        while joined := [group for group in left if names & set(group.layers)]:
            block += joined
            names |= {name for group in joined for name in group.layers}
            left = [group for group in left if group not in joined]
        yield block, names


def _ranks(layer: FoundLayer) -> list[int]:
    """The largest ranks (SHARES,) at which a layer keeps no more than these shares of its parameters."""
    counts = np.array(layer.params_by_rank())
    return [max(1, int((counts <= share * counts[-1]).sum())) for share in SHARES]


def _mean(losses: Array) -> float:
    """Geometric mean: losses at different costs differ by orders of magnitude."""
    return float(np.exp(np.log(np.maximum(losses, MIN_LOSS)).mean()))
