"""Eq. (7) under all surrogates: against the formula, against sampling, and its special cases."""

import numpy as np
import pytest
from scipy.stats import norm

from compressor.arrays import Ranks
from compressor.search.acquisition.pac import Pac
from compressor.search.objective import Objective
from compressor.search.space import RankSpace
from compressor.search.surrogate import gp
from compressor.search.surrogate.base import Surrogate
from compressor.search.surrogate.gaussian import LossSurrogate
from compressor.search.surrogate.lognormal import LognormalPosterior, LognormalSurrogate
from compressor.search.surrogate.objective import ObjectiveSurrogate
from compressor.search.surrogate.posterior import Posterior

GAMMA = 0.05
GAUSSIAN = ["objective", "loss", "loss, expected"]


def small_space() -> RankSpace:
    return RankSpace(["a", "b"], [[10 * rank for rank in range(1, 31)], [7 * rank for rank in range(1, 21)]])


def additive(ranks: Ranks) -> np.ndarray:
    return 4.0 / ranks[:, 0] + 3.0 / ranks[:, 1]


def make_posterior(kind: str, count: int = 8, relative_noise: float = 0.1) -> tuple[Surrogate, Posterior, Ranks]:
    space, rng = small_space(), np.random.default_rng(2)
    objective = Objective(GAMMA)
    surrogate: Surrogate = {
        "objective": ObjectiveSurrogate(space, objective),
        "loss": LossSurrogate(space, objective),
        "loss, expected": LossSurrogate(space, objective, additive, saturation=9.0),
        "log": LognormalSurrogate(space, objective, additive),
    }[kind]
    ranks = space.sample(count, rng)
    norms = 1.5 * additive(ranks) * np.exp(relative_noise * rng.standard_normal(count))
    targets = surrogate.targets(ranks, norms, np.diag((relative_noise * norms) ** 2))
    hyper = gp.Hyperparameters(
        np.array([0.6, 0.8]), 0.3 * float(targets.values.var()) + 0.01, 0.0, targets.values.mean()
    )
    process = gp.GaussianProcess(space.encode(ranks), targets.values, targets.noise, hyper)
    return surrogate, surrogate.posterior(process), ranks


def known_of(kind: str, posterior: Posterior, points: Ranks) -> np.ndarray:
    """What is added to the process for J."""
    known = np.zeros(len(points)) if kind == "objective" else posterior.size_term(points)
    bent = 1.0 / (1.0 / additive(points) + 1.0 / 9.0)
    return known - GAMMA * bent if kind == "loss, expected" else known


