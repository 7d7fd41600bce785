"""The prior mean from truncated energies: sensitivities are recovered where losses are sums of energies."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressor.factorization.registry import METHODS
from compressor.network.layers import find_layers
from compressor.pipeline.stages.factorize import energies_of
from compressor.search.surrogate.energy_prior import EnergyPrior

BREAK_EVEN_RANKS = (9, 30, 14)


def shares(seed: int = 0) -> list[np.ndarray]:
    """Energies that fall with the rank, none left at the break-even rank."""
    rng = np.random.default_rng(seed)
    tails = [np.cumsum(rng.gamma(0.5, size=break_even_rank))[::-1] for break_even_rank in BREAK_EVEN_RANKS]
    return [np.append(tail[1:], 0.0) / tail[0] for tail in tails]


def plans(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, np.array(BREAK_EVEN_RANKS), size=(count, len(BREAK_EVEN_RANKS)))


def loss_of(sensitivities: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    tables = shares()
    return sum(s * tables[layer][ranks[..., layer] - 1] for layer, s in enumerate(sensitivities))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 100.0), min_size=3, max_size=3), st.integers(0, 5))
def test_true_initial_sensitivities_are_kept_whatever_is_evaluated(values: list[float], count: int) -> None:
    sensitivities = np.array(values)
    prior = EnergyPrior(shares())
    prior.initialize([s * share for s, share in zip(sensitivities, shares(), strict=True)])
    evaluated, others = plans(count), plans(50, seed=2)
    expected = prior.fit(evaluated, loss_of(sensitivities, evaluated))
    np.testing.assert_allclose(expected(others), loss_of(sensitivities, others), rtol=1e-6)


def test_evaluations_correct_wrong_initial_sensitivities() -> None:
    sensitivities = np.array([0.3, 5.0, 2.0])
    prior = EnergyPrior(shares())
    prior.initialize([share.copy() for share in shares()])
    others = plans(50, seed=2)
    errors = [
        np.abs(np.log(prior.fit(evaluated, loss_of(sensitivities, evaluated))(others) / loss_of(sensitivities, others)))
        for evaluated in (plans(1), plans(200))
    ]
    assert errors[1].max() < 0.3 < 1.0 < errors[0].max()


def test_saturation_is_undone_and_destroyed_plans_are_left_out() -> None:
    sensitivities, saturation = np.array([0.3, 5.0, 2.0]), 3.0
    evaluated, others = plans(60), plans(50, seed=2)
    sums = loss_of(sensitivities, evaluated)
    losses = np.where(sums < saturation, sums / (1.0 + sums / saturation), 40.0)  # far off where destroyed
    prior = EnergyPrior(shares())
    prior.initialize([s * share for s, share in zip(sensitivities, shares(), strict=True)])
    expected = prior.fit(evaluated, losses, saturation)
    np.testing.assert_allclose(expected(others), loss_of(sensitivities, others), rtol=1e-6)


def test_without_initial_sensitivities_all_energies_are_worth_the_same_at_first() -> None:
    evaluated = plans(1)
    expected = EnergyPrior(shares()).fit(evaluated, 7.0 * loss_of(np.ones(3), evaluated))
    others = plans(50, seed=2)
    np.testing.assert_allclose(expected(others), 7.0 * loss_of(np.ones(3), others), rtol=1e-6)


def test_a_layer_that_discards_nothing_is_expected_to_lose_nothing() -> None:
    nothing = [np.zeros(break_even_rank) for break_even_rank in BREAK_EVEN_RANKS]
    prior = EnergyPrior(nothing)
    prior.initialize(nothing)
    assert prior.fit(plans(4), np.ones(4))(plans(9)) == pytest.approx(0.0)


def test_energies_of_a_layer_are_shares_of_its_squared_singular_values() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 12))
    (layer,) = find_layers(network, torch.randn(2, 20))
    squares = torch.linalg.svdvals(layer.module.weight.detach().double()).square()
    found = energies_of(layer, METHODS["svd"].factorize(layer.module))
    expected = [float(squares[rank:].sum() / squares.sum()) for rank in range(1, layer.dense_rank)]
    np.testing.assert_allclose(found, [*expected, 0.0], rtol=1e-4)
