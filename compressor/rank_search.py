"""From layers to the plan: factors for each, what each rank costs, and the search with its journal."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.layer_latency import LayerClock
from benchmarks.rank_steps import measure_rank_multiple
from benchmarks.sessions import PROVIDERS
from compressor.architectures import user_cache_dir
from compressor.costs import cost_tables, saves_nothing
from compressor.decompose import RIVALS, Decomposed, Decomposer, energies_of, weight_factors
from compressor.errors import InputError
from compressor.fidelity import FunctionNorm, Losses
from compressor.files import prepare_folder
from compressor.hashing import hash_images, hash_tensors
from compressor.job import JOURNAL, Choice, Job, Settings
from compressor.layers import FoundLayer, compressible, factorised_ranks, with_method
from compressor.linearise import Lineariser
from compressor.network import Candidates, build_candidate
from compressor.objective import Objective, default_gamma
from compressor.plan import make_plan
from compressor.precision import tell
from compressor.prune import count_prunable, pruned_copy
from compressor.records import COST_WORDS, FactorChoice, FactorKind, FrontRecord, Method, Plan, SearchRecord
from compressor.risk import Risk, make_measure
from compressor.search.journal import Journal, stored_header
from compressor.search.loop import Search
from compressor.search.space import Ranks, RankSpace
from compressor.search.sparsity import SparsitySpace
from compressor.search.target import Target
from compressor.search.workers import Evaluate, Workers
from compressor.summary import early_warnings
from exporters.onnx import layer_bytes

PLANS = "plans"
LATENCY_CACHE = "layer-latency.json"


class RankSearch:
    """The search of one job, prepared; workers live as long as the `with` block around it.

    Args:
        norm: the function norm on the images that search and choices of factors may see.
        resume: go on from the journal in the job's folder.

    Raises:
        InputError: nothing to compress, or a journal that is not this job's.
    """

    def __init__(self, job: Job, norm: FunctionNorm, resume: bool) -> None:
        found = compressible(job.layers)
        if not found:
            raise InputError("no layer is left to compress; `bocompress inspect` lists the reasons")
        self._job = job
        settings = job.settings
        self._measure = measure = make_measure(norm, settings.fidelity)
        self._gamma = settings.gamma if settings.gamma is not None else default_gamma(measure.loss_when_lost)
        for warning in early_warnings(job, self._gamma, measure.loss_when_lost):
            job.progress.say(f"note: {warning}")
        self._workers = _workers(settings)
        prepare_folder(job.folder)
        self._earlier = stored_header(job.folder / JOURNAL) if resume else {}
        self._resume = resume
        self._every_part = _parts(job, found, norm, self._earlier)
        self._multiple = _rank_multiple(job, self._earlier)
        self._tables = _cost_tables(job, self._every_part, self._earlier)
        self._left = {name: _why_left(job, table) for name, table in self._tables.items() if saves_nothing(table)}
        self.parts = [part for part in self._every_part if part.layer.name not in self._left]
        if not self.parts:
            raise InputError(f"no layer is left to compress: {next(iter(self._left.values()))}")
        names = [part.layer.name for part in self.parts]
        tables = [self._tables[name] for name in names]
        self.space = RankSpace(names, tables, settings.search.coordinates, self._multiple)
        if settings.prune_fraction is None:
            searched = sum(part.layer.params for part in self.parts)
            self.space = SparsitySpace(self.space, count_prunable(job.teacher) - searched)
        factors = {part.layer.name: part.factors for part in self.parts}
        self._linearise = Lineariser(norm, job.teacher, [part.layer for part in self.parts], factors)
        self._search: Search | None = None

    def __enter__(self) -> "RankSearch":
        self._workers.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.__exit__()

    @property
    def target(self) -> Target | None:
        """What gamma is found for, as far as the search has learnt it."""
        return None if self._search is None else self._search.target

    def begin(self, target: Target) -> Choice | None:
        """The plan that the start leads to before its last step; None where it takes none."""
        search = self._prepare_search(target)
        if not search.takes_steps:
            return None
        self._search = search
        return self._choice(search.begin)

    def run(self, target: Target | None = None) -> Choice:
        """The plan found; called again, or after `begin`, it goes on for another target."""
        if self._search is not None and target is not None:
            return self._choice(functools.partial(self._search.aim_at, target))
        self._search = self._prepare_search(target)
        return self._choice(self._search.run)

    def build(self, ranks: Ranks) -> nn.Module:
        """The network at ranks (d,), before any pruning; it shares tensors with the original."""
        factors = {part.layer.name: part.factors for part in self.parts}
        kept = factorised_ranks([part.layer for part in self.parts], self.space.layer_ranks(ranks).tolist())
        return build_candidate(self._job.teacher, factors, kept)

    def _choice(self, search: Callable[[], tuple[Ranks, SearchRecord]]) -> Choice:
        assert self._search is not None
        with self._job.progress.stage("searching ranks", self._job.settings.search.max_evaluations) as stage:
            self._stage = stage
            ranks, record = search()
        front = [(self._plan(found.ranks, "seen by the search"), found) for found in self._search.front()]
        files = [f"{PLANS}/{number:02d}-ratio-{found.ratio:.4f}.json" for number, (_, found) in enumerate(front, 1)]
        rows = [
            FrontRecord(
                file=file,
                ratio=found.ratio,
                function_norm=max(found.function_norm, 0.0),
                function_norm_sd=found.function_norm_sd,
            )
            for file, (_, found) in zip(files, front, strict=True)
        ]
        plan, gamma = self._plan(ranks, "chosen by the search"), self._search.objective.gamma
        record = record.model_copy(update={"front": rows})
        return replace(
            make_choice(self.parts, self.space.layer_ranks(ranks).tolist(), gamma, plan, record, self._multiple),
            cost=self._job.settings.cost,
            ratio=float(self.space.ratio(ranks[None])[0]),
            believed_loss=self._search.believed_loss(ranks),
            left=self._left,
            front=dict(zip(files, [plan for plan, _ in front], strict=True)),
        )

    def _prepare_search(self, target: Target | None) -> Search:
        job = self._job
        header = _fingerprint(job, self._every_part, self._gamma, self._multiple, self._tables)
        return Search(
            self.space,
            Objective(self._gamma, job.settings.form),
            _evaluation(self._measure, job.teacher, self.parts, self.space),
            len(job.search_images),
            job.settings.search,
            Journal(job.folder / JOURNAL, header, self._resume),
            on_look=lambda count, text: self._stage.update(count, text),
            workers=self._workers,
            target=target,
            law=self._measure.law,
            linearise=self._linearise,
            energies=self._energies(),
        )

    def _energies(self) -> list[np.ndarray]:
        """What the weight's own factors give up, where the prior mean is made of that."""
        if self._job.settings.search.prior_mean != "energies":
            return []
        layers = [part.layer for part in self.parts]
        return [energies_of(layer, weight_factors(layer)) for layer in layers]

    def _plan(self, ranks: Ranks, why: str) -> Plan:
        assert self._search is not None
        layers, kinds = [part.layer for part in self.parts], {part.layer.name: part.kind for part in self.parts}
        gamma, settings, arch = self._search.objective.gamma, self._job.settings, self._job.source.arch
        fraction = settings.prune_fraction
        if fraction is None:
            fraction = self.space.prune_fraction(ranks)
        chosen = self.space.layer_ranks(ranks).tolist()
        return make_plan(layers, chosen, kinds, arch, gamma, fraction, settings.fidelity, why)


