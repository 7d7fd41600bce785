"""Acquisition functions against quadrature, sampling and their formulas; the table of names, and one added to it."""

import itertools

import click
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from compressor.arrays import Ranks
from compressor.cli import commands
from compressor.errors import InputError
from compressor.fidelity.losses import Losses
from compressor.search.acquisition.base import IncumbentAcquisition
from compressor.search.acquisition.expected_improvement import log_expected_improvement
from compressor.search.acquisition.optimize import optimize_acquisition
from compressor.search.acquisition.registry import ACQUISITIONS, make_acquisition
from compressor.search.acquisition.upper_confidence_bound import CONFIDENCE_WIDTH
from compressor.search.evaluation.journal import Journal
from compressor.search.objective import Objective
from compressor.search.optimizer import Search
from compressor.search.problem import SearchProblem
from compressor.search.settings import SearchSettings
from compressor.search.space import RankSpace
from compressor.search.surrogate import gp
from compressor.search.surrogate.base import Surrogate
from compressor.search.surrogate.gaussian import LossSurrogate
from compressor.search.surrogate.lognormal import LognormalSurrogate
from compressor.search.surrogate.objective import ObjectiveSurrogate
from compressor.search.surrogate.posterior import Posterior

POINTS = np.array([[4, 6], [20, 2], [9, 9], [25, 1]])
DELTA = 0.02
GAMMA = 0.05


def make_posterior(kind: str) -> tuple[Posterior, Ranks]:
    """A posterior from seven evaluations, and their best plan."""
    space = RankSpace(["a", "b"], [[10 * rank for rank in range(1, 31)], [7 * rank for rank in range(1, 21)]])
    objective = Objective(GAMMA)
    surrogate: Surrogate = {
        "objective": ObjectiveSurrogate(space, objective),
        "loss": LossSurrogate(space, objective),
        "log": LognormalSurrogate(space, objective, one),
    }[kind]
    ranks = space.sample(7, np.random.default_rng(2))
    norms = 1.4 * one(ranks)
    targets = surrogate.targets(ranks, norms, np.diag((0.1 * norms) ** 2))
    hyper = gp.Hyperparameters(np.array([0.5, 0.7]), 0.05, 0.0, float(targets.values.mean()))
    posterior = surrogate.posterior(gp.GaussianProcess(space.encode(ranks), targets.values, targets.noise, hyper))
    return posterior, ranks[posterior.mean(ranks).argmax()]


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


@pytest.mark.parametrize("kind", ["objective", "loss", "log"])
def test_moments_of_j_and_of_its_difference_found_by_sampling(kind: str) -> None:
    posterior, incumbent = make_posterior(kind)
    both = np.concatenate([incumbent[None], POINTS])
    mean, covariance = posterior.process.predict(posterior.space.encode(both))
    draws = np.random.default_rng(1).multivariate_normal(mean, covariance, size=400_000)
    values = posterior.objective_of(both, draws)
    found_mean, found_deviation = posterior.moments(both)
    np.testing.assert_allclose(found_mean, values.mean(0), rtol=0.01)
    np.testing.assert_allclose(found_deviation, values.std(0), rtol=0.02)
    np.testing.assert_allclose(found_mean, posterior.mean(both))
    differences = values[:, 1:] - values[:, :1]
    mean, variance = posterior.compare(incumbent).difference(POINTS)
    np.testing.assert_allclose(mean, differences.mean(0), atol=0.01 * differences.std(0).max())
    np.testing.assert_allclose(np.sqrt(variance), differences.std(0), rtol=0.02)


def test_under_a_gaussian_posterior_the_four_are_their_formulas() -> None:
    posterior, incumbent = make_posterior("loss")

    def values(name: str) -> np.ndarray:
        return make_acquisition(name, posterior, incumbent, DELTA)(POINTS)

    both = np.concatenate([incumbent[None], POINTS])
    mean, covariance = posterior.process.predict(posterior.space.encode(both))
    mean = mean + posterior.size_term(both)
    gain, deviation = mean[1:] - mean[0], np.sqrt(np.diag(covariance))[1:]
    np.testing.assert_allclose(np.exp(values("pi")), norm.cdf(gain / deviation))
    np.testing.assert_allclose(values("ucb"), mean[1:] + CONFIDENCE_WIDTH * deviation)
    z = gain / deviation
    np.testing.assert_allclose(np.exp(values("ei")), deviation * (norm.pdf(z) + z * norm.cdf(z)))
    deviation = np.sqrt(np.diag(covariance)[1:] + covariance[0, 0] - 2 * covariance[0, 1:])
    z = (gain - DELTA) / deviation
    expected = deviation * (norm.pdf(z) + z * norm.cdf(z))
    np.testing.assert_allclose(np.exp(values("pac-ei")), expected, rtol=1e-6)


@pytest.mark.parametrize("surrogate", ["objective", "loss", "log"])
@pytest.mark.parametrize("name", ["pac-ei", "ei", "pi", "ucb"])
def test_each_is_maximized_over_the_lattice_and_never_at_the_incumbent(surrogate: str, name: str) -> None:
    posterior, incumbent = make_posterior(surrogate)
    acquisition = make_acquisition(name, posterior, incumbent, DELTA)
    everything = np.array(list(itertools.product(range(1, 31), range(1, 21))))
    point, value = optimize_acquisition(acquisition, posterior.space, incumbent[None], np.random.default_rng(0))
    assert value == pytest.approx(acquisition(everything).max(), rel=1e-9)
    assert not np.array_equal(point, incumbent)
    assert acquisition(incumbent[None])[0] == -np.inf


def test_the_options_offer_the_names_of_the_table() -> None:
    (option,) = [option for option in commands.export.params if option.name == "acquisition"]
    assert isinstance(option.type, click.Choice)
    assert list(option.type.choices) == list(ACQUISITIONS) == ["pac", "pac-ei", "ei", "pi", "ucb"]
    with pytest.raises(InputError, match="unknown acquisition 'lcb'; choices are pac, pac-ei, ei, pi, ucb"):
        SearchSettings(acquisition="lcb")


class PosteriorMean(IncumbentAcquisition):
    """Pure exploitation; keeps count of its calls."""

    calls = 0

    def values(self, ranks: Ranks) -> np.ndarray:
        PosteriorMean.calls += 1
        return self.posterior.mean(ranks)


def test_an_acquisition_function_added_to_the_table_is_searched_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACQUISITIONS, "mean", PosteriorMean)
    space = RankSpace(["a", "b"], [[10 * rank for rank in range(1, 31)], [7 * rank for rank in range(1, 21)]])
    objective, dense, factors = Objective(GAMMA), np.array([30, 20]), np.random.default_rng(0).gamma(20, 0.05, 300)

    def losses(ranks: Ranks) -> np.ndarray:
        return one(ranks) - one(dense)

    def evaluate(ranks: Ranks, indices: np.ndarray) -> Losses:
        return Losses(indices, losses(ranks) * factors[indices])

    problem = SearchProblem(space, objective, evaluate, len(factors))
    plan, record = Search(problem, SearchSettings(acquisition="mean", max_evaluations=30), Journal()).run()
    assert PosteriorMean.calls > 0
    assert "candidate" in {row.source for row in record.history}
    everything = np.array(list(itertools.product(range(1, 31), range(1, 21))))
    values = objective.value(losses(everything) * factors.mean(), space.ratio(everything))
    best, value = values.max(), values[(everything == plan).all(1)][0]
    assert value > best - 0.05 * abs(best)
