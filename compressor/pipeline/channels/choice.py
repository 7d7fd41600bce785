"""Whether the layers of a group lose channels or ranks, by measurement at the price of size that the search has.

Groups that have layers in common are decided on together: a layer whose channels go has no rank. Function norms are to
first order around the original, of one linear model for all layers and one for all groups, and are added up. Where
channels lose far more than ranks before they are ordered and readers refitted, they are not: that may take minutes.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from compressor.arrays import FLOAT_BYTES, Array
from compressor.channels.groups import ChannelGroup
from compressor.channels.unfitted import unfitted_channels
from compressor.cost.size import count_params
from compressor.factorization.base import Factors, JointFactors
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.linearization import Linearizer
from compressor.network.layers import FoundLayer, Ranked
from compressor.pipeline.channels.blocks import SHARES, Block, choose
from compressor.pipeline.channels.factors import order_channels
from compressor.pipeline.channels.found import groups_to_search
from compressor.pipeline.context import Context
from compressor.pipeline.state import Decomposed, OrderedGroup, Part
from compressor.process.memory import release_memory

# Channels are ordered and fitted where they lose at most so many times as much as ranks without that.
PROMISING = 10.0
SPREAD_IMAGES = 64
TRIAL_IMAGES, TRIAL_DIRECTIONS = 16, 4
T = TypeVar("T")


def order_groups(context: Context, groups: Sequence[ChannelGroup]) -> list[OrderedGroup]:
    """The groups with their channels in order."""
    factors = order_channels(context, groups) if groups else {}
    return [OrderedGroup(group, factors[group.name]) for group in groups]


def outside(groups: Sequence[ChannelGroup], layers: Sequence[FoundLayer]) -> list[FoundLayer]:
    """The layers that are in none of the groups."""
    inside = {name for group in groups for name in group.layers}
    return [layer for layer in layers if layer.name not in inside]


def in_order(context: Context, parts: Sequence[Part]) -> list[Part]:
    """The parts in the order of the network's layers, groups at the place of their first."""
    order = {layer.name: number for number, layer in enumerate(context.layers)}

    def place(part: Part) -> int:
        names = part.layer.layers if isinstance(part, OrderedGroup) else [part.layer.name]
        return min(order[name] for name in names if name in order)

    return sorted(parts, key=place)


def compare_with_channels(
    context: Context, parts: Sequence[Decomposed], norm: FunctionNorm, price: float
) -> list[Part]:
    """The layers with their factors, and groups in place of those that had better lose channels.

    Args:
        context: of the run.
        parts: all layers with their factors.
        norm: the function norm that decides.
        price: function norm that the whole size is worth; with a target of size, what keeps to that decides instead.
    """
    groups = groups_to_search(context)
    if not groups:
        return list(parts)
    comparison = _Comparison(context, groups, parts, norm, price)
    with context.progress.stage("comparing channels with ranks"):
        images = context.calibration.subset(range(min(SPREAD_IMAGES, len(context.calibration))))
        promising = comparison.choose(unfitted_channels(context.original, groups, images, context.device), PROMISING)
    release_memory()
    ordered = order_channels(context, promising) if promising else {}
    with context.progress.stage("comparing channels with ranks"):
        chosen = comparison.choose(ordered)
    context.progress.log(f"fewer channels rather than ranks: {len(chosen)} of {len(groups)} groups of layers")
    inside = {name for group in chosen for name in group.layers}
    found = [OrderedGroup(group, ordered[group.name]) for group in chosen]
    return [*found, *(part for part in parts if part.layer.name not in inside)]


