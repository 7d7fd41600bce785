"""Maximization over the lattice, and when the incumbent is measured again."""

import itertools

import numpy as np
import pytest

from compressor.search.acquisition.optimize import ExcludedPoints, optimize_acquisition, should_remeasure
from compressor.search.acquisition.pac import Pac
from compressor.search.objective import Objective
from compressor.search.space import RankSpace
from compressor.search.surrogate import gp
from compressor.search.surrogate.gaussian import LossSurrogate
from compressor.search.surrogate.posterior import Posterior


def make_posterior(noise: list[float], norms: list[float], ranks: list[list[int]]) -> Posterior:
    space = RankSpace(["a", "b"], [list(range(1, 26)), list(range(2, 42, 2))])
    surrogate = LossSurrogate(space, Objective(0.1))
    points = np.array(ranks)
    targets = surrogate.targets(points, np.array(norms), np.diag(noise))
    hyper = gp.Hyperparameters(np.array([0.3, 0.4]), 0.05, 0.0, float(targets.values.mean()))
    return surrogate.posterior(gp.GaussianProcess(space.encode(points), targets.values, targets.noise, hyper))


@pytest.mark.parametrize("seed", range(5))
def test_the_best_of_all_lattice_points_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ranks = [[int(rng.integers(1, 26)), int(rng.integers(1, 21))] for _ in range(6)]
    posterior = make_posterior([0.05] * 6, rng.uniform(0.5, 4, 6).tolist(), ranks)
    acquisition = Pac(posterior, np.array(ranks[0]), 0.02)
    everything = np.array(list(itertools.product(range(1, 26), range(1, 21))))
    point, value = optimize_acquisition(acquisition, posterior.space, np.array(ranks), np.random.default_rng(0))
    assert value == pytest.approx(acquisition(everything).max(), rel=1e-9)
    assert acquisition(point[None])[0] == pytest.approx(value)


def test_excluded_points_are_never_chosen() -> None:
    posterior = make_posterior([0.05] * 2, [2.0, 3.0], [[6, 5], [2, 2]])
    incumbent, rng = np.array([6, 5]), np.random.default_rng(0)
    acquisition, anchors = Pac(posterior, incumbent, 0.02), incumbent[None]
    best, value = optimize_acquisition(acquisition, posterior.space, anchors, rng)
    without = ExcludedPoints(acquisition, best[None])
    second, lower = optimize_acquisition(without, posterior.space, anchors, rng)
    assert not np.array_equal(best, second)
    assert lower <= value
    np.testing.assert_array_equal(without.exact(np.stack([best, second])), [-np.inf, lower])


def test_the_evaluation_that_shrinks_the_difference_most_is_chosen() -> None:
    candidate, incumbent = np.array([20, 15]), np.array([6, 5])
    for incumbent_noise, evaluation_noise in [(4.0, 0.01), (1e-6, 0.01), (0.5, 0.3)]:
        posterior = make_posterior([incumbent_noise, 0.01], [2.0, 3.0], [[6, 5], [2, 2]])
        noise = np.array([evaluation_noise, evaluation_noise])
        shrunk = [variance_after(posterior, point, evaluation_noise, candidate) for point in (candidate, incumbent)]
        assert should_remeasure(posterior, incumbent, candidate, noise) == (shrunk[1] < shrunk[0])


def variance_after(posterior: Posterior, point: np.ndarray, evaluation_noise: float, candidate: np.ndarray) -> float:
    """var(J(candidate) - J(incumbent)) once `point` is evaluated, by conditioning anew."""
    old = posterior.process
    thetas = np.vstack([old.thetas, posterior.space.encode(point[None])])
    noise = np.zeros((len(thetas), len(thetas)))
    noise[:-1, :-1] = old.noise
    noise[-1, -1] = evaluation_noise
    process = gp.GaussianProcess(thetas, np.append(old.targets, 0.0), noise, old.hyper)
    _, covariance = process.predict(posterior.space.encode(np.stack([candidate, [6, 5]])))
    return float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
