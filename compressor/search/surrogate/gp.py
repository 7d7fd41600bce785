"""Gaussian process with a Matern 5/2 kernel and known noise (Sec. 3.2, Eqs. 8 to 10).

scikit-optimize's regressor takes no full noise matrix, which plans evaluated on the same images need, and gives no
covariances between points for the acquisition; tests compare the two where both apply.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize

from compressor.arrays import Array, Single

Values = TypeVar("Values", NDArray[np.float32], NDArray[np.float64])

REFIT_GROWTH = 1.1  # hyperparameters are fitted again when there are this many times as many evaluations
LENGTH_SCALE_BOUNDS = (0.05, 20.0)
SIGNAL_BOUNDS = (1e-4, 1e4)  # relative to the variance of the targets
EXCESS_BOUNDS = (1e-8, 1.0)  # likewise
INITIAL_EXCESS = 1e-4  # likewise
JITTER = 1e-10  # relative to the signal variance
MAX_ITERATIONS = 60  # of L-BFGS-B
SQRT_5 = float(np.sqrt(5.0))
SPECTRAL_FREEDOM = 5  # of the t distribution that is Matern 5/2's spectral density: twice nu
MIN_SCALE = 1e-24  # variance of the targets, where all are alike and free of noise
LIKELIHOOD_TOLERANCE = 1e-6  # relative; a finer optimum does not change what is proposed


@dataclass(frozen=True)
class Limits:
    """Limits of the fit.

    Attributes:
        least_signal: lower bound of the signal variance, as a share of the mean noise variance. Likelihood alone takes
            a signal that drowns in noise for none, and the posterior is then certain of everything.
        longest: upper bound of the length-scales.
        most_excess: upper bound of the excess noise, relative to the variance of the targets.
    """

    least_signal: float = 0.0
    longest: float = LENGTH_SCALE_BOUNDS[1]
    most_excess: float = EXCESS_BOUNDS[1]


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Hyperparameters:
    """Length-scales (d,), signal variance, excess noise variance and constant mean, in the targets' units."""

    length_scales: Array
    signal_variance: float
    excess_noise: float
    mean: float


def matern52(first: Array, second: Array, length_scales: Array) -> Array:
    """Correlations (n, m) of a Matérn kernel of order 5/2.

    Args:
        first: points (n, d).
        second: points (m, d).
        length_scales: (d,), in the points' units.
    """
    return correlation_of(squared_distances(first / length_scales, second / length_scales))


def correlation_of(squares: Values) -> Values:
    """Matern 5/2 at squared distances in length-scales, any shape."""
    # In place: for arrays this large, allocation costs more than the arithmetic.
    root: Values = np.sqrt(squares)
    root *= SQRT_5
    decay = np.exp(-root)
    values = root / 3.0
    values += 1.0
    values *= root
    values += 1.0
    values *= decay
    return values


def squared_distances(first: Values, second: Values) -> Values:
    """Squared Euclidean distances (n, m) between points (n, d) and (m, d)."""
    squares: Values = np.matmul(-2.0 * first, second.T)
    squares += (first**2).sum(1)[:, None]
    squares += (second**2).sum(1)
    np.maximum(squares, 0.0, out=squares)
    return squares


