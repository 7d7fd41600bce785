"""The search over ranks: its space, its evaluations, and what its journal is held against."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from compressor.arrays import Ranks
from compressor.data.fingerprint import hash_images, hash_tensors
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.linearization import Linearizer
from compressor.fidelity.losses import MIN_LOSS, Losses
from compressor.fidelity.risk import Risk
from compressor.network.acceleration.folding import Folded
from compressor.network.detection.proposals import without_proposals
from compressor.network.layers import factorized_ranks
from compressor.network.pruning import count_prunable, pruned_copy
from compressor.network.surgery import Candidates
from compressor.outputs.rows import counted_outputs
from compressor.pipeline.channels.building import build_plain
from compressor.pipeline.context import Context
from compressor.pipeline.outputs import JOURNAL, PLANS
from compressor.pipeline.plan import Plan, make_plan
from compressor.pipeline.settings import Settings
from compressor.pipeline.stages.factorize import energies_of, weight_factors
from compressor.pipeline.state import Costs, OrderedGroup, Part, SearchResult, State, needed
from compressor.recovery.records import ReconstructionRecord
from compressor.search.evaluation.journal import VERSION_KEY, Journal
from compressor.search.evaluation.parallel import Workers
from compressor.search.expected_gain import ExpectedGain
from compressor.search.objective import LOST_SHARE, Objective
from compressor.search.optimizer import Search, SearchListener
from compressor.search.problem import Evaluate, SearchProblem
from compressor.search.records import ParetoRecord, SearchRecord
from compressor.search.space import RankSpace, SharedCost
from compressor.search.sparsity_space import SparsitySpace
from compressor.search.target.target import SearchTarget

# What layer-wise reconstruction is taken to leave of a small L until a network is built: it left 0.4 of the ResNet-18's
# and 0.9 of MobileNetV2's (docs/method/search/index.md).
EXPECTED_GAIN = 0.6


class RankSearch:
    """The search over the ranks of one job; workers live as long as the `with` block around it.

    Args:
        context: the original, the images, the settings; with `resume` the journal in its folder is gone on with.
        state: holds what the stages before found: `norm`, `measure`, `gamma`, `decomposed` and `costs`.

    Every L of the search is that of the plan's factors as reconstruction is expected to leave it, see `ExpectedGain`.

    Attributes:
        norm: the function norm on the search's images.
        parts: the layers that are searched.
        space: of their ranks, and of the share of zeros where that is searched for.
    """

    def __init__(self, context: Context, state: State) -> None:
        self._context = context
        self.norm = needed(state.norm, "a function norm")
        self._measure = cast("FunctionNorm | Risk", needed(state.measure, "a measure of fidelity"))
        self._gamma = needed(state.gamma, "gamma")
        self._costs = needed(state.costs, "the costs of ranks")
        self._every_part = needed(state.decomposed, "layers with factors")
        self.parts = [part for part in self._every_part if part.layer.name not in self._costs.left]
        self.space = _make_space(context, self.parts, self._costs)
        self._folded = _folded(context, self.space)
        factors = self._folded.factors({part.layer.name: part.factors for part in self.parts})
        self._gain = ExpectedGain(_least_gain(context), LOST_SHARE * self.norm.uninformative_loss)
        layers = [part.layer for part in self.parts]
        self._linearize = Linearizer(self.norm, self._folded.network, layers, factors)
        self._workers = _workers(context.settings)
        self._search: Search | None = None

    def __enter__(self) -> "RankSearch":
        self._workers.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.__exit__()

    @property
    def target(self) -> SearchTarget | None:
        """What is limited, as far as the search has learnt it."""
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

    def continue_after(self, built: ReconstructionRecord | None) -> SearchResult | None:
        """After `run`, search on by what the first network's reconstruction left of L.

        Returns:
            The same plan, or one that is better by more than delta; None where there is nothing to learn.
        """
        if built is None or self._gain.least == 1.0 or self._search is None:
            return None
        self._gain = self._gain.through(built.before, built.after)
        return self._result(functools.partial(self._search.continue_with, self._gain, self._found))

    def build(self, ranks: Ranks) -> nn.Module:
        """The network at ranks (d,), before any pruning; it shares tensors with the original."""
        layers = [part.layer for part in self.parts]
        factors = {part.layer.name: part.factors for part in self.parts}
        return build_plain(self._context.original, layers, factors, self.space.layer_ranks(ranks).tolist())

    def _result(self, search: Callable[[], tuple[Ranks, SearchRecord]]) -> SearchResult:
        assert self._search is not None
        with self._context.progress.stage("searching ranks", self._context.settings.search.max_evaluations) as stage:
            self._stage = stage
            ranks, record = search()
        self._found = ranks
        gamma = self._search.gamma(ranks)
        pareto_front = [
            (self._plan(found.ranks, gamma, "seen by the search"), found) for found in self._search.pareto_front()
        ]
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
        plan = self._plan(ranks, gamma, "chosen by the search")
        record = record.model_copy(update={"pareto_front": rows, "gain": self._gain.least})
        return SearchResult.of_parts(
            self.parts,
            self.space.layer_ranks(ranks).tolist(),
            gamma,
            plan,
            search=record,
            rank_multiple=self._costs.rank_multiple,
            cost=self._context.settings.cost,
            ratio=float(self.space.ratio(ranks[None])[0]),
            posterior_loss=self._search.posterior_loss(ranks),
            left=self._costs.left,
            pareto_front=dict(zip(files, [plan for plan, _ in pareto_front], strict=True)),
        )

    def _prepare_search(self, target: SearchTarget | None) -> Search:
        context = self._context
        header = _fingerprint(context, self._every_part, self._gamma, self._costs)
        problem = SearchProblem(
            space=self.space,
            objective=Objective(self._gamma, context.settings.form),
            evaluate=make_evaluation(self._measure, self._folded, self.parts, self.space),
            num_images=len(context.search_images),
            noise_spec=self._measure.noise_spec,
            linearize=self._linearize,
            gain=self._gain,
            energies=self._energies(),
        )
        listener = SearchListener(on_evaluation=lambda count, text: self._stage.update(count, text))
        journal = Journal.open(context.folder / JOURNAL, header, context.resume)
        return Search(problem, context.settings.search, journal, target, self._workers, listener)

    def _energies(self) -> list[np.ndarray]:
        """What the weight's own factors give up, where the prior mean is made of that."""
        if self._context.settings.search.prior_mean != "energies":
            return []
        return [_energies_of(part) for part in self.parts]

    def _plan(self, ranks: Ranks, gamma: float | None, why: str) -> Plan:
        layers, kinds = [part.layer for part in self.parts], {part.layer.name: part.kind for part in self.parts}
        settings, arch = self._context.settings, self._context.source.arch
        fraction = settings.prune_fraction
        if fraction is None:
            fraction = self.space.prune_fraction(ranks)
        chosen = self.space.layer_ranks(ranks).tolist()
        return make_plan(layers, chosen, kinds, arch, gamma, fraction, settings.fidelity, why)


