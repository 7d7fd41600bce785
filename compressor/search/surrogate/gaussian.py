"""Gaussian process on -gamma L: J is Gaussian, its size term exact."""

import numpy as np
from scipy.special import log_ndtr

from compressor.arrays import Array, Ranks
from compressor.search.surrogate.base import Surrogate, Targets
from compressor.search.surrogate.gp import GaussianProcess
from compressor.search.surrogate.posterior import MIN_RELATIVE_VARIANCE, Comparison, Posterior


class LossSurrogate(Surrogate):
    """Targets are -gamma L less its prior mean."""

    def prior_mean(self, ranks: Ranks) -> Array:
        """See `Surrogate.prior_mean`."""
        expected = self.expected_loss(ranks)
        return np.zeros(ranks.shape[:-1]) if expected is None else -self.objective.gamma * expected

    def targets(self, ranks: Ranks, losses: Array, noise: Array, levels: Array | None = None) -> Targets:
        """See `Surrogate.targets`."""
        gamma = self.objective.gamma
        return Targets(-gamma * losses - self.prior_mean(ranks), gamma**2 * noise)

    def posterior(self, process: GaussianProcess) -> "GaussianPosterior":
        """See `Surrogate.posterior`."""
        return GaussianPosterior(self.space, self.objective, process, self.prior_mean)

    def evaluation_noise(self, variances: Array, losses: Array) -> Array:
        """See `Surrogate.evaluation_noise`."""
        return self.objective.gamma**2 * variances


class GaussianPosterior(Posterior):
    """J is Gaussian."""

    def loss(self, ranks: Ranks) -> tuple[Array, Array]:
        """See `Posterior.loss`."""
        mean, projected = self.latent(ranks)
        gamma = self.objective.gamma
        return -mean / gamma, np.sqrt(self.latent_variance(projected)) / gamma

    def compare(self, incumbent: Ranks) -> "GaussianComparison":
        """See `Posterior.compare`."""
        return GaussianComparison(self, incumbent)

    def slopes(self, ranks: Ranks) -> Array:
        """See `Posterior.slopes`."""
        return np.ones(len(ranks))

    def objective_of(self, ranks: Ranks, latent: Array) -> Array:
        """See `Posterior.objective_of`."""
        return self.known_part(ranks) + latent + self.prior_mean(ranks)


class GaussianComparison(Comparison):
    """J(t) - J(incumbent) is Gaussian; its probability is Eq. (11) as written, behind the monotone log Phi."""

    def log_probability(self, ranks: Ranks, delta: float) -> Array:
        """See `Comparison.log_probability`."""
        mean, variance = self.difference(ranks)
        floor = MIN_RELATIVE_VARIANCE * self.posterior.process.hyper.signal_variance
        return np.asarray(log_ndtr((mean - delta) / np.sqrt(np.maximum(variance, floor))))

    def difference(self, ranks: Ranks) -> tuple[Array, Array]:
        """See `Comparison.difference`."""
        # var(t) + var(incumbent) - 2 cov, written so that the prior's variances cancel before the data come in
        mean, projected = self.posterior.latent(ranks)
        process = self.posterior.process
        cross = process.prior_covariance(self.posterior.space.encode(ranks), self._theta)[:, 0]
        variance = 2.0 * (process.hyper.signal_variance - cross) - ((projected - self._projected) ** 2).sum(0)
        return mean - self._mean + self._known_difference(ranks), np.maximum(variance, 0.0)
