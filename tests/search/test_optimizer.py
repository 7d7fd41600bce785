"""The search on problems whose optimum is known, with noise of known size; budgets, repetition, resuming."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compressor.arrays import Ranks
from compressor.errors import InputError
from compressor.fidelity.losses import Losses
from compressor.files import append_line, read_lines
from compressor.search.evaluation.journal import Journal
from compressor.search.initial.allocation import NUM_REALLOCATIONS
from compressor.search.objective import Objective
from compressor.search.optimizer import Search, SearchListener, SearchSettings
from compressor.search.problem import SearchProblem
from compressor.search.records import SearchRecord
from compressor.search.space import RankSpace

NUM_IMAGES = 400
CAPS = (40, 60, 24, 80)
STRENGTHS = np.array([1.0, 4.0, 0.5, 8.0])


class Problem:
    """L = sum of a_i (1/K_i - 1/cap_i), raised by joint interaction; images differ by a fixed factor each."""

    def __init__(self, break_even_ranks: tuple[int, ...] = CAPS) -> None:
        self.strengths = STRENGTHS[: len(break_even_ranks)]
        self.space = RankSpace(
            [f"layer{i}" for i in range(len(break_even_ranks))],
            [[rank * 100 for rank in range(1, break_even_rank + 1)] for break_even_rank in break_even_ranks],
        )
        self.objective = Objective(0.2)
        self.factors = np.random.default_rng(0).gamma(4.0, 0.25, NUM_IMAGES)
        self.num_evaluations = 0

    @property
    def problem(self) -> SearchProblem:
        energies = [1.0 / np.arange(1, last + 1) - 1.0 / last for last in self.space.break_even_ranks]
        return SearchProblem(self.space, self.objective, self.evaluate, NUM_IMAGES, energies=energies)

    def norm(self, ranks: Ranks) -> np.ndarray:
        singles = (self.strengths * (1.0 / ranks - 1.0 / self.space.break_even_ranks)).sum(1)
        return singles * (1.0 + 0.3 * singles)

    def evaluate(self, ranks: Ranks, indices: np.ndarray) -> Losses:
        self.num_evaluations += 1
        rng = np.random.default_rng([*ranks.tolist(), int(indices[0])])
        return Losses(indices, self.norm(ranks[None])[0] * self.factors[indices] * rng.gamma(20, 0.05, len(indices)))

    def value(self, ranks: Ranks) -> np.ndarray:
        return self.objective.value(self.norm(ranks) * self.factors.mean(), self.space.ratio(ranks))

    def best(self) -> float:
        """The optimum by coordinate ascent from many starts."""
        points = self.space.sample(300, np.random.default_rng(1))
        for _ in range(12):
            for layer, break_even_rank in enumerate(self.space.break_even_ranks):
                trials = np.repeat(points[:, None], break_even_rank, axis=1)
                trials[:, :, layer] = np.arange(1, break_even_rank + 1)
                values = self.value(trials.reshape(-1, len(self.space.break_even_ranks))).reshape(
                    len(points), break_even_rank
                )
                points[:, layer] = 1 + values.argmax(1)
        return float(self.value(points).max())

    def search(self, journal: Journal | None = None, **settings: object) -> tuple[Ranks, SearchRecord]:
        chosen = SearchSettings(**{"max_evaluations": 80, **settings})  # type: ignore[arg-type]
        return Search(self.problem, chosen, journal or Journal()).run()


@pytest.mark.parametrize("seed", range(3))
def test_finds_the_optimum_within_delta_and_certifies_it(seed: int) -> None:
    problem = Problem()
    ranks, record = problem.search(seed=seed)
    best = problem.best()
    assert record.stopped_because == "certificate met"
    assert record.certificate.met
    certificate = record.certificate
    assert certificate.asked == "joint"
    assert certificate.pointwise <= certificate.epsilon == 0.05
    assert certificate.joint is not None
    assert certificate.joint.estimate <= certificate.joint.upper <= 0.9 * certificate.epsilon
    assert problem.value(ranks[None])[0] > best - 0.05 * abs(best) - 3 * record.objective_sd
    assert record.objective == pytest.approx(problem.value(ranks[None])[0], abs=4 * record.objective_sd + 1e-3)


MODES: list[dict[str, object]] = [
    {"certificate": "pointwise"},
    {"acquisition": "ei", "surrogate": "objective"},
    {"surrogate": "loss", "coordinates": "linear", "start": "random", "delta_is_relative": False},
    {"prior_mean": "energies"},
]
FURTHER_MODES: list[dict[str, object]] = [
    {"acquisition": "pac-ei"},
    {"acquisition": "ei"},
    {"acquisition": "pi"},
    {"acquisition": "ucb"},
    {"surrogate": "objective"},
    {"prior_mean": "none"},
    {"prior_mean": "energies", "surrogate": "loss"},
    {"prior_mean": "energies", "start": "random"},
    {"surrogate": "log", "start": "random"},
]


@pytest.mark.parametrize(
    "settings", [*MODES, *(pytest.param(settings, marks=pytest.mark.slow) for settings in FURTHER_MODES)]
)
def test_every_mode_beats_the_best_of_as_many_random_plans(settings: dict[str, object]) -> None:
    problem = Problem()
    ranks, record = problem.search(**settings)
    random = problem.space.sample(record.evaluations, np.random.default_rng(8))
    assert problem.value(ranks[None])[0] > problem.value(random).max()


def test_the_chosen_plan_is_a_visited_one_and_the_history_is_whole() -> None:
    problem = Problem()
    ranks, record = problem.search(max_evaluations=30, delta=0.001)
    assert record.evaluations == 30
    dims = problem.space.num_dims
    assert 30 < len(record.history) <= 30 + NUM_REALLOCATIONS * 2 * dims  # with conditional sensitivities
    assert sum(row.images for row in record.history) <= record.image_passes
    assert record.stopped_because == "30 evaluations spent"
    assert not record.certificate.met
    assert ranks.tolist() in [row.ranks for row in record.history]
    for row in record.history:
        ratio = problem.space.ratio(
            np.array([[rank or break_even_rank for rank, break_even_rank in zip(row.ranks, CAPS, strict=True)]])
        )[0]
        assert row.ratio == ratio
        assert row.objective == pytest.approx(-0.2 * row.function_norm - ratio)
        assert row.variance > 0 or row.ranks == [None] * 4


def test_time_is_a_budget_too() -> None:
    _, record = Problem().search(max_seconds=1e-9, delta=1e-6)
    assert record.stopped_because == "1e-09 seconds spent"


@pytest.mark.parametrize("budget", [1, 2, 5])
def test_a_budget_smaller_than_the_initial_design_is_kept(budget: int) -> None:
    _, record = Problem().search(max_evaluations=budget)
    assert record.evaluations == budget
    assert not record.certificate.met


def test_one_layer_is_enough() -> None:
    problem = Problem((40,))
    ranks, record = problem.search()
    assert record.certificate.met
    assert problem.value(ranks[None])[0] > problem.best() * 1.1


def test_the_same_seed_repeats_every_evaluation() -> None:
    first, second = (Problem().search(seed=4)[1] for _ in range(2))
    assert [row.ranks for row in first.history] == [row.ranks for row in second.history]
    other = Problem().search(seed=5)[1]
    assert [row.function_norm for row in other.history] != [row.function_norm for row in first.history]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
def test_resuming_goes_on_as_if_nothing_had_happened(tmp_path: Path, share: float) -> None:
    header = {"seed": 1}
    whole = Problem()
    ranks, record = whole.search(Journal.open(tmp_path / "whole.jsonl", header), seed=1)
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    kept = round(share * (len(lines) - 2))
    torn = tmp_path / "torn.jsonl"
    torn.write_text("".join(lines[: 1 + kept]) + lines[1 + kept][:30])
    again = Problem()
    resumed_ranks, resumed = again.search(Journal.open(torn, header, resume=True), seed=1)
    assert again.num_evaluations == whole.num_evaluations - kept
    assert resumed_ranks.tolist() == ranks.tolist()
    assert [row.model_dump() for row in resumed.history] == [row.model_dump() for row in record.history]
    assert [json.loads(line) for line in torn.read_text().splitlines()] == [json.loads(line) for line in lines]


def test_a_journal_that_departs_from_the_search_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    header = {"seed": 1}
    Problem().search(Journal.open(path, header), seed=1, max_evaluations=3)
    rows = read_lines(path, "journal").rows[:3]
    rows[2]["ranks"][0] += 1
    for number, row in enumerate(rows):
        append_line(path, row, first=number == 0)
    with pytest.raises(InputError, match="departs from this search at evaluation 1"):
        Problem().search(Journal.open(path, header, resume=True), seed=1, max_evaluations=3)


def test_a_plan_is_evaluated_once_on_a_small_pool() -> None:
    """Where all evaluations use the same images, a second one of a plan adds nothing."""
    problem = Problem()
    settings = SearchSettings(max_evaluations=60, delta=0.0001, samples=50)
    ranks, record = Search(replace(problem.problem, num_images=50), settings, Journal()).run()
    visited = [tuple(row.ranks) for row in record.history if row.source != "initial"]
    assert len(set(visited)) == len(visited)
    assert record.stopped_because == "60 evaluations spent"  # other plans can still be evaluated
    assert problem.value(ranks[None])[0] > problem.best() * 1.3


def test_a_search_that_has_evaluated_every_plan_on_every_image_stops() -> None:
    problem = Problem((4,))
    settings = SearchSettings(max_evaluations=60, delta=1e-6, epsilon=1e-9, samples=50)
    ranks, record = Search(replace(problem.problem, num_images=50), settings, Journal()).run()
    assert record.stopped_because == "all plans evaluated on all images"
    assert ranks.tolist() == [1 + int(np.argmax([problem.value(np.array([[rank]]))[0] for rank in (1, 2, 3, 4)]))]


class WideProblem(Problem):
    """As many layers as asked for, each of which counts little."""

    def __init__(self, num_dims: int) -> None:
        super().__init__()
        rng = np.random.default_rng(num_dims)
        break_even_ranks = rng.integers(20, 200, num_dims)
        self.strengths = rng.lognormal(0.0, 1.0, num_dims) * 4 / num_dims
        self.space = RankSpace(
            [f"layer{i}" for i in range(num_dims)],
            [[rank * 100 for rank in range(1, break_even_rank + 1)] for break_even_rank in break_even_ranks],
        )


@pytest.mark.parametrize("num_dims", [1, pytest.param(54, marks=pytest.mark.slow)])
def test_few_and_many_layers(num_dims: int) -> None:
    problem = WideProblem(num_dims)
    ranks, record = problem.search(max_evaluations=75)
    random = problem.space.sample(5000, np.random.default_rng(8))
    assert problem.value(ranks[None])[0] >= problem.value(random).max() - record.certificate.delta
    assert record.certificate.joint is not None
    assert record.certificate.joint.paths >= 128
    if num_dims == 1:
        assert record.certificate.met
        assert problem.value(ranks[None])[0] > problem.best() * 1.06


def test_the_initial_design_evaluates_rank_one_everywhere() -> None:
    _, record = Problem().search(max_evaluations=10)
    assert [1, 1, 1, 1] in [row.ranks for row in record.history]


def test_the_listener_gets_the_incumbent_after_every_test_with_the_images_so_far() -> None:
    problem, heard = Problem(), []
    listener = SearchListener(on_incumbent=lambda passes, ranks: heard.append((passes, ranks.tolist())))
    settings = SearchSettings(max_evaluations=40, delta=0.001)
    search = Search(problem.problem, settings, Journal(), listener=listener)
    ranks, record = search.run()
    after_initial = [row.images for row in record.history if row.source != "initial"]
    tests = [record.image_passes - sum(after_initial[done:]) for done in range(len(after_initial) + 1)]
    passes = [passes for passes, _ in heard]
    assert passes[-len(tests) :] == tests
    assert passes == sorted(passes)  # those of the initial design come before
    assert len(passes) > len(tests)
    assert heard[-1] == (record.image_passes, ranks.tolist())


@pytest.mark.parametrize("certificate", ["joint", "pointwise"])
def test_both_figures_are_recorded_whichever_stops(certificate: str) -> None:
    _, record = Problem().search(certificate=certificate)
    found = record.certificate
    assert found.met
    assert found.asked == certificate
    assert found.epsilon == (0.05 if certificate == "joint" else 0.005)
    assert found.pointwise <= found.epsilon
    assert found.joint is not None
    assert found.joint.upper >= found.joint.estimate


def test_without_remeasuring_only_proposed_plans_are_evaluated() -> None:
    settings = {"delta": 0.001, "max_evaluations": 40, "start": "random", "refine": False}
    sources = {
        remeasure: {row.source for row in Problem().search(remeasure=remeasure, **settings)[1].history}
        for remeasure in (True, False)
    }
    assert sources[True] - sources[False] == {"re-measure"}


def test_noise_by_sample_takes_each_evaluations_own_variance() -> None:
    problem, settings = Problem(), SearchSettings(max_evaluations=12, start="random", refine=False, noise="sample")
    search = Search(problem.problem, settings, Journal())
    search.run()
    losses = search._evaluator.history.losses
    noise = search._fitter.posterior().process.noise
    assert np.count_nonzero(noise - np.diag(np.diag(noise))) == 0
    relative = [row.variance / row.mean**2 for row in losses]
    assert np.diag(noise) == pytest.approx(np.log1p(relative), rel=0.5)


def test_a_certificate_can_be_made_to_rest_on_all_evaluations() -> None:
    fitted = {}
    for refit in ("growing", "stopping"):
        settings = SearchSettings(start="random", refine=False, certificate="pointwise", refit=refit, seed=1)  # type: ignore[arg-type]
        search = Search(Problem().problem, settings, Journal())
        _, record = search.run()
        assert record.stopped_because == "certificate met"
        fitted[refit] = search._fitter.is_fitted_to_all
    assert fitted == {"growing": False, "stopping": True}
