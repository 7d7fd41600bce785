"""Sample paths against the exact posterior, and local searches on them against enumeration."""

import itertools
from unittest import mock

import numpy as np
import pytest
from sklearn.gaussian_process.kernels import Matern

from compressor.arrays import Ranks
from compressor.search.objective import Objective
from compressor.search.space import RankSpace
from compressor.search.stopping.sample_paths import NUM_LEVELS, LatentSamplePaths, SamplePaths, _sweep, local_search
from compressor.search.surrogate import gp
from compressor.search.surrogate.base import Surrogate
from compressor.search.surrogate.gaussian import LossSurrogate
from compressor.search.surrogate.lognormal import LognormalSurrogate
from compressor.search.surrogate.objective import ObjectiveSurrogate

LENGTHS = np.array([0.4, 0.9])
SIGNAL = 1.7


def make_process(seed: int = 0) -> gp.GaussianProcess:
    """Six observations with correlated noise, and excess noise."""
    rng = np.random.default_rng(seed)
    root = 0.2 * rng.standard_normal((6, 6))
    hyper = gp.Hyperparameters(LENGTHS, SIGNAL, 0.05, 0.4)
    return gp.GaussianProcess(rng.random((6, 2)), rng.standard_normal(6), root @ root.T, hyper)


def test_paths_have_the_mean_and_covariance_of_the_exact_posterior() -> None:
    process, points = make_process(), np.random.default_rng(1).random((7, 2))
    kernel = SIGNAL * Matern(LENGTHS, nu=2.5)(np.vstack([process.thetas, points]))
    own, cross, rest = kernel[:6, :6], kernel[6:, :6], kernel[6:, 6:]
    gain = cross @ np.linalg.inv(own + process.noise + 0.05 * np.eye(6))
    rng = np.random.default_rng(2)
    draws = np.concatenate([LatentSamplePaths(process, 200, rng)(points) for _ in range(60)], axis=1)
    deviations = np.sqrt(np.diag(rest - gain @ cross.T))
    np.testing.assert_allclose(draws.mean(1), 0.4 + gain @ (process.targets - 0.4), atol=0.05)
    np.testing.assert_allclose(
        np.cov(draws) / np.outer(deviations, deviations),
        (rest - gain @ cross.T) / np.outer(deviations, deviations),
        atol=0.06,
    )


def test_without_observations_paths_are_draws_of_the_prior() -> None:
    nothing = gp.GaussianProcess(np.zeros((0, 2)), np.zeros(0), np.zeros((0, 0)), make_process().hyper)
    points = np.array([[0.1, 0.2], [0.3, 0.2], [0.9, 0.9]])
    rng = np.random.default_rng(0)
    draws = np.concatenate([LatentSamplePaths(nothing, 200, rng)(points) for _ in range(40)], axis=1)
    np.testing.assert_allclose(np.cov(draws), SIGNAL * Matern(LENGTHS, nu=2.5)(points), atol=0.12)
    np.testing.assert_allclose(draws.mean(1), 0.4, atol=0.06)


def test_a_noiseless_observation_is_on_every_path() -> None:
    hyper = gp.Hyperparameters(LENGTHS, SIGNAL, 0.0, 0.0)
    process = gp.GaussianProcess(np.array([[0.2, 0.7]]), np.array([1.3]), np.zeros((1, 1)), hyper)
    values = LatentSamplePaths(process, 50, np.random.default_rng(0))(np.array([[0.2, 0.7]]))
    np.testing.assert_allclose(values, 1.3, atol=1e-3)


def make_paths(kind: str, count: int) -> SamplePaths:
    space = RankSpace(["a", "b"], [[10 * rank for rank in range(1, 15)], [7 * rank for rank in range(1, 12)]])
    objective = Objective(0.05)
    surrogate: Surrogate = {
        "objective": ObjectiveSurrogate(space, objective),
        "loss": LossSurrogate(space, objective, lambda ranks: (3.0 / ranks).sum(-1)),
        "log": LognormalSurrogate(space, objective, lambda ranks: (3.0 / ranks).sum(-1)),
    }[kind]
    return SamplePaths(surrogate.posterior(make_process()), count, np.random.default_rng(3))


