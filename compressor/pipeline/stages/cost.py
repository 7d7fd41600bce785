"""What ranks cost, layer by layer, and which layers factors make no cheaper."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from compressor.channels.groups import ChannelGroup
from compressor.cost.layer_latency import LayerClock
from compressor.cost.rank_multiple import measure_rank_multiple
from compressor.cost.records import COST_WORDS
from compressor.cost.tables import Clock, cost_tables, saves_nothing
from compressor.errors import InputError
from compressor.files import user_cache_dir
from compressor.pipeline.channels.costs import GroupCosts, count_group_costs, time_group_costs
from compressor.pipeline.context import Context
from compressor.pipeline.delivery.measure import report_steps
from compressor.pipeline.stage import Stage
from compressor.pipeline.state import Costs, Decomposed, OrderedGroup, State, needed
from exporters.onnx import layer_bytes
from exporters.providers import PROVIDERS

LATENCY_CACHE = "layer-latency.json"


@dataclass(frozen=True)
class TabulateCosts(Stage):
    """Fills in `costs`; layers that no rank makes cheaper are left out of the search."""

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        parts = needed(state.decomposed, "layers with factors")
        multiple = choose_rank_multiple(context)
        tables = make_cost_tables(context, [part for part in parts if isinstance(part, Decomposed)])
        of_groups = make_group_costs(context, [part.layer for part in parts if isinstance(part, OrderedGroup)])
        tables |= of_groups.tables
        left = {name: why_left(context, table) for name, table in tables.items() if saves_nothing(table)}
        if len(left) == len(parts):
            raise InputError(f"no layer is left to compress: {next(iter(left.values()))}")
        return replace(state, costs=Costs(tables, multiple, left, of_groups.shared))


def choose_rank_multiple(context: Context) -> int:
    """Of what ranks are multiples: as set, as an earlier run measured, or as suits ONNX Runtime here."""
    if context.settings.rank_multiple is not None:
        return context.settings.rank_multiple
    earlier = context.earlier_search()
    if isinstance(earlier.get("rank multiple"), int):
        return int(earlier["rank multiple"])
    with context.progress.stage("latency of ranks") as stage:
        multiple, shares = measure_rank_multiple(
            context.settings.threads, PROVIDERS[context.settings.provider], report_steps(stage, "shapes")
        )
    gain = 100 - 100 * shares[multiple]
    found = f"multiples of {multiple}, {gain:.0f} % faster here than ranks at large" if multiple > 1 else "as they come"
    context.progress.log(f"ranks: {found}")
    return multiple


def make_cost_tables(context: Context, parts: Sequence[Decomposed]) -> dict[str, list[float]]:
    """Costs by layer; a resumed search keeps the times that were measured."""
    layers, cost = [part.layer for part in parts], context.settings.cost
    measured = context.earlier_search().get("milliseconds")
    if cost == "latency" and isinstance(measured, dict) and {layer.name for layer in layers} <= set(measured):
        return {layer.name: measured[layer.name] for layer in layers}
    factors = {part.layer.name: part.factors for part in parts}
    words = "latency of layers" if cost == "latency" else f"{COST_WORDS[cost]} of layers"
    example, clock = _example(context), _clock(context)
    with context.progress.stage(words, len(layers)) as stage:
        tables = cost_tables(cost, context.original, layers, factors, example, clock, stage.update)
    return {layer.name: table for layer, table in zip(layers, tables, strict=True)}


def make_group_costs(context: Context, groups: Sequence[ChannelGroup]) -> GroupCosts:
    """Costs of groups of layers by their hidden channels; a resumed search keeps the times that were measured."""
    if not groups:
        return GroupCosts({}, {})
    if context.settings.cost != "latency":
        return count_group_costs(context, groups)
    measured, shared = (context.earlier_search().get(key) for key in ("milliseconds", "shared milliseconds"))
    if isinstance(measured, dict) and isinstance(shared, list) and {group.name for group in groups} <= set(measured):
        tables = {group.name: measured[group.name] for group in groups}
        return GroupCosts(tables, {(first, second): whole for first, second, whole in shared})
    with context.progress.stage("latency of groups of layers", len(groups)) as stage:
        return time_group_costs(context, groups, _clock(context), _example(context), stage.update)


def _example(context: Context) -> Tensor:
    """As many inputs as one timed run takes; one where costs are counted."""
    count = context.settings.timed_batch if context.settings.cost == "latency" else 1
    return context.search_images.batch([n % len(context.search_images) for n in range(count)]).to(context.device)


def _clock(context: Context) -> Clock:
    clock = LayerClock(context.settings.threads, PROVIDERS[context.settings.provider], _latency_cache())

    def measure(key: str, modules: Sequence[nn.Module], value: Tensor) -> list[float]:
        return clock.measure(key, lambda: [layer_bytes(module, value) for module in modules], value.cpu().numpy())

    return measure


def _latency_cache() -> Path | None:
    try:
        return user_cache_dir() / LATENCY_CACHE
    except RuntimeError:  # no home directory
        return None


def why_left(context: Context, table: Sequence[float]) -> str:
    """The sentence on a layer that no rank makes cheaper; `table` is what it costs by rank, last when dense."""
    share = min(table[:-1]) / table[-1]
    return f"at best its factors cost {share:.2f} times as much {COST_WORDS[context.settings.cost]} as the layer itself"
