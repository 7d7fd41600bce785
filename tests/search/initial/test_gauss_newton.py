"""Coordinate ascent by a linear model, and the prior mean that the model gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.arrays import Ranks
from compressor.fidelity.linear_model import LinearModel
from compressor.search.initial import gauss_newton
from compressor.search.objective import Objective
from compressor.search.space import RankSpace, alternatives, with_rank
from compressor.search.surrogate.additive_prior import around_plan


def random_model(seed: int, num_layers: int) -> tuple[RankSpace, Ranks, LinearModel]:
    rng = np.random.default_rng(seed)
    space = RankSpace([str(i) for i in range(num_layers)], [[100.0 * rank for rank in range(1, 21)]] * num_layers)
    plan = rng.integers(3, 15, num_layers)
    others = alternatives(space, plan)
    changes = [
        {rank: rng.normal(0, abs(np.log(rank / own)), (8, 3)) for rank in ranks}
        for ranks, own in zip(others, plan, strict=True)
    ]
    return space, plan, LinearModel(rng.normal(0, 0.5, (8, 3)), changes, 0)


def value_by_model(space: RankSpace, objective: Objective, plan: Ranks, model: LinearModel, ranks: Ranks) -> float:
    """J with the loss raised by CAUTION standard errors of the gain."""
    moved = model.residuals.copy()
    for rows, rank, own in zip(model.changes, ranks, plan, strict=True):
        moved = moved + (rows[int(rank)] if rank != own else 0.0)
    losses = np.square(moved).sum(1)
    gains = losses - np.square(model.residuals).sum(1)
    cautious = losses.mean() + gauss_newton.CAUTION * gains.std(ddof=1) / np.sqrt(len(gains))
    return float(objective.value(cautious, space.ratio(ranks[None])[0]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.1, 1.0]))
def test_no_single_change_is_a_gain_where_coordinate_ascent_ends(seed: int, gamma: float) -> None:
    space, plan, model = random_model(seed, 3)
    objective = Objective(gamma)
    found = gauss_newton.coordinate_ascent(space, objective, plan, model)
    best = value_by_model(space, objective, plan, model, found)
    for layer, rows in enumerate(model.changes):
        for rank in [int(plan[layer]), *rows]:
            changed = found.copy()
            changed[layer] = rank
            assert value_by_model(space, objective, plan, model, changed) <= best + 1e-8


def test_a_line_search_begins_with_the_plan_and_ends_with_the_target() -> None:
    space, plan, _ = random_model(0, 3)
    plans = gauss_newton.line_search_plans(space, plan, plan + 3)
    assert plans[0].tolist() == plan.tolist()
    assert plans[-1].tolist() == (plan + 3).tolist()
    assert len(gauss_newton.line_search_plans(space, plan, plan)) == 1


def test_a_gain_within_chance_is_not_taken() -> None:
    """Both layers lower the loss as much on average; one of them on one image alone."""
    space, plan = RankSpace(["sure", "lucky"], [[1.0, 2.0, 3.0]] * 2), np.array([2, 2])
    residuals = np.ones((100, 1))
    lucky = np.zeros((100, 1))
    lucky[0] = -1.0
    model = LinearModel(residuals, [{1: np.full((100, 1), -0.02)}, {3: lucky}], 0)
    found = gauss_newton.coordinate_ascent(space, Objective(1.0), plan, model)
    assert found.tolist() == [1, 2]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_around_a_plan_its_own_loss_and_its_neighbours_are_expected(seed: int) -> None:
    space, plan, model = random_model(seed, 3)
    rng = np.random.default_rng(seed)
    alone = [np.sort(rng.lognormal(size=int(break_even_rank)))[::-1] for break_even_rank in space.break_even_ranks]
    norms = [{rank: model.norm * own / rank for rank in row} for row, own in zip(model.changes, plan, strict=True)]
    expected = around_plan(plan, model.norm, norms, alone)
    assert expected(plan) == pytest.approx(model.norm)
    everywhere = expected(space.sample(200, rng))
    assert np.isfinite(everywhere).all()
    assert (everywhere > 0).all()
    for layer, row in enumerate(norms):
        lowest = min(row)
        assert expected(with_rank(plan, layer, lowest)) == pytest.approx(row[lowest])
        assert expected(with_rank(plan, layer, 1)) >= row[lowest] * (1 - 1e-9)


def test_around_a_plan_losses_go_on_beyond_the_ranks_that_the_model_knows() -> None:
    """Also where chance let the lowest of them seem better than the plan's own."""
    space, plan, _ = random_model(0, 3)
    alone = [np.geomspace(5.0, 0.01, int(break_even_rank)) for break_even_rank in space.break_even_ranks]
    break_even_ranks, own = space.break_even_ranks.tolist(), plan.tolist()
    chance = [
        {max(1, rank // 2): 0.9, min(break_even_rank - 1, 2 * rank): 0.8}
        for rank, break_even_rank in zip(own, break_even_ranks, strict=True)
    ]
    expected = around_plan(plan, 1.0, chance, alone)
    for layer, (row, break_even_rank) in enumerate(zip(chance, break_even_ranks, strict=True)):
        losses = [float(expected(with_rank(plan, layer, rank))) for rank in (1, min(row), max(row), break_even_rank)]
        assert losses[0] >= losses[1] + 0.9 * (alone[layer][0] - alone[layer][min(row) - 1])
        assert losses[2] > losses[3] > 0