@pytest.mark.parametrize("kind", GAUSSIAN)
def test_where_j_is_gaussian_the_probability_is_equation_7(kind: str) -> None:
    _, posterior, ranks = make_posterior(kind)
    incumbent, delta = ranks[0], 0.02
    points = posterior.space.sample(20, np.random.default_rng(5))
    points = points[(points != incumbent).any(1)]
    comparison = posterior.compare(incumbent)
    for point in points:
        both = np.stack([point, incumbent])
        mean, covariance = posterior.process.predict(posterior.space.encode(both))
        mean = mean + known_of(kind, posterior, both)
        deviation = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
        expected = norm.cdf((mean[0] - mean[1] - delta) / deviation)
        assert np.exp(comparison.log_probability(point[None], delta))[0] == pytest.approx(expected, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("delta", [0.001, 0.02])
def test_where_l_is_log_normal_the_probability_is_that_found_by_sampling(delta: float) -> None:
    _, posterior, ranks = make_posterior("log")
    assert isinstance(posterior, LognormalPosterior)
    incumbent = ranks[1]
    points = np.array([[3, 3], [5, 9], [8, 4], [12, 12], [2, 15]])
    comparison = posterior.compare(incumbent)
    rng = np.random.default_rng(0)
    for point in points:
        both = np.stack([point, incumbent])
        mean, covariance = posterior.process.predict(posterior.space.encode(both))
        mean = mean + np.log(additive(both) + posterior.offset)
        draws = np.exp(rng.multivariate_normal(mean, covariance, size=200_000)) - posterior.offset
        values = posterior.size_term(both) - GAMMA * draws
        expected = (values[:, 0] > values[:, 1] + delta).mean()
        assert np.exp(comparison.exact_log_probability(point[None], delta))[0] == pytest.approx(expected, abs=0.003)
        assert np.exp(comparison.log_probability(point[None], delta))[0] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("kind", [*GAUSSIAN, "log"])
def test_mean_and_deviation_of_j_found_by_sampling(kind: str) -> None:
    surrogate, posterior, _ = make_posterior(kind)
    points = np.array([[4, 6], [20, 2]])
    mean, covariance = posterior.process.predict(posterior.space.encode(points))
    draws = np.random.default_rng(1).multivariate_normal(mean, covariance, size=400_000)
    if isinstance(surrogate, LognormalSurrogate):
        norms = np.exp(draws + surrogate.prior_mean(points)) - surrogate.offset
        values = posterior.size_term(points) - GAMMA * norms
    else:
        values = draws + known_of(kind, posterior, points)
    np.testing.assert_allclose(posterior.mean(points), values.mean(0), rtol=0.01)
    np.testing.assert_allclose(posterior.sd(points), values.std(0), rtol=0.02)


@pytest.mark.parametrize("kind", ["loss", "loss, expected", "log"])
def test_pac_excludes_the_incumbent_and_a_plan_that_cannot_win_has_no_chance(kind: str) -> None:
    _, posterior, ranks = make_posterior(kind)
    pac = Pac(posterior, ranks[0], 0.01)
    assert pac(ranks[:1])[0] == pac.exact(ranks[:1])[0] == -np.inf
    assert np.exp(pac(posterior.space.break_even_ranks[None]))[0] < 1e-3  # all dense: R = 1, nothing to gain


def test_a_known_incumbent_gives_probability_of_improvement() -> None:
    """With var(incumbent) = cov = 0, Eq. (11) is PI."""
    space, objective = small_space(), Objective(GAMMA)
    surrogate = LossSurrogate(space, objective)
    ranks = np.array([[10, 10]])
    targets = surrogate.targets(ranks, additive(ranks), np.array([[1e-14]]))
    hyper = gp.Hyperparameters(np.array([1e-3, 1e-3]), 0.01, 0.0, float(targets.values[0]))
    posterior = surrogate.posterior(gp.GaussianProcess(space.encode(ranks), targets.values, targets.noise, hyper))
    point = np.array([[2, 3]])
    improvement = posterior.mean(point)[0] - posterior.mean(ranks)[0] - 0.01
    assert np.exp(Pac(posterior, ranks[0], 0.01)(point))[0] == pytest.approx(norm.cdf(improvement / 0.1), rel=1e-3)


def test_log_targets_are_unbiased_under_log_normal_noise() -> None:
    space, objective = small_space(), Objective(GAMMA)
    surrogate = LognormalSurrogate(space, objective, None)
    rng, spread = np.random.default_rng(0), 0.2
    estimates = np.exp(spread * rng.standard_normal(20_000) - spread**2 / 2)
    ranks = np.tile([5, 5], (1, 1))
    found = [
        surrogate.targets(ranks, np.array([value]), np.array([[(spread * value) ** 2]])).values[0]
        for value in estimates[:4000]
    ]
    assert np.mean(found) == pytest.approx(np.log(1 + surrogate.offset), abs=0.01)


def test_the_exact_probability_has_a_step_that_coarse_nodes_miss() -> None:
    """A plan whose value all but follows the incumbent's: given the incumbent, it wins or it does not."""
    space, objective = small_space(), Objective(GAMMA)
    surrogate = LognormalSurrogate(space, objective, None)
    ranks = np.array([[25, 15]])
    targets = surrogate.targets(ranks, np.array([1.0]), np.array([[0.04]]))
    hyper = gp.Hyperparameters(np.array([200.0, 200.0]), 0.5, 0.0, float(targets.values[0]))
    posterior = surrogate.posterior(gp.GaussianProcess(space.encode(ranks), targets.values, targets.noise, hyper))
    point = np.array([[24, 15]])
    mean, covariance = posterior.process.predict(space.encode(np.vstack([point, ranks])))
    draws = np.random.default_rng(3).multivariate_normal(mean, covariance, size=1_000_000)
    norms = np.exp(draws) - posterior.offset
    values = posterior.size_term(np.vstack([point, ranks])) - GAMMA * norms
    expected = (values[:, 0] > values[:, 1] + 0.012).mean()
    found = posterior.compare(ranks[0]).exact_log_probability(point, 0.012)
    assert np.exp(found)[0] == pytest.approx(expected, abs=0.004)


def test_the_prior_mean_is_the_sum_bounded_by_saturation() -> None:
    space, objective = small_space(), Objective(GAMMA)
    ranks = np.array([[1, 1], [4, 3], [30, 20]])
    sums = np.array([1000.0, 2.0, 0.0])
    surrogate = LognormalSurrogate(space, objective, lambda _: sums, saturation=50.0)
    expected = np.array([50_000 / 1050, 100 / 52, 0.0])
    np.testing.assert_allclose(np.exp(surrogate.prior_mean(ranks)) - surrogate.offset, expected, atol=1e-12)
    endless = LognormalSurrogate(space, objective, lambda _: sums)
    np.testing.assert_allclose(np.exp(endless.prior_mean(ranks)) - endless.offset, sums, atol=1e-12)


def test_the_objective_surrogate_models_j_as_a_whole_and_l_follows_from_it() -> None:
    surrogate, posterior, ranks = make_posterior("objective", relative_noise=0.0)
    targets = surrogate.targets(ranks, additive(ranks), np.zeros((len(ranks), len(ranks))))
    np.testing.assert_allclose(targets.values, posterior.objective.value(additive(ranks), posterior.space.ratio(ranks)))
    norms, _ = posterior.loss(ranks)
    np.testing.assert_allclose(norms, 1.5 * additive(ranks), rtol=1e-3)
    np.testing.assert_allclose(posterior.objective_of(ranks, targets.values), targets.values)
