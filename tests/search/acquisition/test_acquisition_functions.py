"""Acquisitions beside PAC: against quadrature, the paper's special case, and sampling."""

import itertools

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from compressor.search.acquisition.improvement import CONFIDENCE_WIDTH, Improvement, log_expected_improvement
from compressor.search.acquisition.optimize import optimize_acquisition
from compressor.search.objective import Objective
from compressor.search.space import RankSpace
from compressor.search.surrogate import gp
from compressor.search.surrogate.base import Score, Surrogate
from compressor.search.surrogate.gaussian import LossSurrogate, ObjectiveSurrogate
from compressor.search.surrogate.lognormal import LognormalSurrogate

POINTS = np.array([[4, 6], [20, 2], [9, 9], [25, 1]])
DELTA = 0.02
GAMMA = 0.05


def make_score(kind: str) -> Score:
    space = RankSpace(["a", "b"], [[10 * rank for rank in range(1, 31)], [7 * rank for rank in range(1, 21)]])
    objective = Objective(GAMMA)
    surrogate: Surrogate = {
        "plain": ObjectiveSurrogate(space, objective),
        "loss": LossSurrogate(space, objective),
        "log": LognormalSurrogate(space, objective, lambda r: one(r)),
    }[kind]
    ranks = space.sample(7, np.random.default_rng(2))
    norms = 1.4 * one(ranks)
    targets = surrogate.targets(ranks, norms, np.diag((0.1 * norms) ** 2))
    hyper = gp.Hyperparameters(np.array([0.5, 0.7]), 0.05, 0.0, float(targets.values.mean()))
    posterior = surrogate.posterior(gp.GaussianProcess(space.encode(ranks), targets.values, targets.noise, hyper))
    return posterior.score(ranks[posterior.mean(ranks).argmax()], DELTA)


def one(ranks: np.ndarray) -> np.ndarray:
    """A sum of sensitivities."""
    return np.asarray((4.0 / ranks).sum(-1))


@pytest.mark.parametrize("mean", [-3.0, -0.5, 0.0, 0.2, 5.0])
@pytest.mark.parametrize("deviation", [0.3, 2.0])
def test_expected_improvement_is_the_integral(mean: float, deviation: float) -> None:
    expected, _ = quad(lambda x: x * norm.pdf(x, mean, deviation), 0, mean + 12 * deviation, epsabs=1e-30)
    found = log_expected_improvement(np.array([mean]), np.array([deviation]))[0]
    assert np.exp(found) == pytest.approx(expected, rel=1e-6)


def test_expected_improvement_keeps_an_order_where_it_underflows() -> None:
    means = -np.geomspace(0.9, 1e7, 400)
    values = log_expected_improvement(means, np.ones(400))
    assert np.isfinite(values).all()
    assert (np.diff(values) < 0).all()
    assert np.isfinite(log_expected_improvement(np.array([-1.0, 0.0, 1.0]), np.zeros(3))).all()
    # far below, log EI = log phi(z) - 2 log |z|
    assert values[-1] == pytest.approx(-0.5 * 1e14, rel=1e-6)


@pytest.mark.parametrize("kind", ["plain", "loss", "log"])
def test_moments_of_j_and_of_its_difference_found_by_sampling(kind: str) -> None:
    score = make_score(kind)
    posterior, both = score.posterior, np.concatenate([score.incumbent[None], POINTS])
    mean, covariance = posterior.process.predict(posterior.space.encode(both))
    draws = np.random.default_rng(1).multivariate_normal(mean, covariance, size=400_000)
    values = posterior.objective_of(both, draws)
    found_mean, found_deviation = posterior.moments(both)
    np.testing.assert_allclose(found_mean, values.mean(0), rtol=0.01)
    np.testing.assert_allclose(found_deviation, values.std(0), rtol=0.02)
    np.testing.assert_allclose(found_mean, posterior.mean(both))
    differences = values[:, 1:] - values[:, :1]
    mean, variance = score.difference(POINTS)
    np.testing.assert_allclose(mean, differences.mean(0), atol=0.01 * differences.std(0).max())
    np.testing.assert_allclose(np.sqrt(variance), differences.std(0), rtol=0.02)


def test_under_the_plain_surrogate_the_four_are_their_formulas() -> None:
    score = make_score("loss")
    posterior, both = score.posterior, np.concatenate([score.incumbent[None], POINTS])
    mean, covariance = posterior.process.predict(posterior.space.encode(both))
    mean = mean + posterior.size_term(both)
    gain, deviation = mean[1:] - mean[0], np.sqrt(np.diag(covariance))[1:]
    np.testing.assert_allclose(np.exp(Improvement(score, "pi")(POINTS)), norm.cdf(gain / deviation))
    np.testing.assert_allclose(Improvement(score, "lcb")(POINTS), mean[1:] + CONFIDENCE_WIDTH * deviation)
    z = gain / deviation
    np.testing.assert_allclose(np.exp(Improvement(score, "ei")(POINTS)), deviation * (norm.pdf(z) + z * norm.cdf(z)))
    deviation = np.sqrt(np.diag(covariance)[1:] + covariance[0, 0] - 2 * covariance[0, 1:])
    z = (gain - DELTA) / deviation
    expected = deviation * (norm.pdf(z) + z * norm.cdf(z))
    np.testing.assert_allclose(np.exp(Improvement(score, "pac-ei")(POINTS)), expected, rtol=1e-6)


@pytest.mark.parametrize("surrogate", ["plain", "loss", "log"])
@pytest.mark.parametrize("kind", ["pac-ei", "ei", "pi", "lcb"])
def test_each_is_maximized_over_the_lattice_and_never_at_the_incumbent(surrogate: str, kind: str) -> None:
    score = make_score(surrogate)
    criterion = Improvement(score, kind)  # type: ignore[arg-type]
    everything = np.array(list(itertools.product(range(1, 31), range(1, 21))))
    point, value = optimize_acquisition(
        criterion, score.posterior.space, score.incumbent[None], np.random.default_rng(0)
    )
    assert value == pytest.approx(criterion(everything).max(), rel=1e-9)
    assert not np.array_equal(point, score.incumbent)
    assert criterion(score.incumbent[None])[0] == -np.inf
