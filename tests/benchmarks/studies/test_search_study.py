"""The searches that bocompress is compared with, on problems with a known optimum, and the study's rows."""

from collections.abc import Iterable
from itertools import pairwise, product
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.studies.search.baselines import DEFAULT, SEARCHES, networks, within
from benchmarks.studies.search.baselines.networks import POOL_IMAGES, Network, PlanEvaluator, gamma_of
from benchmarks.studies.search.baselines.picture import draw, spread
from benchmarks.studies.search.baselines.problem import DENSE_OBJECTIVE, Attempt, OutOfBudget, Problem, Step
from benchmarks.studies.search.baselines.scoring import check_certificates, checkpoints_of, follow, held_at
from benchmarks.studies.search.baselines.summary import best_baseline, median_or_never, p_value, summarize
from benchmarks.studies.search.limits import LAYER_BY_LAYER, search_within
from compressor.arrays import Ranks
from compressor.data.images import ImageSet
from compressor.factorization.registry import METHODS
from compressor.network.layers import compressible, find_layers
from compressor.search.objective import Objective

NUM_IMAGES = 200
BREAK_EVEN_RANKS = (12, 9, 12)
STRENGTHS = np.array([1.0, 4.0, 0.3])
PARAMS = (100, 60, 200)  # per rank
OTHERS = ("botorch", "optuna-gp", "skopt", "tpe")  # packages of others, which `make test-hard` runs


def of_searches(names: Iterable[str]) -> pytest.MarkDecorator:
    """A test for each of these searches."""
    cases = [pytest.param(name, marks=pytest.mark.slow) if name.startswith(OTHERS) else name for name in names]
    return pytest.mark.parametrize("name", cases)


def single_losses(ranks: Ranks) -> NDArray[np.float64]:
    return STRENGTHS * (1.0 / ranks**1.5 - 1.0 / np.array(BREAK_EVEN_RANKS) ** 1.5)