@dataclass(frozen=True)
class GaussianProcess:
    """Posterior of the process given observations.

    Args:
        thetas: observed points (n, d).
        targets: noisy values (n,).
        noise: covariance Sigma_n of the noise (n, n).
        hyper: hyperparameters, see `fit`.
    """

    thetas: Array
    targets: Array
    noise: Array
    hyper: Hyperparameters

    @cached_property
    def _cholesky(self) -> Array:
        return cholesky(_covariance(self.thetas, self.noise, self.hyper), lower=True)

    @cached_property
    def _single(self) -> tuple[Single, Single]:
        """Factor (n, n) of the covariance, and points (n, d) in length-scales, in single precision."""
        return self._cholesky.astype(np.float32), (self.thetas / self.hyper.length_scales).astype(np.float32)

    @cached_property
    def _weights(self) -> Array:
        return cho_solve((self._cholesky, True), self.targets - self.hyper.mean)

    def prior_covariance(self, first: Array, second: Array) -> Array:
        """k(first, second), (n, m)."""
        return self.hyper.signal_variance * matern52(first, second, self.hyper.length_scales)

    def project(self, points: Array) -> tuple[Array, Array]:
        """Posterior mean (m,) of `points` (m, d), and V (n, m) with posterior covariance k - V^T V."""
        cross = self.prior_covariance(self.thetas, points)
        mean = self.hyper.mean + self._weights @ cross
        return mean, solve_triangular(self._cholesky, cross, lower=True, check_finite=False)

    def mean_single(self, points: Array) -> Array:
        """Posterior mean (m,) at `points` (m, d) alone, in single precision."""
        _, scaled = self._single
        squares = squared_distances((points / self.hyper.length_scales).astype(np.float32), scaled)
        weights = (self.hyper.signal_variance * self._weights).astype(np.float32)
        return self.hyper.mean + (correlation_of(squares) @ weights).astype(np.float64)

    def project_single(self, points: Array) -> tuple[Array, Single]:
        """`project` in single precision, three times as fast."""
        factor, scaled = self._single
        squares = squared_distances(scaled, (points / self.hyper.length_scales).astype(np.float32))
        cross = np.float32(self.hyper.signal_variance) * correlation_of(squares)
        mean = self.hyper.mean + self._weights.astype(np.float32) @ cross
        projected = solve_triangular(factor, cross, lower=True, check_finite=False, overwrite_b=True)
        return mean.astype(np.float64), projected

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Posterior mean (m,) and covariance (m, m) at `points` (m, d), Eqs. (8) to (10)."""
        mean, projected = self.project(points)
        return mean, self.prior_covariance(points, points) - projected.T @ projected

    def solve(self, residuals: Array) -> Array:
        """(K + Sigma_n)^-1 applied to residuals (n, p)."""
        return np.asarray(cho_solve((self._cholesky, True), residuals))

    def draw_noise(self, count: int, rng: np.random.Generator) -> Array:
        """Draws (count, n) from N(0, Sigma_n), excess noise included."""
        # Sigma_n may be singular: plans without any loss have no noise.
        values, vectors = self._noise_spectrum
        return (rng.standard_normal((count, len(values))) * np.sqrt(np.maximum(values, 0.0))) @ vectors.T

    @cached_property
    def _noise_spectrum(self) -> tuple[Array, Array]:
        total = self.noise.copy()
        total[np.diag_indices_from(total)] += self.hyper.excess_noise + JITTER * self.hyper.signal_variance
        values, vectors = np.linalg.eigh(total)
        return values, vectors

    def leave_one_out(self) -> tuple[Array, Array]:
        """Mean (n,) and standard deviation (n,) of each target predicted from all others.

        Rasmussen & Williams, Eqs. (5.10) to (5.12); the deviation includes the target's own noise.
        """
        inverse = cho_solve((self._cholesky, True), np.eye(len(self.targets)))
        variance = 1.0 / np.diag(inverse)
        return self.targets - self._weights * variance, np.sqrt(variance)


def fit(
    thetas: Array,
    targets: Array,
    noise: Array,
    start: Hyperparameters | None = None,
    restarts: int = 2,
    limits: Limits = NO_LIMITS,
) -> Hyperparameters:
    """Hyperparameters of maximum likelihood (L-BFGS-B on their logarithms, analytic gradient).

    The constant mean is profiled out. All starting points are fixed, so that the result depends on the arguments alone.

    Args:
        thetas: points (n, d).
        targets: noisy values (n,).
        noise: covariance of the noise (n, n).
        start: the last fit, a starting point beside the fixed ones.
        restarts: number of fixed starting points, at most three.
        limits: of the fit.
    """
    scale = max(float(targets.var()), float(noise.diagonal().mean()), MIN_SCALE)
    num_dims = thetas.shape[1]
    standardized = (targets - targets.mean()) / np.sqrt(scale)
    scaled_noise = noise / scale
    signal_bounds = np.maximum(SIGNAL_BOUNDS, limits.least_signal * float(scaled_noise.diagonal().mean()))
    variance_bounds = [signal_bounds, (EXCESS_BOUNDS[0], limits.most_excess)]
    bounds = [np.log((LENGTH_SCALE_BOUNDS[0], limits.longest))] * num_dims + [np.log(pair) for pair in variance_bounds]
    low, high = np.transpose(bounds)
    results = [
        minimize(
            _negative_log_likelihood,
            np.clip(guess, low, high),
            args=(thetas, standardized, scaled_noise),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": MAX_ITERATIONS, "ftol": LIKELIHOOD_TOLERANCE},
        )
        for guess in _initial_guesses(num_dims, scale, start, restarts)
    ]
    best = np.exp(min(results, key=lambda result: result.fun).x)
    hyper = Hyperparameters(best[:num_dims], best[-2] * scale, best[-1] * scale, 0.0)
    return replace(hyper, mean=_profiled_mean(_covariance(thetas, noise, hyper), targets))


def _initial_guesses(num_dims: int, scale: float, start: Hyperparameters | None, restarts: int) -> list[Array]:
    """Logarithms of hyperparameters (d + 2,), variances in units of `scale`: the last fit first, then fixed ones."""
    lengths = (0.3 * np.sqrt(num_dims), 1.5, 0.3)[:restarts]
    guesses = [np.log([*np.full(num_dims, length), 1.0, INITIAL_EXCESS]) for length in lengths]
    if start is not None:
        known = [*start.length_scales, start.signal_variance / scale, start.excess_noise / scale]
        guesses.insert(0, np.log(np.maximum(known, 1e-300)))
    return guesses


def _covariance(thetas: Array, noise: Array, hyper: Hyperparameters) -> Array:
    covariance = hyper.signal_variance * matern52(thetas, thetas, hyper.length_scales) + noise
    extra = hyper.excess_noise + JITTER * hyper.signal_variance
    covariance[np.diag_indices_from(covariance)] += extra
    return covariance


def _profiled_mean(covariance: Array, targets: Array) -> float:
    weights = np.linalg.solve(covariance, np.ones(len(targets)))
    return float(weights @ targets / weights.sum())


def _negative_log_likelihood(log_hyper: Array, thetas: Array, targets: Array, noise: Array) -> tuple[float, Array]:
    """Minus the profiled log likelihood, and its gradient in the logarithms of the hyperparameters.

    The length-scales' gradient is two matrix products: sum_ij W_ij (x_ik - x_jk)^2 expands into row sums of W
    and x^T W x.
    """
    num_dims = thetas.shape[1]
    lengths, (signal, excess) = np.exp(log_hyper[:num_dims]), np.exp(log_hyper[num_dims:])
    scaled = thetas / lengths
    root = np.sqrt(5.0 * squared_distances(scaled, scaled))
    decay = np.exp(-root)
    slope = (1.0 + root) * decay
    correlation = slope + root**2 / 3.0 * decay
    covariance = signal * correlation + noise
    covariance[np.diag_indices_from(covariance)] += excess + JITTER * signal
    try:
        factor = cholesky(covariance, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return 1e25, np.zeros_like(log_hyper)
    half_log_determinant = np.log(np.diag(factor)).sum()
    inverse, _ = dpotri(factor, lower=True, overwrite_c=True)  # its lower triangle
    inverse += np.tril(inverse, -1).T
    ones = inverse.sum(1)
    residual = targets - (ones @ targets) / ones.sum()
    weights = inverse @ residual
    value = 0.5 * residual @ weights + half_log_determinant

    sensitivity = inverse - np.outer(weights, weights)
    W = sensitivity * (signal * 5.0 / 3.0) * slope
    by_length = (scaled**2 * W.sum(1)[:, None]).sum(0) - (scaled * (W @ scaled)).sum(0)
    by_signal = 0.5 * signal * ((sensitivity * correlation).sum() + JITTER * np.trace(sensitivity))
    by_excess = 0.5 * excess * np.trace(sensitivity)
    return float(value), np.array([*by_length, by_signal, by_excess])
