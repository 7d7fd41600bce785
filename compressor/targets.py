"""From a wish (half the size, at most one point lost) to the plan that keeps to it.

Sizes are known beforehand as functions of R, so that a limit of R is the search's target; times nearly so: a line
between measured ones. A drop is known only of a network that was built and recalibrated: the search's target is a
limit of L, which is moved until what was measured keeps to the wish. The search goes on each time with every look it
has made.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.latency import measure_latency
from benchmarks.size import count_params, file_bytes
from compressor.errors import InputError
from compressor.fidelity import FunctionNorm
from compressor.images import ImageSet
from compressor.job import Choice, Job, Realised, Wanted
from compressor.layers import factorised_ranks
from compressor.macs import count_macs
from compressor.network import build_candidate
from compressor.rank_search import RankSearch
from compressor.realise import realise
from compressor.records import COST_WORDS, WISH_OPTIONS, Cost, TargetRecord, TargetStep
from compressor.search.target import Target
from exporters.onnx import export_onnx

MAX_STEPS = 4
MOST_STEPS = 7  # while nothing keeps to the wish
FLOAT_BYTES = 4
# A step that keeps to the wish and uses this share of it is good enough.
GOOD_SHARE_OF_TIME, GOOD_SHARE_OF_DROP = 0.95, 0.85
CONFIDENCE_DEVIATIONS = 1.2816  # of a normal distribution, 90 % on one side
# First guess of the function norm before recalibration, over the output energy, that costs as many points as per cent;
# and how fast a drop rises with it (top-1 on ResNet-18 with its power 0.7). Measured steps replace both.
NORM_PER_POINT = 0.012
DROP_EXPONENT = 0.7
LARGEST_MOVE = 4.0
REST_OF_METADATA = 200


def reach_target(job: Job, search: RankSearch, norm: FunctionNorm) -> Realised:
    """The smallest network that keeps to the job's target, or for a size the one that loses least.

    Raises:
        InputError: the target cannot be reached, or the original keeps to it already.
    """
    wanted = job.settings.target
    assert wanted is not None
    if wanted.wish == "drop":
        return _Drop(job, search, norm, wanted).reach()
    return _Size(job, search, norm, wanted).reach()


# Sizes


@dataclass
class _Size:
    """A wish about size; `points` are ratios R with what the whole network then costs, known or measured."""

    job: Job
    search: RankSearch
    norm: FunctionNorm
    wanted: Wanted
    points: list[tuple[float, float]] = field(default_factory=list)

    def reach(self) -> Realised:
        cost = self.job.settings.cost
        with self.job.progress.stage(f"{COST_WORDS[cost]} of the original and at rank 1"):
            original = self._measure(self.job.teacher)
            smallest = self._measure(self._network(np.ones(self.search.space.num_dims, dtype=np.int64)))
        smallest += self._biases()
        unit = original if self.wanted.wish == "ratio" else 1.0
        asked = self.wanted.value * unit
        self._require_possible(asked / unit, smallest / unit, original / unit)
        ones = np.ones((1, self.search.space.num_dims), dtype=np.int64)
        lowest = float(self.search.space.ratio(ones)[0])
        # Counts rise with R as the layers' own do, times as they are found to.
        whole = original if cost == "latency" else smallest + (1.0 - lowest) * self.search.space.dense_cost
        self.points = [(lowest, smallest), (1.0, whole)]
        choice, steps = self._search(asked)
        realised = realise(self.job, choice, self.norm)
        reached = steps[-1].measured if cost == "latency" else self._measure(realised.network)
        record = TargetRecord(
            wish=self.wanted.wish,
            asked=self.wanted.value,
            reached=reached / unit,
            at_most=reached / unit,
            met=reached <= asked,
            steps=[
                step.model_copy(update={"measured": step.measured / unit, "at_most": step.at_most / unit})
                for step in steps
            ],
        )
        return replace(realised, target=record)

    def _search(self, asked: float) -> tuple[Choice, list[TargetStep]]:
        """The best plan that keeps to `asked`, last; times are measured, other costs known."""
        found: list[tuple[Choice, TargetStep]] = []
        for _ in range(MAX_STEPS):
            ratios, costs = np.array(sorted(self.points)).T
            limit = float(np.interp(asked, costs, ratios))
            choice = self.search.run(Target("ratio", limit))
            ratio = choice.ratio or 0.0
            cost = self._time(choice) if self.job.settings.cost == "latency" else self._line(ratio)
            found.append((choice, TargetStep(gamma=choice.gamma, ratio=ratio, measured=cost, at_most=cost)))
            if GOOD_SHARE_OF_TIME * asked <= cost <= asked or self.job.settings.cost != "latency":
                break
            self.points = _rising([*self.points, (ratio, cost)])
        found.sort(key=lambda row: (row[1].measured <= asked, row[1].measured))
        return found[-1][0], [step for _, step in found]

    def _line(self, ratio: float) -> float:
        ratios, costs = np.array(sorted(self.points)).T
        return float(np.interp(ratio, ratios, costs))

    def _time(self, choice: Choice) -> float:
        with self.job.progress.stage("latency of the plan"):
            return self._measure(self._network(np.array(choice.ranks)))

    def _network(self, ranks: np.ndarray) -> nn.Module:
        layers = [part.layer for part in self.search.parts]
        factors = {part.layer.name: part.factors for part in self.search.parts}
        return build_candidate(self.job.teacher, factors, factorised_ranks(layers, ranks.tolist()))

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
            names = {"ranks": json.dumps({part.layer.name: part.layer.cap for part in self.search.parts})}
            images = self.job.search_images.batch(slice(0, 2))
            export_onnx(network, images, path, {**names, "version": " " * REST_OF_METADATA}, self.job.settings.opset)
            return float(file_bytes(path)) if cost == "bytes" else self._milliseconds(path)

    def _milliseconds(self, path: Path) -> float:
        settings = self.job.settings
        record = measure_latency(path, path, self.job.example, threads=settings.threads, batch_size=settings.batch_size)
        return record.original_ms

    def _biases(self) -> float:
        """What biases that fitted factors may gain can cost, at most."""
        layers = [part.layer for part in self.search.parts]
        count = sum(layer.shape[0] for layer in layers if layer.module.bias is None)
        return float({"params": count, "bytes": FLOAT_BYTES * count}.get(self.job.settings.cost, 0))

    def _require_possible(self, asked: float, smallest: float, original: float) -> None:
        wish = self.wanted.wish
        if asked >= original:
            raise InputError(f"{_wish(self.wanted)} is no target: the original has {_figure(wish, original)}")
        if asked < smallest:
            raise InputError(
                f"{_wish(self.wanted)} cannot be reached: with every layer at rank 1 the network has "
                f"{_figure(wish, smallest)}"
            )


def _rising(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of a function that rises: noise of measurements must not turn it."""
    rows = sorted(points)
    costs = np.maximum.accumulate([cost for _, cost in rows])
    return [(ratio, float(cost)) for (ratio, _), cost in zip(rows, costs, strict=True)]