def make_problem(noise: float = 0.0, interaction: float = 0.0) -> Problem:
    """L = sum of a_i (K_i^-1.5 - break_even_i^-1.5), raised by `interaction`; images differ by a fixed factor each."""
    factors = np.random.default_rng(0).gamma(1 / max(noise, 1e-9) ** 2, max(noise, 1e-9) ** 2, NUM_IMAGES)
    factors /= factors.mean()

    def losses(ranks: Ranks, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        total = single_losses(ranks).sum()
        return total * (1.0 + interaction * total) * factors[indices]

    def energies(break_even_rank: int) -> NDArray[np.float64]:
        return np.array([1.0 / rank**1.5 - 1.0 / break_even_rank**1.5 for rank in range(1, break_even_rank + 1)])

    return Problem(
        [f"layer{i}" for i in range(len(BREAK_EVEN_RANKS))],
        [
            [each * rank for rank in range(1, break_even_rank + 1)]
            for break_even_rank, each in zip(BREAK_EVEN_RANKS, PARAMS, strict=True)
        ],
        Objective(0.3),
        losses,
        NUM_IMAGES,
        [energies(break_even_rank) for break_even_rank in BREAK_EVEN_RANKS],
        samples=20,
    )


def true_objectives(problem: Problem) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    plans = np.stack(
        np.meshgrid(*[np.arange(1, break_even_rank + 1) for break_even_rank in BREAK_EVEN_RANKS], indexing="ij"), -1
    ).reshape(-1, len(BREAK_EVEN_RANKS))
    norms = np.array([problem.losses(plan, np.arange(NUM_IMAGES)).mean() for plan in plans])
    return plans, problem.objective.value(norms, problem.space.ratio(plans))


def true_objective(problem: Problem, ranks: Ranks) -> float:
    norm = problem.losses(ranks, np.arange(NUM_IMAGES)).mean()
    return float(problem.objective.value(norm, problem.space.ratio(ranks[None])[0]))


def run(name: str, problem: Problem, budget: int = 1200, seed: int = 0) -> tuple[Attempt, list[Step]]:
    search = SEARCHES[name]
    if not search.is_installed:
        pytest.skip(f"{search.package} is not installed")
    attempt = Attempt(problem, budget, seed)
    steps, overhead = follow(search, attempt)
    assert overhead >= 0
    return attempt, steps


@of_searches(SEARCHES)
def test_a_search_keeps_to_its_budget_and_to_the_lattice_and_finds_something(name: str) -> None:
    problem = make_problem(noise=0.3, interaction=0.3)
    attempt, steps = run(name, problem, budget=300)
    assert 0 < attempt.passes <= 300
    assert attempt.stopped_because
    assert [passes for passes, _ in steps] == sorted(passes for passes, _ in steps)
    assert steps[0][0] == 0
    assert np.array_equal(steps[0][1], problem.space.break_even_ranks)
    for passes, ranks in steps:
        assert passes <= attempt.passes
        assert ranks.dtype == np.int64
        assert all(rank in choices for rank, choices in zip(ranks, problem.space.choices, strict=True))
    assert true_objective(problem, steps[-1][1]) > DENSE_OBJECTIVE


@of_searches(SEARCHES)
def test_a_search_says_the_same_twice(name: str) -> None:
    problem = make_problem(noise=0.3)
    first, steps = run(name, problem, budget=120 if name == "botorch" else 240)
    second, again = run(name, problem, budget=120 if name == "botorch" else 240)
    assert first.passes == second.passes
    assert [(passes, ranks.tolist()) for passes, ranks in steps] == [
        (passes, ranks.tolist()) for passes, ranks in again
    ]


@pytest.mark.parametrize("name", ["lagrange", "lagrange-cheap", DEFAULT])
def test_where_losses_add_up_and_all_ranks_are_measured_the_optimum_is_found(name: str) -> None:
    problem = make_problem()
    plans, objectives = true_objectives(problem)
    _, steps = run(name, problem, budget=3000)
    found = true_objective(problem, steps[-1][1])
    if name == "lagrange":  # twelve ranks are all there are
        assert steps[-1][1].tolist() == plans[objectives.argmax()].tolist()
    assert found >= objectives.max() - 0.02


@of_searches([DEFAULT, "plain", "tpe", "optuna-gp", "skopt", "botorch", "lagrange", "aimet"])
def test_searches_that_learn_beat_random_plans_or_come_close_to_the_optimum(name: str) -> None:
    problem = make_problem(noise=0.2, interaction=0.3)
    _, objectives = true_objectives(problem)
    final = true_objective(problem, run(name, problem, 400)[1][-1][1])
    by_chance = [true_objective(problem, run("random", problem, 400, seed)[1][-1][1]) for seed in range(5)]
    assert final >= min(median(by_chance), objectives.max() - 0.02) - 1e-9


def test_one_number_families_are_searched_to_their_best_member() -> None:
    problem = make_problem(noise=0.05)
    fractions = np.linspace(0.001, 1.0, 2000)
    best = max(true_objective(problem, problem.space.uniform(fraction)) for fraction in fractions)
    _, steps = run("uniform", problem, budget=3000)
    assert true_objective(problem, steps[-1][1]) == pytest.approx(best, abs=0.005)


def test_energy_thresholds_give_up_the_same_share_everywhere() -> None:
    problem = make_problem()
    _, steps = run("energy", problem, budget=2000)
    ranks = steps[-1][1]
    kept = [table[rank - 1] for table, rank in zip(problem.energies, ranks, strict=True)]
    before = [table[rank - 2] for table, rank in zip(problem.energies, ranks, strict=True) if rank > 1]
    assert max(kept) < min(before)


def test_fewer_images_are_taken_where_single_layers_would_spend_the_budget() -> None:
    problem = make_problem()
    attempt, steps = run("aimet", problem, budget=300)
    assert attempt.passes <= 300
    assert len(steps) > 1
    attempt, steps = run("aimet", problem, budget=30)
    assert (attempt.passes, len(steps)) == (0, 1)


def test_an_evaluation_beyond_the_budget_is_refused_and_not_counted() -> None:
    problem = make_problem()
    attempt = Attempt(problem, 30, seed=0)
    attempt.observe(problem.space.break_even_ranks)
    with pytest.raises(OutOfBudget):
        attempt.observe(problem.space.break_even_ranks)
    assert (attempt.passes, attempt.evaluations, attempt.left) == (20, 1, 10)


def test_the_pool_is_in_an_order_of_the_seeds_own() -> None:
    problem = make_problem(noise=0.5)
    images = np.arange(20)
    values = [
        Attempt(problem, 100, seed).evaluate(problem.space.break_even_ranks - 1, images).values for seed in (0, 0, 1)
    ]
    assert np.array_equal(values[0], values[1])
    assert not np.array_equal(values[0], values[2])


def test_checkpoints_read_the_plan_held_then() -> None:
    marks = checkpoints_of(10_000)
    assert (marks[0], marks[-1], len(marks)) == (250, 10_000, 12)
    plans = [np.array([rank]) for rank in range(3)]
    steps = [(0, plans[0]), (300, plans[1]), (900, plans[2])]
    assert [held_at(steps, passes)[0] for passes in (250, 300, 899, 5000)] == [0, 300, 300, 900]


def make_row(search: str, seed: int, objective: float, since: int, **more: Any) -> dict[str, Any]:
    fixed: dict[str, Any] = {
        "ratio": 0.1,
        "relative": 0.05,
        "passes": 1000,
        "evaluations": 20,
        "overhead_seconds": 1.0,
        "certificate": {},
    }
    incumbents = [{"since": 0, "objective": -1.0}, {"since": since, "objective": objective}]
    found = {"search": search, "seed": seed, "objective": objective, "objective_at_end_of_default": objective}
    return {**found, "incumbents": incumbents, **fixed, **more}


def test_the_summary_tests_the_default_against_each_and_counts_passes_to_the_best_baseline() -> None:
    rows = [make_row(DEFAULT, seed, -0.1 - 0.001 * seed, 200) for seed in range(5)]
    rows += [make_row("random", seed, -0.3, 900, objective_at_end_of_default=-0.08) for seed in range(5)]
    rows += [make_row("botorch", seed, -0.12 - 0.001 * seed, 800) for seed in range(5)]
    found = {row["search"]: row for row in summarize(rows)}
    assert best_baseline(rows) == "botorch"
    assert list(found) == [DEFAULT, "botorch", "random"]
    assert found["botorch"]["p_value"] == pytest.approx(2**-5)
    assert found[DEFAULT]["p_value"] is None
    assert found[DEFAULT]["passes_ratio"] == pytest.approx(200 / 800)
    assert found[DEFAULT]["reached_best_baseline"] == 5
    assert found["random"]["reached_best_baseline"] == 0
    assert found["random"]["passes_ratio"] is None
    assert found["random"]["wins_of_default"] == 5
    assert (found["random"]["wins_at_equal_passes"], found["random"]["p_value_at_equal_passes"]) == (0, 1.0)
    assert found["botorch"]["wins_at_equal_passes"] == 5
    assert p_value(rows, DEFAULT) is None


def test_a_summary_of_our_own_searches_alone_has_no_baseline() -> None:
    rows = [make_row(DEFAULT, 0, -0.1, 200)]
    assert best_baseline(rows) is None
    assert summarize(rows)[0]["passes_ratio"] is None


def test_the_best_evaluation_of_a_search_counts_before_its_first_certificate() -> None:
    problem = make_problem(noise=0.2, interaction=0.3)
    attempt, steps = run(DEFAULT, problem, budget=800)
    inputs = sum(min(8, break_even_rank - 1) for break_even_rank in BREAK_EVEN_RANKS) * 5
    assert steps[1][0] <= inputs + problem.samples
    assert attempt.certificate["delta"] > 0


@pytest.mark.parametrize("limit", [0.5, 0.25])
def test_plans_within_a_limit_keep_to_it_and_use_it(limit: float) -> None:
    problem, passes = make_problem(noise=0.05), 4000
    space = problem.space
    plans = within.plans_without_evaluation(problem, limit)
    plans["random"] = within.search_moved(SEARCHES["random"], problem, limit, seed=0, passes=passes)
    plans[LAYER_BY_LAYER] = within.layer_by_layer(problem, limit, seed=0, passes=passes)
    plans[DEFAULT], found = search_within(problem, limit, seed=0)
    ratios = {name: space.ratio(ranks[None])[0] for name, ranks in plans.items()}
    assert all(0.5 * limit < ratio <= limit for ratio in ratios.values()), ratios
    lattice = np.array(list(product(*(range(1, rank + 1) for rank in BREAK_EVEN_RANKS))))
    best = min(single_losses(ranks).sum() for ranks in lattice[space.ratio(lattice) <= limit])
    losses = {name: single_losses(ranks).sum() for name, ranks in plans.items()}
    assert losses[LAYER_BY_LAYER] == pytest.approx(best, rel=0.05)
    assert losses[DEFAULT] <= 1.1 * best
    assert losses["random"] < losses["energy threshold"]
    assert found["certificate_met"]


def test_the_picture_shows_every_search_and_is_the_same_twice() -> None:
    rows = [
        make_row(name, seed, -0.1 - 0.01 * place, 200, objectives=[-1.0, -0.5, -0.1 - 0.01 * place])
        for place, name in enumerate(SEARCHES)
        for seed in range(2)
    ]
    study = {"study": "search", "checkpoints": [100, 300, 1000], "rows": rows}
    svg = draw(study)
    assert svg == draw(study)
    assert all(f"{name}  -0." in svg for name in SEARCHES)


def test_names_beside_curves_are_moved_apart() -> None:
    positions = spread([0.5, 0.49, 0.48, 0.02, 0.01], 0.05)
    assert all(upper - lower >= 0.05 - 1e-9 for upper, lower in pairwise(positions))
    assert min(positions) >= 0


def test_a_network_becomes_a_problem_whose_losses_are_its_own_and_are_computed_once() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ReLU(), torch.nn.Linear(16, 6)).eval()
    images = ImageSet(torch.randn(40, 12), "random")
    layers = compressible(find_layers(model, images.batch([0])))
    factors = {layer.name: METHODS["svd"].factorize(layer.module) for layer in layers}
    network = Network("two layers", model, layers, factors, images, images, torch.device("cpu"))
    plans = network.plans(images)
    problem = network.problem(plans, gamma_of(plans, None, 0.5), samples=10)
    assert problem.objective.gamma == pytest.approx(0.5 / plans.norm.output_energy)
    assert [table[-1] for table in problem.energies] == [0.0, 0.0]
    assert all((np.diff(table) <= 1e-9).all() and table[0] < 1 for table in problem.energies)
    evaluator = PlanEvaluator(network.plans(images), problem)
    assert evaluator.objective(problem.space.break_even_ranks) == pytest.approx(DENSE_OBJECTIVE)
    ranks = np.array([2, 2])
    values = plans.values(ranks, np.arange(10))
    passes = plans.run_passes
    assert np.array_equal(plans.values(ranks, np.arange(5, 10)), values[5:])
    assert plans.run_passes == passes == 10
    advantage, stderr = evaluator.advantage(problem.space.break_even_ranks, ranks)
    assert advantage == pytest.approx(DENSE_OBJECTIVE - evaluator.objective(ranks))
    assert stderr > 0