def _make_space(context: Context, parts: Sequence[Part], costs: Costs) -> RankSpace:
    names = [part.layer.name for part in parts]
    tables = [costs.tables[name] for name in names]
    widths = {number for number, part in enumerate(parts) if isinstance(part, OrderedGroup)}
    pairs = [(names.index(first), names.index(second), whole) for (first, second), whole in costs.shared.items()]
    shared = [SharedCost(*pair) for pair in pairs]
    space = RankSpace(names, tables, context.settings.search.coordinates, costs.rank_multiple, widths, shared)
    if context.settings.prune_fraction is not None:
        return space
    return SparsitySpace(space, count_prunable(context.original) - round(space.dense_cost))


def _energies_of(part: Part) -> np.ndarray:
    """What ranks 1, 2, ... give up, as a share of all: see `energies_of`; of channels their first-order losses."""
    if isinstance(part, OrderedGroup):
        losses = part.factors.losses
        return losses[1:] / max(float(losses[0]), MIN_LOSS)
    return energies_of(part.layer, weight_factors(part.layer))


def make_evaluation(
    measure: FunctionNorm | Risk,
    folded: Folded,
    parts: Sequence[Part],
    space: RankSpace,
) -> Evaluate:
    """The losses of a plan as a function of its ranks; not a method, so that workers are sent only what it needs.

    Args:
        measure: gives losses of a network on its images.
        folded: the network before.
        parts: layers and groups with their factors.
        space: reads ranks and sparsity from a plan.
    """
    layers = [part.layer for part in parts]
    factors = folded.factors({part.layer.name: part.factors for part in parts})
    candidates = Candidates(folded.network, factors)

    def evaluate(ranks: Ranks, indices: np.ndarray) -> Losses:
        candidate = candidates.build(factorized_ranks(layers, space.layer_ranks(ranks)))
        return measure.losses(pruned_copy(candidate, space.prune_fraction(ranks)), indices)

    return evaluate


