"""From layers to the plan: factors for each, what each rank costs, and the search with its journal."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from compressor.arrays import Ranks
from compressor.cost.tables import saves_nothing
from compressor.data.fingerprint import hash_images, hash_tensors
from compressor.errors import InputError
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.linearization import Linearizer
from compressor.fidelity.losses import Losses
from compressor.fidelity.risk import Risk, make_measure
from compressor.files import prepare_folder
from compressor.network.layers import compressible, factorized_ranks
from compressor.network.pruning import count_prunable, pruned_copy
from compressor.network.surgery import Candidates, build_candidate
from compressor.pipeline.plan import Plan, make_plan
from compressor.pipeline.settings import Settings
from compressor.pipeline.stages.cost import choose_rank_multiple, make_cost_tables, why_left
from compressor.pipeline.stages.factorize import Decomposed, decompose_or_recall, energies_of, weight_factors
from compressor.pipeline.stages.report import early_warnings
from compressor.pipeline.state import JOURNAL, Job, SearchResult
from compressor.search.evaluation.journal import Journal, stored_header
from compressor.search.evaluation.parallel import Evaluate, Workers
from compressor.search.objective import Objective, default_gamma
from compressor.search.optimizer import Search
from compressor.search.records import ParetoRecord, SearchRecord
from compressor.search.space import RankSpace
from compressor.search.sparsity_space import SparsitySpace
from compressor.search.target.target import SearchTarget

PLANS = "plans"


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
            job.progress.log(f"note: {warning}")
        self._workers = _workers(settings)
        prepare_folder(job.folder)
        self._earlier = stored_header(job.folder / JOURNAL) if resume else {}
        self._resume = resume
        self._every_part = decompose_or_recall(job, found, norm, self._earlier)
        self._multiple = choose_rank_multiple(job, self._earlier)
        self._tables = make_cost_tables(job, self._every_part, self._earlier)
        self._left = {name: why_left(job, table) for name, table in self._tables.items() if saves_nothing(table)}
        self.parts = [part for part in self._every_part if part.layer.name not in self._left]
        if not self.parts:
            raise InputError(f"no layer is left to compress: {next(iter(self._left.values()))}")
        names = [part.layer.name for part in self.parts]
        tables = [self._tables[name] for name in names]
        self.space = RankSpace(names, tables, settings.search.coordinates, self._multiple)
        if settings.prune_fraction is None:
            searched = sum(part.layer.params for part in self.parts)
            self.space = SparsitySpace(self.space, count_prunable(job.original) - searched)
        factors = {part.layer.name: part.factors for part in self.parts}
        self._linearize = Linearizer(norm, job.original, [part.layer for part in self.parts], factors)
        self._search: Search | None = None

    def __enter__(self) -> "RankSearch":
        self._workers.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.__exit__()

    @property
    def target(self) -> SearchTarget | None:
        """What gamma is found for, as far as the search has learnt it."""
        return None if self._search is None else self._search.target

    def begin(self, target: SearchTarget) -> SearchResult | None:
        """The plan that the start leads to before its last step; None where it takes none."""
        search = self._prepare_search(target)
        if not search.takes_steps:
            return None
        self._search = search
        return self._result(search.begin)

    def run(self, target: SearchTarget | None = None) -> SearchResult:
        """The plan found; called again, or after `begin`, it goes on for another target."""
        if self._search is not None and target is not None:
            return self._result(functools.partial(self._search.continue_for, target))
        self._search = self._prepare_search(target)
        return self._result(self._search.run)

    def build(self, ranks: Ranks) -> nn.Module:
        """The network at ranks (d,), before any pruning; it shares tensors with the original."""
        factors = {part.layer.name: part.factors for part in self.parts}
        kept = factorized_ranks([part.layer for part in self.parts], self.space.layer_ranks(ranks).tolist())
        return build_candidate(self._job.original, factors, kept)

    def _result(self, search: Callable[[], tuple[Ranks, SearchRecord]]) -> SearchResult:
        assert self._search is not None
        with self._job.progress.stage("searching ranks", self._job.settings.search.max_evaluations) as stage:
            self._stage = stage
            ranks, record = search()
        pareto_front = [(self._plan(found.ranks, "seen by the search"), found) for found in self._search.pareto_front()]
        files = [
            f"{PLANS}/{number:02d}-ratio-{found.ratio:.4f}.json" for number, (_, found) in enumerate(pareto_front, 1)
        ]
        rows = [
            ParetoRecord(
                file=file,
                ratio=found.ratio,
                function_norm=max(found.function_norm, 0.0),
                function_norm_sd=found.function_norm_sd,
            )
            for file, (_, found) in zip(files, pareto_front, strict=True)
        ]
        plan, gamma = self._plan(ranks, "chosen by the search"), self._search.objective.gamma
        record = record.model_copy(update={"pareto_front": rows})
        return replace(
            make_result(self.parts, self.space.layer_ranks(ranks).tolist(), gamma, plan, record, self._multiple),
            cost=self._job.settings.cost,
            ratio=float(self.space.ratio(ranks[None])[0]),
            posterior_loss=self._search.posterior_loss(ranks),
            left=self._left,
            pareto_front=dict(zip(files, [plan for plan, _ in pareto_front], strict=True)),
        )

    def _prepare_search(self, target: SearchTarget | None) -> Search:
        job = self._job
        header = _fingerprint(job, self._every_part, self._gamma, self._multiple, self._tables)
        return Search(
            self.space,
            Objective(self._gamma, job.settings.form),
            _evaluation(self._measure, job.original, self.parts, self.space),
            len(job.search_images),
            job.settings.search,
            Journal(job.folder / JOURNAL, header, self._resume),
            on_evaluation=lambda count, text: self._stage.update(count, text),
            workers=self._workers,
            target=target,
            noise_spec=self._measure.noise_spec,
            linearize=self._linearize,
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
    measure: FunctionNorm | Risk, original: nn.Module, parts: Sequence[Decomposed], space: RankSpace
) -> Evaluate:
    """A function of its own, so that workers are sent what it needs alone."""
    layers = [part.layer for part in parts]
    candidates = Candidates(original, {part.layer.name: part.factors for part in parts})

    def evaluate(ranks: Ranks, indices: np.ndarray) -> Losses:
        candidate = candidates.build(factorized_ranks(layers, space.layer_ranks(ranks)))
        return measure.losses(pruned_copy(candidate, space.prune_fraction(ranks)), indices)

    return evaluate


def make_result(
    parts: Sequence[Decomposed],
    ranks: Sequence[int],
    gamma: float,
    plan: Plan,
    search: SearchRecord | None = None,
    rank_multiple: int = 1,
) -> SearchResult:
    """The plan at `ranks` with the factors that realize it."""
    return SearchResult(
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


def _fingerprint(
    job: Job, parts: Sequence[Decomposed], gamma: float, multiple: int, tables: Mapping[str, list[float]]
) -> dict[str, Any]:
    """What the search depends on; a journal with another fingerprint is refused."""
    settings, labels = job.settings, job.search_images.labels
    by_drop = settings.target is not None and settings.target.kind == "drop"
    uses_labels = settings.fidelity != "norm" or by_drop
    searching = asdict(settings.search)
    # Budgets only say when to stop: a resumed search may be given more.
    del searching["max_evaluations"], searching["max_seconds"]
    return {
        "journal_version": 10,
        "weights": hash_tensors(job.original.state_dict().values()),
        "images": hash_images(job.search_images),
        "calibration": hash_images(job.calibration),
        "layers": [[part.layer.name, part.layer.method, part.layer.break_even_rank, part.kind] for part in parts],
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
        "deciding images": hash_images(job.validation) if by_drop and job.validation is not None else None,
        "labels": labels.tolist() if uses_labels and labels is not None else None,
        "cost": settings.cost,
        "provider": settings.provider if settings.cost == "latency" or settings.rank_multiple is None else None,
        "milliseconds": tables if settings.cost == "latency" else None,
        "search settings": searching,
    }
