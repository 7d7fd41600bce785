"""The initial design: allocation against brute force, sensitivities, the trade-off curve and reallocation."""

from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compressor.arrays import Ranks
from compressor.fidelity.losses import Losses
from compressor.search.initial import allocation
from compressor.search.initial.sensitivity import SENSITIVITY_RANKS, measure_sensitivities, sensitivity_tables
from compressor.search.objective import Objective
from compressor.search.space import CONTEXT_STEP, SHARES_OF_THE_WAY, RankSpace
from compressor.search.surrogate.additive_prior import LOSS_FLOOR, sum_of

Array = NDArray[np.float64]


@st.composite
def problems(draw: st.DrawFn) -> tuple[RankSpace, list[Array]]:
    """Up to three layers of any costs, and losses that need not even fall with the rank."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    break_even_ranks = draw(st.lists(st.integers(2, 6), min_size=1, max_size=3))
    space = RankSpace(
        [f"layer{i}" for i in range(len(break_even_ranks))],
        [np.cumsum(rng.integers(1, 50, break_even_rank)) for break_even_rank in break_even_ranks],
    )
    scale = draw(st.sampled_from([0.01, 1.0, 100.0]))
    return space, [scale * rng.exponential(size=break_even_rank) for break_even_rank in break_even_ranks]


def lattice(space: RankSpace, every: int = 1) -> Ranks:
    return np.array(
        list(product(*(range(1, break_even_rank + 1, every) for break_even_rank in space.break_even_ranks)))
    )


def total_loss(losses: list[Array], ranks: Ranks) -> Array:
    """Losses of many layers as the sum of the single ones."""
    return np.array([sum(table[rank - 1] for table, rank in zip(losses, row, strict=True)) for row in ranks])


@settings(max_examples=150, deadline=None)
@given(problems(), st.floats(1e-4, 1e3))
def test_the_allocation_is_the_best_of_all_plans(problem: tuple[RankSpace, list[Array]], weight: float) -> None:
    space, losses = problem
    found = allocation.allocate(space, losses, weight)
    costs = space.ratio(lattice(space)) + weight * total_loss(losses, lattice(space))
    cost = space.ratio(found[None]) + weight * total_loss(losses, found[None])
    assert cost[0] == pytest.approx(costs.min(), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(problems(), st.floats(1e-4, 1e2), st.floats(1.01, 100))
def test_a_larger_weight_never_loses_more(problem: tuple[RankSpace, list[Array]], weight: float, factor: float) -> None:
    space, losses = problem
    light, heavy = (allocation.allocate(space, losses, value)[None] for value in (weight, weight * factor))
    assert total_loss(losses, heavy)[0] <= total_loss(losses, light)[0] + 1e-12
    assert space.ratio(heavy)[0] >= space.ratio(light)[0] - 1e-12


def test_the_sum_of_sensitivities_is_the_sum() -> None:
    losses = [np.array([3.0, 1.0, 0.0]), np.array([0.5, 0.0])]
    ranks = np.array([[1, 1], [2, 2], [3, 1]])
    np.testing.assert_allclose(sum_of(losses)(ranks), [3.5, 1.0, 0.5])


class MeasureLayers:
    """Gives single-layer losses `loss(layer, rank)`, and remembers the plans that were asked for."""

    def __init__(self, space: RankSpace, loss: object) -> None:
        self.space = space
        self.loss = loss
        self.asked: list[tuple[int, int]] = []

    def __call__(self, plans: list[Ranks]) -> list[Losses]:
        return [self.evaluation(ranks) for ranks in plans]

    def evaluation(self, ranks: Ranks) -> Losses:
        (layer,) = np.flatnonzero(ranks != self.space.break_even_ranks)  # one layer, below its break-even rank
        rank = int(ranks[layer])
        self.asked.append((int(layer), rank))
        assert callable(self.loss)
        return Losses(np.arange(2), np.full(2, self.loss(layer, rank)))


def make_space(break_even_ranks: list[int]) -> RankSpace:
    return RankSpace(
        [str(break_even_rank) for break_even_rank in break_even_ranks],
        [list(range(1, break_even_rank + 1)) for break_even_rank in break_even_ranks],
    )


@given(st.lists(st.integers(2, 400), min_size=1, max_size=4), st.integers(0, 1000))
def test_noisy_sensitivities_never_rise_with_the_rank_and_end_at_zero(break_even_ranks: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    measure = MeasureLayers(make_space(break_even_ranks), lambda layer, rank: rng.lognormal())
    tables = sensitivity_tables(measure.space, measure_sensitivities(measure.space, measure))
    assert [len(table) for table in tables] == break_even_ranks
    for table in tables:
        assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(table))
        assert (table[:-1] > 0).all()
        assert table[-1] == 0


@given(st.lists(st.integers(2, 400), min_size=1, max_size=4))
def test_sensitivities_are_few_begin_at_rank_one_and_never_repeat(break_even_ranks: list[int]) -> None:
    measure = MeasureLayers(make_space(break_even_ranks), lambda layer, rank: 1.0)
    measure_sensitivities(measure.space, measure)
    assert len(set(measure.asked)) == len(measure.asked) <= SENSITIVITY_RANKS * len(break_even_ranks)
    assert {layer for layer, rank in measure.asked if rank == 1} == set(range(len(break_even_ranks)))
    for layer, break_even_rank in enumerate(break_even_ranks):
        if break_even_rank >= 40:
            assert sum(asked == layer for asked, _ in measure.asked) == SENSITIVITY_RANKS


def test_a_power_law_is_met_at_every_rank_between_those_measured() -> None:
    measure = MeasureLayers(make_space([300, 50]), lambda layer, rank: (layer + 1) * rank**-1.5)
    tables = sensitivity_tables(measure.space, measure_sensitivities(measure.space, measure))
    for layer, table in enumerate(tables):
        last = max(rank for asked, rank in measure.asked if asked == layer)
        ranks = np.arange(1, last + 1)
        np.testing.assert_allclose(table[:last], (layer + 1) * ranks**-1.5)
        np.testing.assert_allclose(table[last:-1], table[last - 1])


def test_a_layer_without_effect_is_no_logarithm_of_zero() -> None:
    measure = MeasureLayers(make_space([30]), lambda layer, rank: 0.0)
    (table,) = sensitivity_tables(measure.space, measure_sensitivities(measure.space, measure))
    assert np.isfinite(table).all()
    assert table.max() <= LOSS_FLOOR * 1.01


class JointLosses:
    """Gives J of plans where joint losses are `excess` times the sum of single ones, and remembers the plans."""

    def __init__(self, space: RankSpace, objective: Objective, losses: list[Array], excess: float = 1.0) -> None:
        self.space, self.objective, self.losses, self.excess = space, objective, losses, excess
        self.seen: list[tuple[list[int], float]] = []

    def value(self, ranks: Ranks) -> Array:
        return self.objective.value(self.excess * total_loss(self.losses, ranks), self.space.ratio(ranks))

    def __call__(self, ranks: Ranks) -> float:
        value = float(self.value(ranks[None])[0])
        self.seen.append((ranks.tolist(), value))
        return value


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([0.01, 0.3, 5.0]), st.sampled_from([0.5, 1.0, 4.0]))
def test_the_curve_gives_the_best_plan_evaluated_and_evaluates_none_twice(
    problem: tuple[RankSpace, list[Array]], gamma: float, excess: float
) -> None:
    space, losses = problem
    joint = JointLosses(space, Objective(gamma), losses, excess)
    best = allocation.evaluate_along_curve(space, joint.objective, losses, joint)
    plans = [tuple(plan) for plan, _ in joint.seen]
    assert len(set(plans)) == len(plans) <= len(allocation.CURVE_WEIGHTS) + 2 * allocation.NUM_CURVE_REFINEMENTS
    assert joint.value(best[None])[0] == max(value for _, value in joint.seen)


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([0.01, 0.3, 5.0]), st.sampled_from([0.25, 1.0, 4.0, 16.0]))
def test_where_losses_add_up_the_curve_holds_the_best_of_all_plans(
    problem: tuple[RankSpace, list[Array]], gamma: float, excess: float
) -> None:
    """Joint losses 4 or 16 times the sum are an allocation at 4 or 16 times the weight: also on the curve."""
    space, losses = problem
    joint = JointLosses(space, Objective(gamma), losses, excess)
    best = allocation.evaluate_along_curve(space, joint.objective, losses, joint)
    assert joint.value(best[None])[0] == pytest.approx(joint.value(lattice(space)).max(), rel=1e-9)


class InContext:
    """Losses that multiply across layers: what a layer loses alone says little about what it loses beside others."""

    def __init__(self, num_dims: int = 4, break_even_rank: int = 40, gamma: float = 0.2) -> None:
        self.space = RankSpace(
            [str(i) for i in range(num_dims)], [[10 * k for k in range(1, break_even_rank + 1)]] * num_dims
        )
        self.objective = Objective(gamma)
        self.powers = np.linspace(0.3, 1.5, num_dims)
        self.image_scales = np.random.default_rng(0).uniform(0.5, 1.5, 50)
        self.evaluated: list[tuple[tuple[int, ...], int]] = []

    def loss(self, ranks: Ranks) -> float:
        shares = ranks / self.space.break_even_ranks
        return float(np.prod(shares**-self.powers) - 1)

    def value(self, ranks: Ranks) -> float:
        return float(self.objective.value(np.array(self.loss(ranks)), self.space.ratio(ranks[None])[0]))

    def evaluation(self, count: int) -> Callable[[Ranks], Losses]:
        def evaluation(ranks: Ranks) -> Losses:
            self.evaluated.append((tuple(ranks.tolist()), count))
            scales = self.image_scales[:count]
            return Losses(np.arange(count), self.loss(ranks) * scales / self.image_scales.mean())

        return evaluation

    def reallocate(self, plan: Ranks) -> Ranks:
        evaluate_uncounted = self.evaluation(allocation.CONTEXT_IMAGES)
        return allocation.reallocate(
            self.space,
            self.objective,
            plan,
            self.evaluation(50),
            lambda plans: [evaluate_uncounted(ranks) for ranks in plans],
        )


@pytest.mark.parametrize("first", [(20, 20, 20, 20), (40, 40, 40, 40), (8, 30, 8, 30)])
def test_reallocation_climbs_where_layers_depend_on_each_other(first: tuple[int, ...]) -> None:
    problem = InContext()
    plan = np.array(first)
    values = [problem.value(plan)]
    for _ in range(6):
        plan = problem.reallocate(plan)
        values.append(problem.value(plan))
    assert values == sorted(values)
    everything = lattice(problem.space, every=3)
    best = max(problem.value(ranks) for ranks in everything)
    assert best - values[-1] < 0.1 * (best - values[0])


def test_reallocation_changes_layers_by_a_step_at_most_and_evaluates_little() -> None:
    problem = InContext()
    plan = np.array([12, 12, 12, 40])
    found = problem.reallocate(plan)
    assert (np.abs(np.log(found / plan)) <= np.log(CONTEXT_STEP) + 0.06).all()
    uncounted = [ranks for ranks, count in problem.evaluated if count == allocation.CONTEXT_IMAGES]
    assert len(uncounted) == 2 * 4 - 1  # nothing lies above dense
    assert all((np.array(ranks) != plan).sum() == 1 for ranks in uncounted)
    evaluations = [ranks for ranks, count in problem.evaluated if count == 50]
    assert len(set(evaluations)) == len(evaluations) <= 2 + len(SHARES_OF_THE_WAY)
    assert tuple(found.tolist()) in evaluations


def test_the_best_plan_is_kept() -> None:
    problem = InContext(num_dims=1)
    best = max((np.array([rank]) for rank in range(1, 41)), key=problem.value)
    np.testing.assert_array_equal(problem.reallocate(best), best)
