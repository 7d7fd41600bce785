"""Gaussian process on log L: L is log-normal, its size term exact."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr, logsumexp

from compressor.arrays import Array, Ranks, Single
from compressor.search.objective import Objective
from compressor.search.space import RankSpace
from compressor.search.surrogate.base import ExpectedLoss, Surrogate, Targets
from compressor.search.surrogate.gp import GaussianProcess
from compressor.search.surrogate.posterior import MIN_RELATIVE_VARIANCE, Comparison, Posterior

MIN_RELATIVE_VARIANCE_SINGLE = 1e-5  # in single precision
MIN_SHARE_OF_OFFSET = 0.25  # L + c is at least this share of c: an estimate of L may be negative by chance
RESOLUTION = 1e-4  # differences of J below this do not matter: log L is that of L + RESOLUTION / gamma


@dataclass(frozen=True)
class Quadrature:
    """Nodes (k,) and the logarithms of their weights (k,), for integrals over a standard normal."""

    nodes: Array
    log_weights: Array


def _gauss_hermite(num_nodes: int) -> Quadrature:
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    return Quadrature(nodes, np.log(weights / weights.sum()))


def _trapezoid(width: float, num_nodes: int) -> Quadrature:
    nodes = np.linspace(-width, width, num_nodes)
    return Quadrature(nodes, -0.5 * nodes**2 - logsumexp(-0.5 * nodes**2))


COARSE = _gauss_hermite(7)  # enough to steer the acquisition
FINE = _trapezoid(6.0, 241)  # for the certificate, whose integrand can be a step


class LognormalSurrogate(Surrogate):
    """Targets are log(L + c) less the prior mean log(S + c), with c = RESOLUTION / gamma + `floor`.

    Noise is carried over to the logarithm to first order, and the mean of a log-normal is corrected for.

    Args:
        space, objective, expected, saturation: see `Surrogate`.
        floor: loss taken for that of the original itself (see `NoiseSpecification`); L may then be slightly negative.
    """

    def __init__(
        self,
        space: RankSpace,
        objective: Objective,
        expected: ExpectedLoss | None = None,
        saturation: float = np.inf,
        floor: float = 0.0,
    ) -> None:
        super().__init__(space, objective, expected, saturation)
        self._floor = floor

    @property
    def offset(self) -> float:
        """c, added to L before its logarithm is taken."""
        return RESOLUTION / self.objective.gamma + self._floor

    def prior_mean(self, ranks: Ranks) -> Array:
        """See `Surrogate.prior_mean`."""
        expected = self.expected_loss(ranks)
        return np.zeros(ranks.shape[:-1]) if expected is None else np.log(expected + self.offset)

    def targets(self, ranks: Ranks, losses: Array, noise: Array, levels: Array | None = None) -> Targets:
        """See `Surrogate.targets`."""
        shifted = self._shifted(losses)
        scales = shifted if levels is None else self._shifted(levels)
        relative = noise / np.outer(scales, scales)
        return Targets(np.log(shifted) + 0.5 * np.diag(relative) - self.prior_mean(ranks), relative)

    def _shifted(self, losses: Array) -> Array:
        """L + c (m,), bounded away from zero."""
        return np.maximum(losses + self.offset, MIN_SHARE_OF_OFFSET * self.offset)

    def posterior(self, process: GaussianProcess) -> "LognormalPosterior":
        """See `Surrogate.posterior`."""
        return LognormalPosterior(self.space, self.objective, process, self.prior_mean, self.offset)

    def evaluation_noise(self, variances: Array, losses: Array) -> Array:
        """See `Surrogate.evaluation_noise`."""
        return variances / self._shifted(losses) ** 2


class LognormalPosterior(Posterior):
    """L + c is log-normal.

    Args:
        space, objective, process, prior_mean: see `Posterior`.
        offset: c.
    """

    def __init__(
        self,
        space: RankSpace,
        objective: Objective,
        process: GaussianProcess,
        prior_mean: Callable[[Ranks], Array],
        offset: float,
    ) -> None:
        super().__init__(space, objective, process, prior_mean)
        self.offset = offset

    def loss(self, ranks: Ranks) -> tuple[Array, Array]:
        """See `Posterior.loss`."""
        mean, projected = self.latent(ranks)
        variance = self.latent_variance(projected)
        shifted = np.exp(mean + 0.5 * variance)
        return shifted - self.offset, shifted * np.sqrt(np.expm1(variance))

    def compare(self, incumbent: Ranks) -> "LognormalComparison":
        """See `Posterior.compare`."""
        return LognormalComparison(self, incumbent)

    def slopes(self, ranks: Ranks) -> Array:
        """See `Posterior.slopes`."""
        return -self.objective.gamma * np.exp(self.latent(ranks)[0])

    def objective_of(self, ranks: Ranks, latent: Array) -> Array:
        """See `Posterior.objective_of`."""
        losses = np.exp(latent + self.prior_mean(ranks)) - self.offset
        return self.known_part(ranks) - self.objective.gamma * losses


class LognormalComparison(Comparison):
    """J(t) - J(incumbent) is a difference of log-normals; its probability is found by quadrature.

    With a = log(L(t) + c) and b that of the incumbent, jointly Gaussian, the event is
    e^a < e^b + (size(t) - size(incumbent) - delta) / gamma. Given b its probability has a closed form; the integral is
    over b.
    """

    def log_probability(self, ranks: Ranks, delta: float) -> Array:
        """See `Comparison.log_probability`."""
        latent = self.posterior.latent_single(ranks)
        return self._integrate(ranks, delta, latent, MIN_RELATIVE_VARIANCE_SINGLE, COARSE)

    def exact_log_probability(self, ranks: Ranks, delta: float) -> Array:
        """See `Comparison.exact_log_probability`."""
        return self._integrate(ranks, delta, self.posterior.latent(ranks), MIN_RELATIVE_VARIANCE, FINE)

    def _integrate(
        self,
        ranks: Ranks,
        delta: float,
        latent: tuple[Array, Array | Single],
        min_relative_variance: float,
        quadrature: Quadrature,
    ) -> Array:
        posterior = self.posterior
        mean, projected = latent
        covariance = self._latent_covariance(ranks, projected)
        floor = min_relative_variance * posterior.process.hyper.signal_variance
        own = max(float(posterior.latent_variance(self._projected)[0]), floor)
        deviation = np.sqrt(np.maximum(posterior.latent_variance(projected) - covariance**2 / own, floor))
        margin = (self._known_difference(ranks) - delta) / posterior.objective.gamma
        nodes = self._mean + np.sqrt(own) * quadrature.nodes[:, None]
        threshold = np.exp(nodes) + margin
        conditional = mean + covariance / own * (nodes - self._mean)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(threshold > 0, (np.log(threshold) - conditional) / deviation, -np.inf)
        return np.asarray(np.logaddexp.reduce(log_ndtr(z) + quadrature.log_weights[:, None], axis=0))

    def difference(self, ranks: Ranks) -> tuple[Array, Array]:
        """See `Comparison.difference`."""
        mean, projected = self.posterior.latent(ranks)
        variance, own = (self.posterior.latent_variance(part) for part in (projected, self._projected))
        covariance = self._latent_covariance(ranks, projected)
        # Means and covariances of log-normals
        first, second = np.exp(mean + 0.5 * variance), np.exp(self._mean + 0.5 * own)
        spread = first**2 * np.expm1(variance) + second**2 * np.expm1(own) - 2.0 * first * second * np.expm1(covariance)
        gamma = self.posterior.objective.gamma
        return self._known_difference(ranks) - gamma * (first - second), gamma**2 * np.maximum(spread, 0.0)