@pytest.mark.parametrize("kind", ["objective", "loss", "log"])
def test_a_local_search_ends_where_no_line_has_a_better_plan(kind: str) -> None:
    paths = make_paths(kind, 20)
    space = paths.posterior.space
    assert all(len(choices) <= NUM_LEVELS for choices in space.choices)  # every rank is on the line
    everything: Ranks = np.array(list(itertools.product(range(1, 15), range(1, 12))))
    values = paths(everything).reshape(14, 11, 20)
    starts = space.sample(20, np.random.default_rng(0))
    points, heights = local_search(paths, np.arange(20), starts, sweeps=30)
    for path, (start, point, height) in enumerate(zip(starts, points, heights, strict=True)):
        row, column = point - 1
        own = values[row, column, path]
        assert height == pytest.approx(own, abs=1e-4)
        assert own >= values[start[0] - 1, start[1] - 1, path] - 1e-4
        assert own >= max(values[:, column, path].max(), values[row, :, path].max()) - 1e-4


def test_lines_are_finer_around_a_centre() -> None:
    space = RankSpace(
        ["wide", "narrow"],
        [[10.0 * rank for rank in range(1, break_even_rank + 1)] for break_even_rank in (300, 11)],
    )
    posterior = LossSurrogate(space, Objective(0.05)).posterior(make_process())
    centre, rng = np.array([120, 5]), np.random.default_rng(0)
    evenly, finer = SamplePaths(posterior, 2, rng), SamplePaths(posterior, 2, rng, centre=centre)
    added = set(finer.line(0).ranks) - set(evenly.line(0).ranks)
    assert 120 in added
    assert 6 <= len(added) <= 9
    assert np.abs(np.log(np.array(list(added)) / 120) / np.log(300)).max() < 4.5 / 64
    assert finer.line(1).ranks.tolist() == evenly.line(1).ranks.tolist() == list(range(1, 12))


def test_local_searches_from_good_points_find_the_largest_value() -> None:
    paths = make_paths("loss", 100)
    everything: Ranks = np.array(list(itertools.product(range(1, 15), range(1, 12))))
    largest = paths(everything).max(0)
    pool = paths.posterior.space.sample(120, np.random.default_rng(0))
    _, heights = local_search(paths, np.arange(100), pool[paths(pool).argmax(0)])
    assert (heights > largest - 1e-3).mean() > 0.9


@pytest.mark.parametrize("quantile", [0.3, 0.7, 0.95])
def test_searches_with_a_goal_reach_it_as_often_for_less_work(quantile: float) -> None:
    paths = make_paths("log", 200)
    starts, every = paths.posterior.space.sample(200, np.random.default_rng(0)), np.arange(200)
    _, heights = local_search(paths, every, starts)
    goals = np.full(200, np.quantile(heights, quantile))
    with mock.patch("compressor.search.stopping.sample_paths._sweep", wraps=_sweep) as sweep:
        _, reached = local_search(paths, every, starts, goals=goals)
        with_goals = sum(len(call.args[1]) for call in sweep.call_args_list)
        local_search(paths, every, starts)
        in_full = sum(len(call.args[1]) for call in sweep.call_args_list) - with_goals
    assert ((reached > goals) == (heights > goals)).mean() > 0.99
    assert with_goals < in_full


def test_j_on_a_path_is_the_objective_of_its_l() -> None:
    """Under the log surrogate L = exp(process + prior mean) - c, and J = -gamma L - R."""
    paths = make_paths("log", 5)
    ranks = np.array([[3, 4], [14, 11]])
    latent = paths.latent(paths.posterior.space.encode(ranks))
    offset = 1e-4 / 0.05
    norms = np.exp(latent) * ((3.0 / ranks).sum(1) + offset)[:, None] - offset
    ratio = (10 * ranks[:, 0] + 7 * ranks[:, 1]) / (140 + 77)
    np.testing.assert_allclose(paths(ranks), -0.05 * norms - ratio[:, None], rtol=1e-6)
