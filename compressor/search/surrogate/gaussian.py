"""TODO docstring."""

import numpy as np
from scipy.special import log_ndtr

from compressor.arrays import Array, Ranks
from compressor.search.surrogate.base import Posterior, Score, Surrogate, Targets
from compressor.search.surrogate.gp import GaussianProcess

VANISHING = 1e-12  # variance of a difference, relative to the signal's, that counts as no difference


class LossSurrogate(Surrogate):
    """Targets are -gamma L, less that of the loss expected."""

    def prior_mean(self, ranks: Ranks) -> Array:
        expected = self.expected_loss(ranks)
        return np.zeros(ranks.shape[:-1]) if expected is None else -self.objective.gamma * expected

    def targets(self, ranks: Ranks, function_norms: Array, noise: Array, levels: Array | None = None) -> Targets:
        gamma = self.objective.gamma
        return Targets(-gamma * function_norms - self.prior_mean(ranks), gamma**2 * noise)

    def posterior(self, process: GaussianProcess) -> "GaussianPosterior":
        return GaussianPosterior(self, process)

    def evaluation_noise(self, variances: Array, function_norms: Array) -> Array:
        return self.objective.gamma**2 * variances


class GaussianPosterior(Posterior):
    """J is Gaussian."""

    def function_norm(self, ranks: Ranks) -> tuple[Array, Array]:
        mean, projected = self.latent(ranks)
        gamma = self.objective.gamma
        return -mean / gamma, np.sqrt(self.latent_variance(projected)) / gamma

    def score(self, incumbent: Ranks, delta: float) -> "GaussianScore":
        return GaussianScore(self, incumbent, delta)

    def slopes(self, ranks: Ranks) -> Array:
        return np.ones(len(ranks))

    def objective_of(self, ranks: Ranks, latent: Array) -> Array:
        return self.known_part(ranks) + latent + self.prior_mean(ranks)


class ObjectiveSurrogate(LossSurrogate):
    """Targets are J, size and all, and nothing is expected of any plan."""

    def prior_mean(self, ranks: Ranks) -> Array:
        return np.zeros(ranks.shape[:-1])

    def targets(self, ranks: Ranks, function_norms: Array, noise: Array, levels: Array | None = None) -> Targets:
        losses = super().targets(ranks, function_norms, noise)
        return Targets(losses.values + self.objective.size_term(self.space.ratio(ranks)), losses.noise)

    def posterior(self, process: GaussianProcess) -> "ObjectivePosterior":
        return ObjectivePosterior(self, process)


class ObjectivePosterior(GaussianPosterior):
    """J is Gaussian, and no part of it known beforehand."""

    def known_part(self, ranks: Ranks) -> Array:
        return np.zeros(ranks.shape[:-1])

    def function_norm(self, ranks: Ranks) -> tuple[Array, Array]:
        norm, deviation = super().function_norm(ranks)
        return norm + self.size_term(ranks) / self.objective.gamma, deviation


class GaussianScore(Score):
    """Eq. (11) as written, behind the monotone log Phi."""

    def _log_probability(self, ranks: Ranks) -> Array:
        mean, variance = self.difference(ranks)
        floor = VANISHING * self.posterior.process.hyper.signal_variance
        return np.asarray(log_ndtr((mean - self.delta) / np.sqrt(np.maximum(variance, floor))))

    def difference(self, ranks: Ranks) -> tuple[Array, Array]:
        # var(t) + var(incumbent) - 2 cov, written so that the prior's variances cancel before the data come in
        mean, projected = self.posterior.latent(ranks)
        process = self.posterior.process
        cross = process.prior_covariance(self.posterior.space.encode(ranks), self._theta)[:, 0]
        variance = 2.0 * (process.hyper.signal_variance - cross) - ((projected - self._projected) ** 2).sum(0)
        known = self.posterior.known_part(ranks) - self._known_part
        return mean - self._mean + known, np.maximum(variance, 0.0)