class _Comparison:
    """Losses of ranks, and of channels as far as they are asked for.

    Args:
        context: of the run.
        groups: all groups.
        parts: all layers with their factors.
        norm: the function norm that decides.
        price: see `compare_with_channels`.
    """

    def __init__(
        self,
        context: Context,
        groups: Sequence[ChannelGroup],
        parts: Sequence[Decomposed],
        norm: FunctionNorm,
        price: float,
    ) -> None:
        self._folded = context.folded
        self._norm = norm.subset(min(TRIAL_IMAGES, len(norm.images)))
        self._blocks = list(_join(groups, [layer.name for layer in context.layers]))
        self._parts, self._price, self._limit = parts, price, _limit(context)
        # A drop or milliseconds are kept to at prices that the search finds.
        self._is_settled = context.settings.target is None or self._limit is not None
        # Milliseconds are not known yet, and rise with operations.
        by_macs = context.settings.cost in ("macs", "latency")
        sizes = {layer.name: layer.macs if by_macs else layer.params for layer in context.layers}
        self._sizes = {name: size / sum(sizes.values()) for name, size in sizes.items()}
        self._of_ranks: dict[str, Array] = {}

    def choose(self, factors: Mapping[str, JointFactors], margin: float = 1.0) -> list[ChannelGroup]:
        """The groups with factors that had better lose channels, if these lose `margin` times less than they do."""
        if not factors:
            return []
        groups = [group for block, _ in self._blocks for group in block if group.name in factors]
        widths = [[max(1, round(share * group.num_units)) for share in SHARES] for group in groups]
        release_memory()
        of_channels = self._single_losses(groups, factors, widths)
        of_channels = {name: losses / margin for name, losses in of_channels.items()}
        self._of_ranks = self._of_ranks or self._measure_ranks()
        blocks = [
            Block(
                groups=[group for group in block if group.name in factors],
                sizes=_only(self._sizes, names),
                of_channels=of_channels,
                of_ranks=_only(self._of_ranks, names),
            )
            for block, names in self._blocks
        ]
        found: list[ChannelGroup] = []
        for block, chosen in zip(blocks, choose(blocks, self._price, self._limit, self._is_settled), strict=True):
            inside = {name for group in chosen for name in group.layers}
            # A group whose layers have no ranks left to lose may be searched, too: the search can leave it whole.
            free = [group for group in block.groups if inside.issuperset(set(group.layers) & set(block.of_ranks))]
            found += dict.fromkeys([*chosen, *free])
        return found

    def _measure_ranks(self) -> dict[str, Array]:
        layers = [part.layer for part in self._parts]
        rows = [_ranks(layer) for layer in layers]
        return self._single_losses(layers, {part.layer.name: part.factors for part in self._parts}, rows)

    def _single_losses(
        self, layers: Sequence[Ranked], factors: Mapping[str, Factors | JointFactors], rows: Sequence[Sequence[int]]
    ) -> dict[str, Array]:
        """Function norms (SHARES,) with each part alone compressed, at the ranks of its row, by name."""
        if not layers:
            return {}
        dense = np.array([layer.dense_rank for layer in layers], dtype=np.int64)
        others = [sorted(set(row)) for row in rows]
        linearize = Linearizer(self._norm, self._folded.network, layers, self._folded.factors(factors))
        norms = linearize(dense, others, np.arange(len(self._norm.images)), TRIAL_DIRECTIONS).single_layer_norms()
        return {
            layer.name: np.array([own[k] for k in row]) for layer, own, row in zip(layers, norms, rows, strict=True)
        }


def _limit(context: Context) -> float | None:
    """The share of the size that a target leaves; None where none is known beforehand."""
    target, original = context.settings.target, context.original
    if target is None or target.kind not in ("ratio", "bytes", "macs"):
        return None
    whole = {
        "ratio": 1.0,
        "bytes": float(FLOAT_BYTES * count_params(original)),
        "macs": float(sum(layer.macs for layer in context.layers)),
    }
    return target.value / whole[target.kind]


def _only(values: Mapping[str, T], names: Collection[str]) -> dict[str, T]:
    return {name: value for name, value in values.items() if name in names}


def _join(groups: Sequence[ChannelGroup], others: Collection[str]) -> Iterator[tuple[list[ChannelGroup], set[str]]]:
    """Groups that have layers in common, directly or by others, with the names of all their layers; then each layer
    of `others` that is in none."""
    left = list(groups)
    while left:
        block = [left.pop(0)]
        names = set(block[0].layers)
        while joined := [group for group in left if names & set(group.layers)]:
            block += joined
            names |= {name for group in joined for name in group.layers}
            left = [group for group in left if group not in joined]
        yield block, names
    inside = {name for group in groups for name in group.layers}
    yield from (([], {name}) for name in others if name not in inside)


def _ranks(layer: FoundLayer) -> list[int]:
    """The largest ranks (SHARES,) at which a layer keeps no more than these shares of its parameters."""
    counts = np.array(layer.params_by_rank())
    return [max(1, int((counts <= share * counts[-1]).sum())) for share in SHARES]
