"""What ranks cost, layer by layer, and which layers factors make no cheaper."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from compressor.cost.layer_latency import LayerClock
from compressor.cost.rank_multiple import measure_rank_multiple
from compressor.cost.records import COST_WORDS
from compressor.cost.tables import cost_tables, saves_nothing
from compressor.errors import InputError
from compressor.files import user_cache_dir
from compressor.pipeline.context import Context
from compressor.pipeline.delivery.measure import report_steps
from compressor.pipeline.stage import Stage
from compressor.pipeline.state import Costs, Decomposed, State, needed
from exporters.onnx import layer_bytes
from exporters.providers import PROVIDERS

LATENCY_CACHE = "layer-latency.json"


@dataclass(frozen=True)
class TabulateCosts(Stage):
    """Fills in `costs`; layers that no rank makes cheaper are left out of the search."""

    def run(self, context: Context, state: State) -> State:
        parts = needed(state.decomposed, "layers with factors")
        multiple = choose_rank_multiple(context)
        tables = make_cost_tables(context, parts)
        left = {name: why_left(context, table) for name, table in tables.items() if saves_nothing(table)}
        if len(left) == len(parts):
            raise InputError(f"no layer is left to compress: {next(iter(left.values()))}")
        return replace(state, costs=Costs(tables, multiple, left))


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
    clock = LayerClock(context.settings.threads, PROVIDERS[context.settings.provider], _latency_cache())

    def measure(key: str, modules: Sequence[nn.Module], value: Tensor) -> list[float]:
        return clock.measure(key, lambda: [layer_bytes(module, value) for module in modules], value.cpu().numpy())

    count = context.settings.timed_batch if cost == "latency" else 1
    example = context.search_images.batch([number % len(context.search_images) for number in range(count)])
    factors = {part.layer.name: part.factors for part in parts}
    words = "latency of layers" if cost == "latency" else f"{COST_WORDS[cost]} of layers"
    with context.progress.stage(words, len(layers)) as stage:
        tables = cost_tables(cost, context.original, layers, factors, example.to(context.device), measure, stage.update)
    return {layer.name: table for layer, table in zip(layers, tables, strict=True)}


def _latency_cache() -> Path | None:
    try:
        return user_cache_dir() / LATENCY_CACHE
    except RuntimeError:  # no home directory
        return None


def why_left(context: Context, table: Sequence[float]) -> str:
    share = min(table[:-1]) / table[-1]
    return f"at best its factors cost {share:.2f} times as much {COST_WORDS[context.settings.cost]} as the layer itself"
