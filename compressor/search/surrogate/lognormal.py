"""TODO docstring."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, logsumexp

from compressor.arrays import Array, Ranks, Single
from compressor.search.objective import Objective
from compressor.search.space import RankSpace
from compressor.search.surrogate.base import Expected, Posterior, Score, Surrogate, Targets
from compressor.search.surrogate.gaussian import VANISHING
from compressor.search.surrogate.gp import GaussianProcess

VANISHING_SINGLE = 1e-5  # likewise in single precision
# Quadrature over a standard normal: a few Gauss-Hermite nodes steer the acquisition; the certificate, whose integrand
# can be a step, takes a fine trapezoid.
COARSE_NODES, _coarse_weights = np.polynomial.hermite_e.hermegauss(7)
COARSE_LOG_WEIGHTS = np.log(_coarse_weights / _coarse_weights.sum())
FINE_NODES = np.linspace(-6.0, 6.0, 241)
FINE_LOG_WEIGHTS = -0.5 * FINE_NODES**2 - logsumexp(-0.5 * FINE_NODES**2)


MIN_SHARE = 0.25  # of c: a lucky look at a loss that may be negative counts as no less than this
RESOLUTION = 1e-4  # differences of J below this are of no interest: log L is taken of L + RESOLUTION / gamma


class LognormalSurrogate(Surrogate):
    """Targets are log(L + c) less the prior mean log(S + c), c = RESOLUTION / gamma + `floor`.

    `floor` is what the loss of the original itself is taken to be (see `NoiseSpecification`); L may then lie a little below zero.

    Noise goes over to the logarithm to first order, with the mean of a log-normal corrected for.
    """

    def __init__(
        self,
        space: RankSpace,
        objective: Objective,
        expected: Expected | None = None,
        saturation: float = np.inf,
        floor: float = 0.0,
    ) -> None:
        super().__init__(space, objective, expected, saturation)
        self._floor = floor

    @property
    def offset(self) -> float:
        """c: what is added to L before its logarithm is taken."""
        return RESOLUTION / self.objective.gamma + self._floor

    def prior_mean(self, ranks: Ranks) -> Array:
        expected = self.expected_loss(ranks)
        return np.zeros(ranks.shape[:-1]) if expected is None else np.log(expected + self.offset)

    def targets(self, ranks: Ranks, function_norms: Array, noise: Array, levels: Array | None = None) -> Targets:
        shifted = self._shifted(function_norms)
        scales = shifted if levels is None else self._shifted(levels)
        relative = noise / np.outer(scales, scales)
        return Targets(np.log(shifted) + 0.5 * np.diag(relative) - self.prior_mean(ranks), relative)

    def _shifted(self, function_norms: Array) -> Array:
        """L + c (m,), which chance cannot bring near zero."""
        return np.maximum(function_norms + self.offset, MIN_SHARE * self.offset)

    def posterior(self, process: GaussianProcess) -> "LognormalPosterior":
        return LognormalPosterior(self, process)

    def evaluation_noise(self, variances: Array, function_norms: Array) -> Array:
        return variances / self._shifted(function_norms) ** 2


class LognormalPosterior(Posterior):
    """L + c is log-normal."""

    def __init__(self, surrogate: LognormalSurrogate, process: GaussianProcess) -> None:
        super().__init__(surrogate, process)
        self.offset = surrogate.offset

    def function_norm(self, ranks: Ranks) -> tuple[Array, Array]:
        mean, projected = self.latent(ranks)
        variance = self.latent_variance(projected)
        shifted = np.exp(mean + 0.5 * variance)
        return shifted - self.offset, shifted * np.sqrt(np.expm1(variance))

    def score(self, incumbent: Ranks, delta: float) -> "LogScore":
        return LogScore(self, incumbent, delta)

    def slopes(self, ranks: Ranks) -> Array:
        return -self.objective.gamma * np.exp(self.latent(ranks)[0])

    def objective_of(self, ranks: Ranks, latent: Array) -> Array:
        norms = np.exp(latent + self.prior_mean(ranks)) - self.offset
        return self.known_part(ranks) - self.objective.gamma * norms


class LogScore(Score):
    """The same probability for log-normal L, by quadrature over the incumbent's log L.

    With a = log(L(t) + c) and b that of the incumbent, jointly Gaussian, the event is
    e^a < e^b + (size(t) - size(incumbent) - delta) / gamma; given b it has a closed form.
    """

    def exact(self, ranks: Ranks) -> NDArray[np.float64]:
        latent = self.posterior.latent(ranks)
        return self.mask(ranks, self._integrate(ranks, latent, VANISHING, FINE_NODES, FINE_LOG_WEIGHTS))

    def _log_probability(self, ranks: Ranks) -> Array:
        latent = self.posterior.latent_single(ranks)
        return self._integrate(ranks, latent, VANISHING_SINGLE, COARSE_NODES, COARSE_LOG_WEIGHTS)

    def _integrate(
        self,
        ranks: Ranks,
        latent: tuple[Array, Array | Single],
        vanishing: float,
        standard_nodes: Array,
        log_weights: Array,
    ) -> Array:
        posterior = self.posterior
        mean, projected = latent
        process = posterior.process
        covariance = self._latent_covariance(ranks, projected)
        floor = vanishing * process.hyper.signal_variance
        own = max(float(posterior.latent_variance(self._projected)[0]), floor)
        deviation = np.sqrt(np.maximum(posterior.latent_variance(projected) - covariance**2 / own, floor))
        margin = (posterior.known_part(ranks) - self._known_part - self.delta) / posterior.objective.gamma
        nodes = self._mean + np.sqrt(own) * standard_nodes[:, None]
        threshold = np.exp(nodes) + margin
        conditional = mean + covariance / own * (nodes - self._mean)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(threshold > 0, (np.log(threshold) - conditional) / deviation, -np.inf)
        return np.asarray(np.logaddexp.reduce(log_ndtr(z) + log_weights[:, None], axis=0))

    def difference(self, ranks: Ranks) -> tuple[Array, Array]:
        mean, projected = self.posterior.latent(ranks)
        variance, own = (self.posterior.latent_variance(part) for part in (projected, self._projected))
        covariance = self._latent_covariance(ranks, projected)
        # Means and covariances of log-normals
        first, second = np.exp(mean + 0.5 * variance), np.exp(self._mean + 0.5 * own)
        spread = first**2 * np.expm1(variance) + second**2 * np.expm1(own) - 2.0 * first * second * np.expm1(covariance)
        gamma = self.posterior.objective.gamma
        sizes = self.posterior.known_part(ranks) - self._known_part
        return sizes - gamma * (first - second), gamma**2 * np.maximum(spread, 0.0)