def _evaluation(
    measure: FunctionNorm | Risk, teacher: nn.Module, parts: Sequence[Decomposed], space: RankSpace
) -> Evaluate:
    """A function of its own, so that workers are sent what it needs alone."""
    layers = [part.layer for part in parts]
    candidates = Candidates(teacher, {part.layer.name: part.factors for part in parts})

    def evaluate(ranks: Ranks, indices: np.ndarray) -> Losses:
        candidate = candidates.build(factorised_ranks(layers, space.layer_ranks(ranks)))
        return measure.losses(pruned_copy(candidate, space.prune_fraction(ranks)), indices)

    return evaluate


def decompose_layers(
    job: Job,
    layers: Sequence[FoundLayer],
    norm: FunctionNorm,
    kinds: Mapping[str, FactorKind],
    rivals: tuple[Method, ...] = (),
) -> list[Decomposed]:
    """Factors for `layers`, as the job wants them (see `Decomposer`)."""
    with job.progress.stage("factorising layers", len(layers)) as stage:
        decomposer = Decomposer(
            model=job.teacher,
            calibration=job.calibration,
            judge=norm,
            device=job.device,
            choice=_factor_choice(job),
            kinds=kinds,
            rivals=rivals,
            seed=job.settings.search.seed,
            on_step=stage.update,
        )
        return decomposer.run(layers)


def _factor_choice(job: Job) -> FactorChoice:
    """On drawn images other factors look better than they are (docs/results.md), and the search would believe it."""
    choice = job.settings.factors or "auto"
    return "weight" if choice == "auto" and job.calibration.drawn else choice


