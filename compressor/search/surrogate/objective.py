"""Gaussian process on J as a whole, as in the paper (Ma et al. 2019, Sec. 3.2)."""

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.search.surrogate.base import Targets
from compressor.search.surrogate.gaussian import GaussianPosterior, LossSurrogate
from compressor.search.surrogate.gp import GaussianProcess


class ObjectiveSurrogate(LossSurrogate):
    """Targets are J, the size term included; the prior mean is constant."""

    def prior_mean(self, ranks: Ranks) -> Array:
        """See `Surrogate.prior_mean`."""
        return np.zeros(ranks.shape[:-1])

    def targets(self, ranks: Ranks, losses: Array, noise: Array, levels: Array | None = None) -> Targets:
        """See `Surrogate.targets`."""
        of_losses = super().targets(ranks, losses, noise)
        return Targets(of_losses.values + self.objective.size_term(self.space.ratio(ranks)), of_losses.noise)

    def posterior(self, process: GaussianProcess) -> "ObjectivePosterior":
        """See `Surrogate.posterior`."""
        return ObjectivePosterior(self.space, self.objective, process, self.prior_mean)


class ObjectivePosterior(GaussianPosterior):
    """J is Gaussian, and the process models all of it."""

    def known_part(self, ranks: Ranks) -> Array:
        """See `Posterior.known_part`."""
        return np.zeros(ranks.shape[:-1])

    def loss(self, ranks: Ranks) -> tuple[Array, Array]:
        """See `Posterior.loss`."""
        mean, deviation = super().loss(ranks)
        return mean + self.size_term(ranks) / self.objective.gamma, deviation
