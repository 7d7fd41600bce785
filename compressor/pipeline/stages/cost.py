"""TODO docstring."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compressor.cost.layer_latency import LayerClock
from compressor.cost.rank_multiple import measure_rank_multiple
from compressor.cost.records import COST_WORDS
from compressor.cost.tables import cost_tables
from compressor.files import user_cache_dir
from compressor.pipeline.stages.factorize import Decomposed
from compressor.pipeline.stages.quantize import log
from compressor.pipeline.state import Job
from exporters.onnx import layer_bytes
from exporters.providers import PROVIDERS

LATENCY_CACHE = "layer-latency.json"


def choose_rank_multiple(job: Job, earlier: Mapping[str, Any]) -> int:
    if job.settings.rank_multiple is not None:
        return job.settings.rank_multiple
    if isinstance(earlier.get("rank multiple"), int):
        return int(earlier["rank multiple"])
    with job.progress.stage("latency of ranks") as stage:
        multiple, shares = measure_rank_multiple(
            job.settings.threads, PROVIDERS[job.settings.provider], log(stage, "shapes")
        )
    gain = 100 - 100 * shares[multiple]
    found = f"multiples of {multiple}, {gain:.0f} % faster here than ranks at large" if multiple > 1 else "as they come"
    job.progress.log(f"ranks: {found}")
    return multiple


def make_cost_tables(job: Job, parts: Sequence[Decomposed], earlier: Mapping[str, Any]) -> dict[str, list[float]]:
    """Costs by layer; a resumed search keeps the times that were measured."""
    layers, cost = [part.layer for part in parts], job.settings.cost
    measured = earlier.get("milliseconds")
    if cost == "latency" and isinstance(measured, dict) and {layer.name for layer in layers} <= set(measured):
        return {layer.name: measured[layer.name] for layer in layers}
    clock = LayerClock(job.settings.threads, PROVIDERS[job.settings.provider], _latency_cache())

    def measure(key: str, modules: Sequence[nn.Module], value: Tensor) -> list[float]:
        return clock.measure(key, lambda: [layer_bytes(module, value) for module in modules], value.cpu().numpy())

    count = job.settings.batch_size if cost == "latency" else 1
    example = job.search_images.batch([number % len(job.search_images) for number in range(count)])
    factors = {part.layer.name: part.factors for part in parts}
    words = "latency of layers" if cost == "latency" else f"{COST_WORDS[cost]} of layers"
    with job.progress.stage(words, len(layers)) as stage:
        tables = cost_tables(cost, job.original, layers, factors, example.to(job.device), measure, stage.update)
    return {layer.name: table for layer, table in zip(layers, tables, strict=True)}


def _latency_cache() -> Path | None:
    try:
        return user_cache_dir() / LATENCY_CACHE
    except RuntimeError:  # no home directory
        return None


def why_left(job: Job, table: Sequence[float]) -> str:
    share = min(table[:-1]) / table[-1]
    return f"at best its factors cost {share:.2f} times as much {COST_WORDS[job.settings.cost]} as the layer itself"