# Drops


@dataclass(frozen=True)
class _Try:
    """A realised plan, found for a limit of L."""

    limit: float
    realised: Realised
    step: TargetStep


class _Drop:
    """A wish about what is lost."""

    def __init__(self, job: Job, search: RankSearch, norm: FunctionNorm, wanted: Wanted) -> None:
        assert job.deciding is not None
        self._job = job
        self._search = search
        self._norm = norm
        self._wanted = wanted
        self._gauge = DropGauge(job.teacher, [job.search_images, job.deciding], job.device)

    def reach(self) -> Realised:
        asked, tries = self._wanted.value, list[_Try]()
        limit = NORM_PER_POINT * asked * self._norm.teacher_energy
        while len(tries) < MAX_STEPS or (len(tries) < MOST_STEPS and min(one.step.at_most for one in tries) > asked):
            tries.append(self._try(limit))
            self._say(tries[-1].step)
            if GOOD_SHARE_OF_DROP * asked <= tries[-1].step.at_most <= asked:
                break
            limit = next_limit([(one.limit, one.step.at_most) for one in tries], asked)
        best = max(tries, key=lambda one: _worth(one.step, asked))
        record = TargetRecord(
            wish="drop",
            asked=asked,
            reached=best.step.measured,
            at_most=best.step.at_most,
            met=best.step.at_most <= asked,
            labelled=self._gauge.is_labelled,
            images=self._gauge.num_images,
            image_passes=len(tries) * self._gauge.num_images,
            steps=[one.step for one in tries],
        )
        return replace(best.realised, target=record)

    def _try(self, limit: float) -> _Try:
        choice = self._search.run(Target("loss", limit))
        realised = realise(self._job, choice, self._norm)
        with self._job.progress.stage(f"measuring the drop on {self._gauge.num_images} images"):
            drop, at_most = self._gauge.measure(realised.network)
        step = TargetStep(gamma=choice.gamma, ratio=choice.ratio or 0.0, measured=drop, at_most=at_most)
        return _Try(limit, realised, step)

    def _say(self, step: TargetStep) -> None:
        what = "points of top-1" if self._gauge.is_labelled else "% of the output energy"
        self._job.progress.say(
            f"at ratio {step.ratio:.3f} the network loses {step.measured:.2f} {what}, at most {step.at_most:.2f}"
        )