def make_choice(
    parts: Sequence[Decomposed],
    ranks: Sequence[int],
    gamma: float,
    plan: Plan,
    search: SearchRecord | None = None,
    rank_multiple: int = 1,
) -> Choice:
    """The plan at `ranks` with the factors that realise it."""
    return Choice(
        layers=[part.layer for part in parts],
        ranks=list(ranks),
        factors={part.layer.name: part.factors for part in parts},
        kinds={part.layer.name: part.kind for part in parts},
        gamma=gamma,
        search=search,
        rank_multiple=rank_multiple,
        plan=plan,
    )


def _workers(settings: Settings) -> Workers:
    """The workers that evaluate candidates; each process takes its share of the threads that torch has here."""
    share = max(1, torch.get_num_threads() // settings.workers)
    return Workers(settings.workers, settings.backend, functools.partial(torch.set_num_threads, share))


def _parts(job: Job, found: Sequence[FoundLayer], norm: FunctionNorm, earlier: Mapping[str, Any]) -> list[Decomposed]:
    """The layers decomposed; a resumed search keeps the methods and factors that were measured to be best."""
    rows = earlier.get("layers")
    try:
        chosen = {name: (method, kind) for name, method, _, kind in rows or []}
        layers = [with_method(layer, chosen[layer.name][0]) for layer in found]
        kinds: dict[str, FactorKind] = {name: kind for name, (_, kind) in chosen.items()}
    except (KeyError, TypeError, ValueError):  # no journal, or one that will be refused
        return decompose_layers(job, found, norm, {}, () if earlier else RIVALS.get(job.settings.method, ()))
    return decompose_layers(job, layers, norm, kinds)


def _rank_multiple(job: Job, earlier: Mapping[str, Any]) -> int:
    if job.settings.rank_multiple is not None:
        return job.settings.rank_multiple
    if isinstance(earlier.get("rank multiple"), int):
        return int(earlier["rank multiple"])
    with job.progress.stage("latency of ranks") as stage:
        multiple, shares = measure_rank_multiple(
            job.settings.threads, PROVIDERS[job.settings.provider], tell(stage, "shapes")
        )
    gain = 100 - 100 * shares[multiple]
    found = f"multiples of {multiple}, {gain:.0f} % faster here than ranks at large" if multiple > 1 else "as they come"
    job.progress.say(f"ranks: {found}")
    return multiple


def _cost_tables(job: Job, parts: Sequence[Decomposed], earlier: Mapping[str, Any]) -> dict[str, list[float]]:
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
        tables = cost_tables(cost, job.teacher, layers, factors, example.to(job.device), measure, stage.update)
    return {layer.name: table for layer, table in zip(layers, tables, strict=True)}


def _latency_cache() -> Path | None:
    try:
        return user_cache_dir() / LATENCY_CACHE
    except RuntimeError:  # no home directory
        return None


def _why_left(job: Job, table: Sequence[float]) -> str:
    share = min(table[:-1]) / table[-1]
    return f"at best its factors cost {share:.2f} times as much {COST_WORDS[job.settings.cost]} as the layer itself"


def _fingerprint(
    job: Job, parts: Sequence[Decomposed], gamma: float, multiple: int, tables: Mapping[str, list[float]]
) -> dict[str, Any]:
    """What the search depends on; a journal with another fingerprint is refused."""
    settings, labels = job.settings, job.search_images.labels
    by_drop = settings.target is not None and settings.target.wish == "drop"
    judged_by_labels = settings.fidelity != "norm" or by_drop
    searching = asdict(settings.search)
    # Budgets only say when to stop: a resumed search may be given more.
    del searching["max_evaluations"], searching["max_seconds"]
    return {
        "journal_version": 10,
        "weights": hash_tensors(job.teacher.state_dict().values()),
        "images": hash_images(job.search_images),
        "calibration": hash_images(job.calibration),
        "layers": [[part.layer.name, part.layer.method, part.layer.cap, part.kind] for part in parts],
        "method": settings.method,
        "factors": settings.factors,
        "rank multiple": multiple,
        "gamma": None if settings.target else gamma,
        "target": asdict(settings.target) if settings.target else None,
        "form": settings.form,
        "fidelity": settings.fidelity,
        "sparsity": "searched" if settings.prune_fraction is None else None,
        "recalibrate": settings.recalibrate if by_drop else None,
        "pruned": settings.prune_fraction if by_drop else None,
        "deciding images": hash_images(job.deciding) if by_drop and job.deciding is not None else None,
        "labels": labels.tolist() if judged_by_labels and labels is not None else None,
        "cost": settings.cost,
        "provider": settings.provider if settings.cost == "latency" or settings.rank_multiple is None else None,
        "milliseconds": tables if settings.cost == "latency" else None,
        "search settings": searching,
    }
