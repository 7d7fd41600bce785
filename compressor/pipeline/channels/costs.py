"""What widths of groups cost, for the search: exact, but for milliseconds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from compressor.arrays import FLOAT_BYTES, Array, Ranks
from compressor.channels.costs import ChannelCosts, Term
from compressor.channels.groups import ChannelGroup
from compressor.channels.narrowing import kept_in_front, narrow
from compressor.cost.tables import Clock
from compressor.network.hooks import watching
from compressor.pipeline.context import Context

MEASURED_WIDTHS = 5  # of a group, for milliseconds


@dataclass(frozen=True)
class GroupCosts:
    """What groups cost at 1, 2, ... and last all units (see `RankSpace`).

    Attributes:
        tables: by the groups' names, each with all units of the others.
        shared: by pairs of names, what layers cost that produce one group's channels and read the other's.
    """

    tables: Mapping[str, list[float]]
    shared: Mapping[tuple[str, str], float]


def count_group_costs(context: Context, groups: Sequence[ChannelGroup]) -> GroupCosts:
    """Parameters, bytes or multiply-accumulates of the groups' layers.

    Where sparsity is searched, parameters are the weights that pruning counts, without biases and norms.
    """
    counts, settings = ChannelCosts(context.original, groups, context.example.to(context.device)), context.settings
    terms = counts.macs_terms if settings.cost == "macs" else counts.params_terms
    if settings.prune_fraction is None:
        terms = counts.weights_terms
    return _tabulate(groups, terms, float(FLOAT_BYTES) if settings.cost == "bytes" else 1.0)


def _tabulate(groups: Sequence[ChannelGroup], terms: Sequence[Term], scale: float) -> GroupCosts:
    shares = [np.arange(1, group.num_units + 1) / group.num_units for group in groups]
    tables: list[Array] = [np.zeros(group.num_units) for group in groups]
    shared: dict[tuple[str, str], float] = {}
    for term in terms:
        numbers = set(term.groups)
        for number in numbers:  # a layer that reads what it produces costs the square
            tables[number] += scale * term.full * shares[number] ** (len(term.groups) - len(numbers) + 1)
        if len(numbers) == 2:
            first, second = sorted(numbers)
            pair = groups[first].name, groups[second].name
            shared[pair] = shared.get(pair, 0.0) + scale * term.full
    return GroupCosts({group.name: table.tolist() for group, table in zip(groups, tables, strict=True)}, shared)


def time_group_costs(
    context: Context, groups: Sequence[ChannelGroup], clock: Clock, example: Tensor, on_step: Callable[[int], None]
) -> GroupCosts:
    """Milliseconds of the groups' layers, each measured alone at a few widths and interpolated between these.

    A layer between two groups is measured with all channels of the other, and taken to cost in proportion to both.

    Args:
        context: of the run; its original network is measured.
        groups: whose layers are measured.
        clock: measures the milliseconds of a module on an input.
        example: one input (1, ...) of the network.
        on_step: called with the number of groups done.
    """
    inputs, tables = _inputs(context.original, groups, example), {}
    times: dict[str, dict[str, float]] = {}  # of layers with all channels, by group
    for number, group in enumerate(groups):
        on_step(number)
        widths = np.unique(np.linspace(1, group.num_units, MEASURED_WIDTHS).round().astype(int))
        found = {
            name: [_time(module, inputs[name], clock) for module in _at_widths(context.original, group, name, widths)]
            for name in group.layers
            if name in inputs
        }
        total = np.maximum.accumulate(np.sum(list(found.values()), axis=0))
        tables[group.name] = np.interp(np.arange(1, group.num_units + 1), widths, total).tolist()
        for name, milliseconds in found.items():
            times.setdefault(name, {})[group.name] = milliseconds[-1]
    shared: dict[tuple[str, str], float] = {}
    for of_layer in times.values():
        if len(of_layer) == 2:
            first, second = of_layer
            shared[first, second] = shared.get((first, second), 0.0) + of_layer[first]
    return GroupCosts(tables, shared)


def _inputs(model: nn.Module, groups: Sequence[ChannelGroup], example: Tensor) -> dict[str, Tensor]:
    """The input of each convolution and linear layer of the groups on its first call."""
    modules = {name: model.get_submodule(name) for group in groups for name in group.layers}
    modules = {name: module for name, module in modules.items() if isinstance(module, nn.Conv2d | nn.Linear)}
    names, seen = list(modules), dict[str, Tensor]()

    def keep(number: int, value: Tensor, _output: Tensor) -> None:
        seen.setdefault(names[number], value.detach().clone())

    with torch.no_grad(), watching(list(modules.values()), keep):
        model(example)
    return seen


def _at_widths(model: nn.Module, group: ChannelGroup, name: str, widths: Ranks) -> list[nn.Module]:
    kept = [kept_in_front([group], {group.name: int(width)}) for width in widths]
    return [narrow(model, [group], units).get_submodule(name) for units in kept]


def _time(module: nn.Module, value: Tensor, clock: Clock) -> float:
    """Milliseconds of a narrowed layer, on as many of the original's inputs as it takes."""
    if isinstance(module, nn.Conv2d):
        value = value[..., : module.in_channels, :, :]
    elif isinstance(module, nn.Linear):
        value = value[..., : module.in_features]
    return clock(f"{module}", [module], value.contiguous())[0]