class DropGauge:
    """What a network loses against the original, on images that neither fitted nor recalibrated it.

    With labels that fit the outputs, points of top-1; without, the function norm in per cent of the output energy.
    """

    def __init__(self, teacher: nn.Module, images: Sequence[ImageSet], device: torch.device) -> None:
        self._norms = [FunctionNorm(teacher, part, device) for part in images if len(part)]
        self.num_images = sum(len(norm.images) for norm in self._norms)
        outputs = self._norms[0].targets.shape[1]
        self.is_labelled = all(usable_labels(norm.images, outputs) is not None for norm in self._norms)
        energies = [norm.teacher_energy * len(norm.images) for norm in self._norms]
        self._energy = sum(energies) / self.num_images

    def measure(self, network: nn.Module) -> tuple[float, float]:
        """The drop, and what it is at most with 90 % confidence."""
        losses = np.concatenate([self._losses(norm, network) for norm in self._norms])
        return upper_mean(losses, padded=self.is_labelled)

    def _losses(self, norm: FunctionNorm, network: nn.Module) -> np.ndarray:
        every = torch.arange(len(norm.images))
        outputs = norm.outputs(network, every)
        labels = usable_labels(norm.images, outputs.shape[1]) if self.is_labelled else None
        if labels is None:
            return np.asarray(100 * norm.compare(outputs, every) / self._energy)
        before, after = (rows.cpu().argmax(1) == labels for rows in (norm.targets, outputs))
        return np.asarray(100.0 * (before.double() - after.double()).numpy())


def usable_labels(images: ImageSet, num_outputs: int) -> Tensor | None:
    """Labels (N,) that speak of the network's outputs; None where there are none, or of another number of classes."""
    if images.labels is None or (images.class_names is not None and len(images.class_names) != num_outputs):
        return None
    return images.labels


def upper_mean(losses: np.ndarray, padded: bool) -> tuple[float, float]:
    """Mean of losses (n,), and its upper bound with 90 % confidence.

    `padded`: losses are -100, 0 or 100; one image more that gains and one that loses keep the bound honest where few
    images change (Agresti and Min 2005, for differences of paired proportions).
    """
    rows = np.append(losses, [100.0, -100.0]) if padded else losses
    bound = rows.mean() + CONFIDENCE_DEVIATIONS * rows.std(ddof=1) / len(rows) ** 0.5
    return float(losses.mean()), float(bound)


def next_limit(tried: Sequence[tuple[float, float]], asked: float) -> float:
    """The limit of L to try next, from (limit, drop at most) of earlier ones.

    Between one that kept to `asked` and one that did not, by their logarithms; beyond them, by a power law.
    """
    floor = asked / 1000
    kept = max((row for row in tried if row[1] <= asked), default=None)
    broken = min((row for row in tried if row[1] > asked), default=None)
    if kept and broken and kept[0] < broken[0]:
        (low, at_low), (high, at_high) = ((np.log(limit), np.log(max(drop, floor))) for limit, drop in (kept, broken))
        share = (np.log(GOOD_SHARE_OF_DROP**0.5 * asked) - at_low) / (at_high - at_low)
        return float(np.exp(low + np.clip(share, 0.2, 0.8) * (high - low)))
    limit, drop = kept if kept and not broken else min(tried)
    move = (GOOD_SHARE_OF_DROP**0.5 * asked / max(drop, floor)) ** (1 / DROP_EXPONENT)
    return float(limit * np.clip(move, 1 / LARGEST_MOVE, LARGEST_MOVE))


def _worth(step: TargetStep, asked: float) -> tuple[bool, float]:
    """Those that keep to the wish first, the smaller the better; then those that nearly do."""
    kept = step.at_most <= asked
    return kept, -step.ratio if kept else -step.at_most


# Words


def _wish(wanted: Wanted) -> str:
    return f"{WISH_OPTIONS[wanted.wish]} {wanted.value:g}"


def _figure(wish: str, value: float) -> str:
    if wish == "ratio":
        return f"a ratio of {value:.4f}"
    units = {"bytes": "bytes in its file", "macs": "multiply-accumulates", "latency": "ms"}
    return f"{value:.2f} {units[wish]}" if wish == "latency" else f"{value:,.0f} {units[wish]}"
