"""The Gaussian process against analytic cases and scikit-optimize's regressor as an independent oracle."""

import warnings

import numpy as np
import pytest
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import check_grad
from scipy.stats import multivariate_normal
from skopt.learning import GaussianProcessRegressor
from skopt.learning.gaussian_process.kernels import ConstantKernel, Matern

from compressor.arrays import Array
from compressor.search.surrogate import gp


def log_likelihood(thetas: Array, targets: Array, noise: Array, hyper: gp.Hyperparameters) -> float:
    """log p(targets) under the Gaussian process (Rasmussen & Williams, Eq. 2.30)."""
    factor = cholesky(gp._covariance(thetas, noise, hyper), lower=True)
    residual = solve_triangular(factor, targets - hyper.mean, lower=True)
    return float(-0.5 * residual @ residual - np.log(np.diag(factor)).sum() - 0.5 * len(targets) * np.log(2.0 * np.pi))


def problem(seed: int, count: int = 25, dims: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    thetas = rng.random((count, dims))
    targets = np.sin(3 * thetas).sum(1) + 0.05 * rng.standard_normal(count)
    return thetas, targets, rng.uniform(0.001, 0.02, count)


def hyper(dims: int = 3, mean: float = 0.0) -> gp.Hyperparameters:
    return gp.Hyperparameters(np.linspace(0.3, 0.9, dims), 1.7, 0.0, mean)


@pytest.mark.parametrize("seed", range(3))
def test_posterior_agrees_with_scikit_optimize(seed: int) -> None:
    thetas, targets, variances = problem(seed)
    points = np.random.default_rng(100 + seed).random((8, 3))
    scale = targets.var()
    ours = gp.GaussianProcess(thetas, targets, np.diag(variances), hyper(mean=targets.mean()))
    kernel = ConstantKernel(1.7 / scale) * Matern(ours.hyper.length_scales, nu=2.5)
    oracle = GaussianProcessRegressor(kernel, alpha=variances / scale, normalize_y=True, optimizer=None, noise=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle.fit(thetas, targets)
        mean, covariance = oracle.predict(points, return_cov=True)
    found_mean, found_covariance = ours.predict(points)
    np.testing.assert_allclose(found_mean, mean, rtol=1e-7)
    np.testing.assert_allclose(found_covariance, covariance, atol=1e-8)


def test_posterior_with_a_full_noise_matrix_is_conditioning_of_the_joint_gaussian() -> None:
    thetas, targets, variances = problem(5, count=6)
    root = np.random.default_rng(0).standard_normal((6, 6)) * 0.1
    noise = np.diag(variances) + root @ root.T
    process = gp.GaussianProcess(thetas, targets, noise, hyper(mean=0.4))
    points = np.random.default_rng(1).random((2, 3))
    cross = process.prior_covariance(points, thetas)
    inverse = np.linalg.inv(process.prior_covariance(thetas, thetas) + noise)
    mean, covariance = process.predict(points)
    np.testing.assert_allclose(mean, 0.4 + cross @ inverse @ (targets - 0.4), rtol=1e-6)
    np.testing.assert_allclose(
        covariance, process.prior_covariance(points, points) - cross @ inverse @ cross.T, atol=1e-7
    )


def test_one_observation_by_hand() -> None:
    """k = s2 at the point: mean = y s2 / (s2 + v), variance = s2 v / (s2 + v)."""
    known = gp.Hyperparameters(np.array([1.0]), 2.0, 0.0, 0.0)
    process = gp.GaussianProcess(np.array([[0.5]]), np.array([3.0]), np.array([[0.5]]), known)
    mean, covariance = process.predict(np.array([[0.5]]))
    assert mean[0] == pytest.approx(3.0 * 2.0 / 2.5)
    assert covariance[0, 0] == pytest.approx(2.0 * 0.5 / 2.5)


def test_log_likelihood_is_that_of_a_multivariate_normal() -> None:
    thetas, targets, variances = problem(2)
    known = hyper(mean=0.3)
    process = gp.GaussianProcess(thetas, targets, np.diag(variances), known)
    covariance = process.prior_covariance(thetas, thetas) + np.diag(variances)
    expected = multivariate_normal(np.full(len(targets), 0.3), covariance).logpdf(targets)
    assert log_likelihood(thetas, targets, np.diag(variances), known) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_gradient_of_the_likelihood(seed: int) -> None:
    thetas, targets, variances = problem(seed)
    point = np.log([0.4, 0.7, 1.1, 1.3, 0.01])
    args = (thetas, targets, np.diag(variances))
    error = check_grad(
        lambda x: gp._negative_log_likelihood(x, *args)[0],
        lambda x: gp._negative_log_likelihood(x, *args)[1],
        point,
    )
    assert error < 1e-4


def test_fit_maximizes_the_likelihood() -> None:
    thetas, targets, variances = problem(7, count=40)
    noise = np.diag(variances)
    fitted = gp.fit(thetas, targets, noise)
    best = log_likelihood(thetas, targets, noise, fitted)
    rng = np.random.default_rng(0)
    for _ in range(30):
        lengths = np.clip(fitted.length_scales * np.exp(0.3 * rng.standard_normal(3)), *gp.LENGTH_SCALE_BOUNDS)
        other = gp.Hyperparameters(
            lengths,
            fitted.signal_variance * np.exp(0.3 * rng.standard_normal()),
            fitted.excess_noise,
            fitted.mean,
        )
        assert log_likelihood(thetas, targets, noise, other) <= best + 1e-6


def test_fit_recovers_the_scales_of_a_draw() -> None:
    rng = np.random.default_rng(3)
    thetas = rng.random((150, 2))
    truth = gp.Hyperparameters(np.array([0.25, 2.0]), 4.0, 0.0, 0.0)
    prior = truth.signal_variance * gp.matern52(thetas, thetas, truth.length_scales)
    targets = rng.multivariate_normal(np.full(150, 10.0), prior + 1e-4 * np.eye(150))
    fitted = gp.fit(thetas, targets, 1e-4 * np.eye(150))
    assert fitted.length_scales[0] == pytest.approx(0.25, rel=0.5)
    assert fitted.length_scales[1] > 1.0
    assert fitted.mean == pytest.approx(10.0, abs=4.0)


def test_evaluations_count_by_inverse_noise_variance() -> None:
    """Two evaluations of one point, under a vague prior."""
    known = gp.Hyperparameters(np.array([1.0]), 1e6, 0.0, 0.0)
    thetas = np.array([[0.5], [0.5]])
    process = gp.GaussianProcess(thetas, np.array([1.0, 2.0]), np.diag([0.1, 0.3]), known)
    mean, covariance = process.predict(np.array([[0.5]]))
    assert mean[0] == pytest.approx((1.0 / 0.1 + 2.0 / 0.3) / (1 / 0.1 + 1 / 0.3), rel=1e-3)
    assert covariance[0, 0] == pytest.approx(1 / (1 / 0.1 + 1 / 0.3), rel=1e-2)


def test_leave_one_out_is_leaving_one_out() -> None:
    thetas, targets, variances = problem(4, count=10)
    known = hyper(mean=0.2)
    means, deviations = gp.GaussianProcess(thetas, targets, np.diag(variances), known).leave_one_out()
    for left in range(10):
        rest = np.delete(np.arange(10), left)
        process = gp.GaussianProcess(thetas[rest], targets[rest], np.diag(variances[rest]), known)
        mean, covariance = process.predict(thetas[[left]])
        assert means[left] == pytest.approx(mean[0], rel=1e-5)
        assert deviations[left] == pytest.approx(np.sqrt(covariance[0, 0] + variances[left]), rel=1e-4)


def test_without_excess_noise_only_the_known_noise_is_left() -> None:
    rng = np.random.default_rng(0)
    thetas, noise = rng.random((40, 1)), 1e-6 * np.eye(40)
    targets = np.sin(4.0 * thetas[:, 0]) + 0.3 * rng.standard_normal(40)
    with_excess = gp.fit(thetas, targets, noise)
    without = gp.fit(thetas, targets, noise, limits=gp.Limits(most_excess=gp.EXCESS_BOUNDS[0]))
    assert with_excess.excess_noise > 0.01
    assert without.excess_noise < 1e-6
