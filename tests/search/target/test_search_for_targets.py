"""Targets in place of gamma: the search on problems of known answer."""

from pathlib import Path

import numpy as np
import pytest

from compressor.arrays import Ranks
from compressor.search.evaluation.journal import Journal
from compressor.search.optimizer import MAX_EVALUATIONS_FAR_AWAY, MAX_EVALUATIONS_NEARBY, Search, SearchSettings
from compressor.search.target.target import SearchTarget
from tests.search.test_optimizer import Problem


def search(problem: Problem, target: SearchTarget, journal: Journal | None = None, **settings: object) -> Search:
    chosen = SearchSettings(**{"max_evaluations": 80, **settings})  # type: ignore[arg-type]
    journal = journal or Journal()
    return Search(problem.problem, chosen, journal, target)


def least_loss(problem: Problem, ratio: float) -> float:
    """The least true L at R <= ratio, by the greedy exchange of ranks on the true function from many starts."""
    points = problem.space.sample(4000, np.random.default_rng(1))
    points = points[problem.space.ratio(points) <= ratio]
    best = points[np.argsort(problem.norm(points))[:50]]
    for _ in range(60):
        moved = np.concatenate([best, *(_steps(problem, best, sign) for sign in (1, -1))])
        exchanged = np.concatenate([_steps(problem, part, 1) for part in np.array_split(moved, 4)])
        everything = np.unique(np.concatenate([moved, exchanged]), axis=0)
        allowed = everything[problem.space.ratio(everything) <= ratio]
        best = allowed[np.argsort(problem.norm(allowed))[:50]]
    return float(problem.norm(best).min() * problem.factors.mean())


def _steps(problem: Problem, points: Ranks, sign: int) -> Ranks:
    steps = sign * np.eye(problem.space.num_dims, dtype=np.int64)
    return np.clip((points[:, None] + steps).reshape(-1, problem.space.num_dims), 1, problem.space.break_even_ranks)


@pytest.mark.parametrize("ratio", [0.4, 0.15])
def test_a_ratio_is_kept_used_and_spent_well(ratio: float) -> None:
    problem = Problem()
    ranks, record = search(problem, SearchTarget("ratio", ratio)).run()
    reached = float(problem.space.ratio(ranks[None])[0])
    assert ratio - 0.01 <= reached <= ratio
    assert record.certificate.met
    loss = float(problem.norm(ranks[None])[0] * problem.factors.mean())
    assert loss <= 1.15 * least_loss(problem, ratio)


def test_gamma_is_that_at_which_the_best_plan_has_the_loss() -> None:
    problem = Problem()
    done = search(problem, SearchTarget("loss", 0.5))
    ranks, record = done.run()
    assert record.certificate.met
    loss = float(problem.norm(ranks[None])[0] * problem.factors.mean())
    assert 0.35 <= loss <= 0.65  # what is believed is brought to 0.5, and the truth may lie beside it
    smaller = float(problem.space.ratio(ranks[None])[0]) - 0.05
    assert least_loss(problem, smaller) > loss


@pytest.mark.slow
def test_a_loss_gives_a_limit_of_size_from_a_random_start_too() -> None:
    problem = Problem()
    done = search(problem, SearchTarget("loss", 0.2), start="random")
    ranks, first = done.run()
    assert done.objective.limit is not None
    assert done.objective.limit < 1.0
    closer, record = done.continue_for(SearchTarget("loss", 0.08))
    assert done.posterior_loss(closer) < done.posterior_loss(ranks)
    assert record.evaluations <= first.evaluations + MAX_EVALUATIONS_FAR_AWAY


def test_a_loss_nearby_is_landed_on_with_two_looks() -> None:
    problem = Problem()
    done = search(problem, SearchTarget("loss", 0.2))
    _, first = done.run()
    ranks, record = done.continue_for(SearchTarget("loss", 0.15))
    assert record.evaluations <= first.evaluations + MAX_EVALUATIONS_NEARBY
    assert done.target is not None
    assert done.target.is_near
    assert done.posterior_loss(ranks) == pytest.approx(done.target.upper, rel=0.15)
    done.continue_for(SearchTarget("loss", 0.05))
    assert not done.target.is_near


@pytest.mark.slow
def test_going_on_for_another_target_uses_the_looks_already_made() -> None:
    problem = Problem()
    both = search(problem, SearchTarget("ratio", 0.3))
    _, first = both.run()
    the_front_holds_what_nothing_else_beats(both)
    ranks, second = both.continue_for(SearchTarget("ratio", 0.2))
    assert 0.19 <= float(problem.space.ratio(ranks[None])[0]) <= 0.2
    assert second.evaluations - first.evaluations <= first.evaluations / 2


def the_front_holds_what_nothing_else_beats(done: Search) -> None:
    pareto_front = done.pareto_front()
    ratios, norms = ([getattr(plan, name) for plan in pareto_front] for name in ("ratio", "function_norm"))
    assert ratios == sorted(ratios)
    assert norms == sorted(norms, reverse=True)
    assert len(pareto_front) >= 5


@pytest.mark.parametrize(
    "surrogate", ["log", *(pytest.param(name, marks=pytest.mark.slow) for name in ("loss", "objective"))]
)
def test_a_resumed_search_for_a_target_goes_on_as_if_nothing_had_happened(tmp_path: Path, surrogate: str) -> None:
    problem, path, target = Problem(), tmp_path / "search.jsonl", SearchTarget("ratio", 0.25)
    settings = {"max_evaluations": 25, "surrogate": surrogate}
    whole, _ = search(problem, target, Journal.open(path, {}), **settings).run()
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[: 2 * len(lines) // 3]) + "\n")
    again, _ = search(problem, target, Journal.open(path, {}, resume=True), **settings).run()
    assert again.tolist() == whole.tolist()
    assert path.read_text().splitlines() == lines
