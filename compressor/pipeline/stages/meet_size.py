"""From a wish (half the size, at most one point lost) to the plan that keeps to it.

Sizes are known beforehand as functions of R, so that a limit of R is the search's target; times nearly so: a line
between measured ones. Drops are in `drops`.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import nn

from compressor.cost.latency import measure_latency
from compressor.cost.records import COST_WORDS, Cost, LatencyRecord
from compressor.cost.size import count_params, file_bytes
from compressor.errors import InputError
from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.macs import count_macs
from compressor.pipeline.settings import Target
from compressor.pipeline.stages.build import build
from compressor.pipeline.stages.meet_drop import reach_drop
from compressor.pipeline.stages.search_ranks import RankSearch
from compressor.pipeline.state import BuiltNetwork, Job, SearchResult
from compressor.search.records import TARGET_OPTIONS, TargetRecord, TargetStep
from compressor.search.target.target import SearchTarget
from exporters.onnx import export_onnx
from exporters.providers import PROVIDERS

MAX_STEPS = 4
FLOAT_BYTES = 4
GOOD_SHARE_OF_TIME = 0.95  # a step that keeps to the wish and uses this share of it is good enough
REST_OF_METADATA = 200


def reach_target(job: Job, search: RankSearch, norm: FunctionNorm) -> BuiltNetwork:
    """The smallest network that keeps to the job's target, or for a size the one that loses least.

    Raises:
        InputError: the target cannot be reached, or the original keeps to it already.
    """
    wanted = job.settings.target
    assert wanted is not None
    if wanted.kind == "drop":
        return reach_drop(job, search, norm, wanted)
    return _Size(job, search, norm, wanted).reach()


def with_last_timing(target: TargetRecord, cost: Cost, last: LatencyRecord | None) -> TargetRecord:
    """A target of time judged by the delivered file's latency; any other as it is."""
    if cost != "latency" or target.kind not in ("latency", "ratio") or last is None:
        return target
    reached = last.compressed_ms if target.kind == "latency" else last.ratio
    return target.model_copy(update={"reached": reached, "at_most": reached, "met": reached <= target.asked})


# Sizes


@dataclass
class _Size:
    """A wish about size; `points` are ratios R with what the whole network then costs, known or measured."""

    job: Job
    search: RankSearch
    norm: FunctionNorm
    wanted: Target
    points: list[tuple[float, float]] = field(default_factory=list)

    def reach(self) -> BuiltNetwork:
        cost = self.job.settings.cost
        with self.job.progress.stage(f"{COST_WORDS[cost]} of the original and at rank 1"):
            original = self._measure(self.job.original)
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
        built = build(self.job, result, self.norm)
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
        """The best plan that keeps to `asked`, last; times are measured, other costs known."""
        found: list[tuple[SearchResult, TargetStep]] = []
        for _ in range(MAX_STEPS):
            ratios, costs = np.array(sorted(self.points)).T
            limit = float(np.interp(asked, costs, ratios))
            result = self.search.run(SearchTarget("ratio", limit))
            ratio = result.ratio or 0.0
            cost = self._time(result) if self.job.settings.cost == "latency" else self._line(ratio)
            found.append((result, TargetStep(gamma=result.gamma, ratio=ratio, measured=cost, at_most=cost)))
            if GOOD_SHARE_OF_TIME * asked <= cost <= asked or self.job.settings.cost != "latency":
                break
            self.points = _rising([*self.points, (ratio, cost)])
        found.sort(key=lambda row: (row[1].measured <= asked, row[1].measured))
        return found[-1][0], [step for _, step in found]

    def _line(self, ratio: float) -> float:
        ratios, costs = np.array(sorted(self.points)).T
        return float(np.interp(ratio, ratios, costs))

    def _time(self, result: SearchResult) -> float:
        with self.job.progress.stage("latency of the plan"):
            return self._measure(self.search.build(np.array(result.ranks)))

    def _measure(self, network: nn.Module) -> float:
        """What the whole network costs: counted, or measured as the file that it becomes."""
        cost: Cost = self.job.settings.cost
        if cost == "params":
            return float(count_params(network))
        if cost == "macs":
            return float(count_macs(network, self.job.example)[0])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            # What files say of where they come from takes room, too.
            names = {"ranks": json.dumps({part.layer.name: part.layer.break_even_rank for part in self.search.parts})}
            images = self.job.search_images.batch(slice(0, 2))
            export_onnx(network, images, path, {**names, "version": " " * REST_OF_METADATA}, self.job.settings.opset)
            return float(file_bytes(path)) if cost == "bytes" else self._milliseconds(path)

    def _milliseconds(self, path: Path) -> float:
        settings, example = self.job.settings, self.job.example
        provider, threads, count = PROVIDERS[settings.provider], settings.threads, settings.batch_size
        record = measure_latency(path, path, example, provider, threads=threads, batch_size=count)
        return record.original_ms

    def _biases(self) -> float:
        """What biases that fitted factors may gain can cost, at most."""
        layers = [part.layer for part in self.search.parts]
        count = sum(layer.shape[0] for layer in layers if layer.module.bias is None)
        return float({"params": count, "bytes": FLOAT_BYTES * count}.get(self.job.settings.cost, 0))

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