def test_a_certificate_is_contradicted_by_a_plan_that_beats_it_by_more_than_delta() -> None:
    problem = make_problem()

    class FakePlans:
        norm = None
        values = staticmethod(problem.losses)

    evaluator = PlanEvaluator.__new__(PlanEvaluator)
    evaluator.plans, evaluator._space, evaluator._objective = FakePlans(), problem.space, problem.objective  # type: ignore[assignment]
    evaluator._every = np.arange(NUM_IMAGES)
    plans, objectives = true_objectives(problem)
    texts = [" ".join(map(str, plan)) for plan in plans[np.argsort(objectives)[[-1, -40]]]]
    gap = np.sort(objectives)[-1] - np.sort(objectives)[-40]
    for delta, contradicted in ((gap * 0.9, True), (gap * 1.1, False)):
        rows = [make_row(DEFAULT, 0, np.sort(objectives)[-40], 200, certificate={"met": True, "delta": delta})]
        rows.append(make_row("random", 0, objectives.max(), 200))
        for row, text in zip(rows, texts[::-1], strict=True):
            row["incumbents"] = [{"since": 200, "objective": row["objective"], "ranks": text}]
        check_certificates(rows, evaluator)
        assert rows[0]["contradicted"] is contradicted
        assert rows[0]["best_other"] == {"search": "random", "seed": 0}
        assert "contradicted" not in rows[1]


def test_more_test_images_leave_the_pool_as_it_is() -> None:
    images = ImageSet(torch.arange(1800.0).reshape(-1, 1, 1, 1), "numbers")
    pools, tests = zip(*(networks.divide(images, count, 1500) for count in (750, 1300, 5000)), strict=True)
    assert [len(pool) for pool in pools] == [POOL_IMAGES] * 3
    assert [len(test) for test in tests] == [750, 1300, 1300]
    numbers = [set(test.batch(slice(None)).flatten().tolist()) for test in tests]
    pool = set(pools[0].batch(slice(None)).flatten().tolist())
    assert all(set(other.batch(slice(None)).flatten().tolist()) == pool for other in pools)
    assert numbers[0] < numbers[1]
    assert not any(pool & number for number in numbers)


def test_what_half_of_the_seeds_never_reach_has_no_median() -> None:
    assert median_or_never([0.2, None, 0.1]) == 0.2
    assert median_or_never([0.2, None]) is None