def _folded(context: Context, space: RankSpace) -> Folded:
    """The original for evaluations: with its norms where the smallest weights become zero, which norms would scale."""
    return Folded(context.original) if isinstance(space, SparsitySpace) else context.folded


def _least_gain(context: Context) -> float:
    """What reconstruction leaves of a small L. `MeetDrop` measures that for itself, and a risk is another loss."""
    settings = context.settings
    by_drop = settings.target is not None and settings.target.kind == "drop"
    is_expected = settings.recalibrate and len(context.calibration) and settings.fidelity == "norm" and not by_drop
    return EXPECTED_GAIN if is_expected else 1.0


def _workers(settings: Settings) -> Workers:
    """The workers that evaluate candidates; each process takes its share of the threads that torch has here."""
    share = max(1, torch.get_num_threads() // settings.workers)
    prepare = functools.partial(torch.set_num_threads, share)
    return Workers(settings.workers, settings.backend, prepare, settings.cluster)


def _fingerprint(context: Context, parts: Sequence[Part], gamma: float, costs: Costs) -> dict[str, Any]:
    """What the search depends on; a journal with another fingerprint is refused."""
    settings, labels = context.settings, context.search_images.labels
    by_drop = settings.target is not None and settings.target.kind == "drop"
    uses_labels = settings.fidelity != "norm" or by_drop
    searching = asdict(settings.search)
    # Budgets only say when to stop: a resumed search may be given more.
    del searching["max_evaluations"], searching["max_seconds"]
    return {
        VERSION_KEY: 19,
        "weights": hash_tensors(context.original.state_dict().values()),
        "images": hash_images(context.search_images),
        "calibration": hash_images(context.calibration),
        "layers": [[part.layer.name, part.layer.method, part.layer.break_even_rank, part.kind] for part in parts],
        "method": settings.method,
        "factors": settings.factors,
        "rank multiple": costs.rank_multiple,
        "gamma": None if settings.target else gamma,
        "target": asdict(settings.target) if settings.target else None,
        "form": settings.form,
        "fidelity": settings.fidelity,
        "sparsity": "searched" if settings.prune_fraction is None else None,
        "recalibrate": settings.recalibrate if by_drop else None,
        "gain": _least_gain(context),
        "pruned": settings.prune_fraction if by_drop else None,
        "validation images": hash_images(context.validation) if by_drop and context.validation is not None else None,
        "labels": labels.tolist() if uses_labels and labels is not None else None,
        "cost": settings.cost,
        "timed with": settings.timing if settings.weighs_times else None,
        "milliseconds": costs.tables if settings.cost == "latency" else None,
        "shared milliseconds": _shared(costs) if settings.cost == "latency" else None,
        "search settings": searching,
        **_structured(context, by_drop),
    }


def _structured(context: Context, by_drop: bool) -> dict[str, Any]:
    """What the search of a network depends on that does not return one matrix of scores."""
    found: dict[str, Any] = dict(counted_outputs(context.original))
    masks, boxes = context.search_images.masks, context.search_images.boxes
    if by_drop and masks is not None:
        found["masks"] = hash_tensors([masks])
    if by_drop and boxes is not None:
        found["boxes"] = hash_tensors(boxes)
    if context.original is not without_proposals(context.original):
        found["boxes of the second stage"] = "proposed"
    return found


def _shared(costs: Costs) -> list[list[Any]]:
    return [[first, second, whole] for (first, second), whole in costs.shared.items()]
