"""The most faithful network within a size.

A size is known beforehand as a function of R, so that a limit of R is what the search is given; a time nearly so, as a
line between measured ones.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from compressor.arrays import FLOAT_BYTES
from compressor.cost.latency import LatencySettings, measure_latency
from compressor.cost.records import COST_WORDS, Cost
from compressor.cost.size import count_params, file_bytes
from compressor.errors import InputError
from compressor.files import scratch_folder
from compressor.network.macs import count_macs
from compressor.pipeline.context import Context
from compressor.pipeline.delivery.interface import file_batch, provenance, write_file
from compressor.pipeline.outputs import MODEL
from compressor.pipeline.settings import Target
from compressor.pipeline.stage import Stage
from compressor.pipeline.stages.build import build
from compressor.pipeline.stages.search_ranks import RankSearch
from compressor.pipeline.state import BuiltNetwork, OrderedGroup, Part, SearchResult, State, needed
from compressor.search.records import TARGET_OPTIONS, TargetRecord, TargetStep
from compressor.search.target.target import SearchTarget
from exporters.providers import PROVIDERS

MAX_STEPS = 4
GOOD_SHARE_OF_TIME = 0.95  # a step that meets the target and uses this share of it is good enough
METADATA_OF_PLAN = {"gamma": " " * 24, "prune_fraction": " " * 24}  # as long as numbers get


@dataclass(frozen=True)
class MeetSize(Stage):
    """Searches for the plan within the target that loses least, and builds it.

    Fills in what `SearchAndBuild` does, and `target`.

    Raises:
        InputError: the target cannot be met, or the original meets it already.
    """

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        with RankSearch(context, state) as search:
            return state.with_built(_Size(context, search, needed(context.settings.target, "a target")).reach())


@dataclass
class _Size:
    """A target of size; `points` are ratios R with what the whole network then costs, known or measured."""

    context: Context
    search: RankSearch
    wanted: Target
    points: list[tuple[float, float]] = field(default_factory=list)

    def reach(self) -> BuiltNetwork:
        cost = self.context.settings.cost
        with self.context.progress.stage(f"{COST_WORDS[cost]} of the original and at rank 1"):
            original = self._measure(self.context.original)
            smallest = self._measure(self.search.build(np.ones(self.search.space.num_dims, dtype=np.int64)))
        smallest += self._biases()
        unit = original if self.wanted.kind == "ratio" else 1.0
        asked = self.wanted.value * unit
        self._require_possible(asked / unit, smallest / unit, original / unit)
        ones = np.ones((1, self.search.space.num_dims), dtype=np.int64)
        lowest = float(self.search.space.ratio(ones)[0])
        # Counts rise with R as the layers' own do, times as they are found to.
        whole = original if cost == "latency" else smallest + (1.0 - lowest) * self.search.space.dense_cost
        self.points = [(lowest, smallest), (1.0, whole)]
        result, steps = self._search(asked)
        built = build(self.context, result, self.search.norm)
        reached = steps[-1].measured if cost == "latency" else self._measure(built.network)
        record = TargetRecord(
            kind=self.wanted.kind,
            asked=self.wanted.value,
            reached=reached / unit,
            at_most=reached / unit,
            met=reached <= asked,
            steps=[
                step.model_copy(update={"measured": step.measured / unit, "at_most": step.at_most / unit})
                for step in steps
            ],
        )
        return replace(built, target=record)

    def _search(self, asked: float) -> tuple[SearchResult, list[TargetStep]]:
        """The best plan that keeps to `asked`, or the nearest to it, last; times are measured, other costs known."""
        found: list[tuple[SearchResult, TargetStep]] = []
        for _ in range(MAX_STEPS):
            ratios, costs = np.array(sorted(self.points)).T
            limit = float(np.interp(asked, costs, ratios))
            result = self.search.run(SearchTarget("ratio", limit))
            ratio = result.ratio or 0.0
            cost = self._time(result) if self.context.settings.cost == "latency" else self._line(ratio)
            found.append((result, TargetStep(gamma=result.gamma, ratio=ratio, measured=cost, at_most=cost)))
            if GOOD_SHARE_OF_TIME * asked <= cost <= asked or self.context.settings.cost != "latency":
                break
            self.points = _rising([*self.points, (ratio, cost)])
        found.sort(key=lambda row: _worth(row[1].measured, asked))
        return found[-1][0], [step for _, step in found]

    def _line(self, ratio: float) -> float:
        ratios, costs = np.array(sorted(self.points)).T
        return float(np.interp(ratio, ratios, costs))

    def _time(self, result: SearchResult) -> float:
        with self.context.progress.stage("latency of the plan"):
            return self._measure(self.search.build(np.array(result.ranks)))

    def _measure(self, network: nn.Module) -> float:
        """What the whole network costs: counted, or measured as the file that it becomes."""
        cost: Cost = self.context.settings.cost
        if cost == "params":
            return float(count_params(network))
        if cost == "macs":
            return float(count_macs(network, self.context.example)[0])
        with scratch_folder() as folder:
            path = Path(folder) / MODEL
            # What files say of where they come from takes room, too.
            metadata = {
                **provenance(self.context),
                **METADATA_OF_PLAN,
                "ranks": json.dumps({part.layer.name: part.layer.break_even_rank for part in self.search.parts}),
            }
            write_file(self.context, network, path, metadata)
            return float(file_bytes(path)) if cost == "bytes" else self._milliseconds(path)

    def _milliseconds(self, path: Path) -> float:
        settings = self.context.settings
        example = file_batch(self.context, self.context.search_images, slice(0, 1))
        timing = LatencySettings(PROVIDERS[settings.provider], settings.threads, settings.timed_batch)
        return measure_latency(path, path, example, timing).original_ms

    def _biases(self) -> float:
        """What biases that fitted factors may gain can cost, at most."""
        count = sum(_num_new_biases(part, self.context.original) for part in self.search.parts)
        return float({"params": count, "bytes": FLOAT_BYTES * count}.get(self.context.settings.cost, 0))

    def _require_possible(self, asked: float, smallest: float, original: float) -> None:
        kind = self.wanted.kind
        if asked >= original:
            raise InputError(
                f"{_describe_target(self.wanted)} is no target: the original has {_figure(kind, original)}"
            )
        if asked < smallest:
            raise InputError(
                f"{_describe_target(self.wanted)} cannot be reached: with every layer at rank 1 the network has "
                f"{_figure(kind, smallest)}"
            )


def _num_new_biases(part: Part, original: nn.Module) -> int:
    """How many biases the fitted layers of a part may gain."""
    if not isinstance(part, OrderedGroup):
        return part.layer.shape[0] if part.layer.module.bias is None else 0
    readers: list[Any] = [original.get_submodule(row.name) for row in part.layer.readers if row.norm is None]
    return sum(len(reader.weight) for reader in readers if reader.bias is None)


def _worth(measured: float, asked: float) -> tuple[bool, float]:
    """By what plans are compared: the largest that keeps to the target, else the one that misses it least."""
    return measured <= asked, measured if measured <= asked else -measured


def _rising(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of a function that rises: noise of measurements must not turn it."""
    rows = sorted(points)
    costs = np.maximum.accumulate([cost for _, cost in rows])
    return [(ratio, float(cost)) for (ratio, _), cost in zip(rows, costs, strict=True)]


# Words


def _describe_target(wanted: Target) -> str:
    return f"{TARGET_OPTIONS[wanted.kind]} {wanted.value:g}"


def _figure(kind: str, value: float) -> str:
    if kind == "ratio":
        return f"a ratio of {value:.4f}"
    units = {"bytes": "bytes in its file", "macs": "multiply-accumulates", "latency": "ms"}
    return f"{value:.2f} {units[kind]}" if kind == "latency" else f"{value:,.0f} {units[kind]}"
