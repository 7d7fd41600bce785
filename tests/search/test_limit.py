"""A limit of size: the best plans within it against enumeration and random plans, and where no gamma leads to them."""

import itertools

import numpy as np
import pytest

from compressor.arrays import Array, Ranks
from compressor.search.acquisition.base import AcquisitionFunction
from compressor.search.acquisition.optimize import optimize_acquisition
from compressor.search.acquisition.registry import ACQUISITIONS
from compressor.search.evaluation.journal import Journal
from compressor.search.exchange import Moves
from compressor.search.initial.allocation import allocate_within
from compressor.search.optimizer import Search, SearchSettings
from compressor.search.problem import SearchProblem
from compressor.search.space import RankSpace
from compressor.search.target.target import SearchTarget
from tests.search.test_optimizer import NUM_IMAGES, Problem


class NegativeLoss(AcquisitionFunction):
    """Layers lose less at higher ranks, interact, and are jagged from rank to rank."""

    def __init__(self, num_dims: int, low: int, high: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.last = rng.integers(low, high, num_dims)
        self.strengths = rng.lognormal(0.0, 1.0, num_dims) * 4 / num_dims
        per_rank = rng.integers(20, 300, num_dims)
        tables = [[cost * rank for rank in range(1, last + 1)] for last, cost in zip(self.last, per_rank, strict=True)]
        self.space = RankSpace([str(layer) for layer in range(num_dims)], tables)
        self.phases = rng.normal(size=(num_dims, num_dims)) * 1.2 / np.sqrt(num_dims)

    def __call__(self, ranks: Ranks) -> Array:
        singles = (self.strengths * (1.0 / ranks - 1.0 / self.last)).sum(1)
        jagged = np.abs(np.sin(np.log(ranks) @ self.phases)).sum(1) / len(self.last)
        return -singles * (1.0 + 0.3 * singles) - 0.05 * jagged


def lattice(space: RankSpace) -> Ranks:
    return np.array(list(itertools.product(*space.choices)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limit", [0.2, 0.5, 0.9])
def test_the_best_plan_within_a_limit_is_that_of_enumeration(seed: int, limit: float) -> None:
    loss = NegativeLoss(3, 5, 20, seed)
    everything = lattice(loss.space)
    best = loss(everything[loss.space.ratio(everything) <= limit]).max()
    start = np.ones((1, 3), dtype=np.int64)
    plan, value = optimize_acquisition(loss, loss.space, start, np.random.default_rng(0), limit)
    assert loss.space.ratio(plan[None])[0] <= limit
    assert value >= 1.01 * best  # negative: within a hundredth


@pytest.mark.parametrize("num_dims", [16, pytest.param(54, marks=pytest.mark.slow)])
@pytest.mark.parametrize("limit", [0.15, 0.4])
def test_in_many_dimensions_it_beats_random_plans_at_the_limit(num_dims: int, limit: float) -> None:
    loss, rng = NegativeLoss(num_dims, 20, 200, num_dims), np.random.default_rng(3)
    random = loss.space.fit(loss.space.sample(20_000, rng), limit)
    start = loss.space.fit(loss.space.sample(3, rng), limit)
    plan, value = optimize_acquisition(loss, loss.space, start, rng, limit)
    assert limit - 0.01 <= loss.space.ratio(plan[None])[0] <= limit
    assert value > 0.8 * loss(random).max()  # a fifth less is lost


def test_nothing_is_found_where_nothing_fits() -> None:
    loss = NegativeLoss(3, 5, 20, 0)
    ones = np.ones((1, 3), dtype=np.int64)
    _, value = optimize_acquisition(loss, loss.space, ones, np.random.default_rng(0), 0.9 * loss.space.ratio(ones)[0])
    assert value == -np.inf


def test_plans_are_moved_to_a_limit_from_below_and_above() -> None:
    space = NegativeLoss(16, 20, 200, 1).space
    plans = space.sample(200, np.random.default_rng(0))
    moved = space.ratio(space.fit(plans, 0.3))
    assert (moved <= 0.3).all()
    assert (moved > 0.28).all()


@pytest.mark.parametrize("seed", range(8))
def test_an_allocation_within_a_limit_is_that_of_enumeration(seed: int) -> None:
    """Losses that fall in steps: the trade-off is anything but convex."""
    rng = np.random.default_rng(seed)
    space = NegativeLoss(3, 4, 12, seed).space
    options = [(choices, np.sort(rng.exponential(size=len(choices)))[::-1]) for choices in space.choices]
    everything = lattice(space)
    sums = sum(losses[everything[:, layer] - 1] for layer, (_, losses) in enumerate(options))
    limit = float(rng.uniform(0.3, 0.8))
    plan = allocate_within(space, options, limit)
    assert space.ratio(plan[None])[0] <= limit
    found = sum(losses[rank - 1] for (_, losses), rank in zip(options, plan, strict=True))
    least = float(np.asarray(sums)[space.ratio(everything) <= limit].min())
    assert found <= 1.1 * least  # exchanges of two layers are not all there are


def test_a_move_that_does_not_fit_is_paired_with_another_layer() -> None:
    moves = Moves(
        layers=np.array([0, 0, 1, 1, 2]),
        ranks=np.array([9, 3, 8, 2, 1]),
        gains=np.array([5.0, -0.5, 1.0, -2.0, -1.0]),
        costs=np.array([0.3, -0.4, 0.05, -0.3, -0.1]),
        room=0.05,
    )
    pairs = [tuple(pair) for pair in moves.pairs().tolist()]
    assert pairs == [(0, 3), (2, 2)]  # layer 0 cannot make room for itself, and layer 2 frees too little
    np.testing.assert_array_equal(moves.plans(np.array([5, 5, 5]))[0], [9, 2, 5])


class Cliff(Problem):
    """L falls slowly with the size, then all at once: no gamma leads to a plan between."""

    def norm(self, ranks: Ranks) -> np.ndarray:
        ratio = self.space.ratio(ranks)
        spread = ((self.space.encode(ranks) - self.space.encode(ranks).mean(1, keepdims=True)) ** 2).sum(1)
        return np.where(ratio > 0.8, 0.1, 3.0 - 1.2 * ratio**4) + spread

    @property
    def problem(self) -> SearchProblem:
        return SearchProblem(self.space, self.objective, self.evaluate, NUM_IMAGES)


def test_a_target_is_met_where_no_gamma_leads_to_it() -> None:
    problem = Cliff()
    everything = problem.space.sample(20_000, np.random.default_rng(0))
    everything = np.concatenate([everything, problem.space.fit(everything[:4000], 0.6)])
    ratios, norms = problem.space.ratio(everything), problem.norm(everything)
    for gamma in np.geomspace(1e-3, 1e3, 40):
        assert not 0.4 < ratios[np.argmax(-gamma * norms - ratios)] < 0.8
    search = Search(problem.problem, SearchSettings(max_evaluations=30), Journal(), SearchTarget("ratio", 0.6))
    ranks, record = search.run()
    assert 0.5 <= problem.space.ratio(ranks[None])[0] <= 0.6
    assert all(row.ratio >= 0.3 for row in record.history)
    assert all(row.ratio <= 0.6 for row in record.history if row.source != "initial")
    assert problem.norm(ranks[None])[0] <= 1.05 * norms[ratios <= 0.6].min()


@pytest.mark.parametrize("acquisition", sorted(ACQUISITIONS))
def test_every_acquisition_function_keeps_the_limit(acquisition: str) -> None:
    problem = Problem()
    settings = SearchSettings(max_evaluations=16, acquisition=acquisition)
    _, record = Search(problem.problem, settings, Journal(), SearchTarget("ratio", 0.3)).run()
    assert record.limit == 0.3
    assert record.certificate.about == "loss"
    assert record.certificate.delta == pytest.approx(0.05)
    assert all(row.ratio <= 0.3 for row in record.history if row.source != "initial")
    assert any(row.source == "candidate" for row in record.history)


def test_the_certificate_of_a_limit_of_loss_is_about_smaller_plans() -> None:
    problem = Problem()
    search = Search(problem.problem, SearchSettings(max_evaluations=25), Journal(), SearchTarget("loss", 0.5))
    _, record = search.run()
    assert record.certificate.about == "size"
    assert record.certificate.delta == pytest.approx(0.05)


def test_a_search_ends_when_nothing_is_left_to_evaluate_within_the_limit() -> None:
    problem = Problem((4, 4))
    settings = SearchSettings(max_evaluations=40, samples=50, delta=1e-6, epsilon=1e-9)
    small = SearchProblem(problem.space, problem.objective, problem.evaluate, 50)
    _, record = Search(small, settings, Journal(), SearchTarget("ratio", 0.6)).run()
    assert record.stopped_because.startswith(("all plans", "12 evaluations"))
