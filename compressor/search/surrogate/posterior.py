"""The posterior over J at any ranks, and over the difference between a plan and the incumbent."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from compressor.arrays import Array, Ranks, Single
from compressor.search.objective import Objective
from compressor.search.space import RankSpace
from compressor.search.surrogate.gp import GaussianProcess

MIN_RELATIVE_VARIANCE = 1e-12  # of a difference, as a share of the signal variance; less counts as this much


class Posterior(ABC):
    """Posterior over J at any ranks.

    Args:
        space: the ranks that are searched.
        objective: J.
        process: posterior of the Gaussian process, in the targets' units and less their prior mean.
        prior_mean: of the targets, values (...,) at ranks (..., d).
    """

    def __init__(
        self,
        space: RankSpace,
        objective: Objective,
        process: GaussianProcess,
        prior_mean: Callable[[Ranks], Array],
    ) -> None:
        self.space = space
        self.objective = objective
        self.process = process
        self.prior_mean = prior_mean

    @abstractmethod
    def loss(self, ranks: Ranks) -> tuple[Array, Array]:
        """Posterior mean and standard deviation (m,) of L at ranks (m, d)."""

    @abstractmethod
    def compare(self, incumbent: Ranks) -> "Comparison":
        """The posterior of J(t) - J(incumbent) for the plan `incumbent` (d,)."""

    @abstractmethod
    def slopes(self, ranks: Ranks) -> Array:
        """dJ / d target (m,) at the posterior mean, to first order."""

    @abstractmethod
    def objective_of(self, ranks: Ranks, latent: Array) -> Array:
        """J (...,) at ranks (..., d) where the process takes the values `latent` (...,)."""

    def size_term(self, ranks: Ranks) -> Array:
        """The part of J that is known exactly (...,) at ranks (..., d)."""
        return self.objective.size_term(self.space.ratio(ranks))

    def mean(self, ranks: Ranks) -> Array:
        """Posterior mean of J (m,) at ranks (m, d)."""
        return self.moments(ranks)[0]

    def sd(self, ranks: Ranks) -> Array:
        """Posterior standard deviation of J (m,) at ranks (m, d)."""
        return self.moments(ranks)[1]

    def moments(self, ranks: Ranks) -> tuple[Array, Array]:
        """Posterior mean and standard deviation of J (m,) at ranks (m, d)."""
        mean, deviation = self.loss(ranks)
        gamma = self.objective.gamma
        return self.size_term(ranks) - gamma * mean, gamma * deviation

    def known_part(self, ranks: Ranks) -> Array:
        """The part of J (...,) at ranks (..., d) that the process does not model."""
        return self.size_term(ranks)

    def latent(self, ranks: Ranks) -> tuple[Array, Array]:
        """Posterior mean (m,) of the process plus its prior mean, and its whitened cross-covariances (n, m)."""
        mean, projected = self.process.project(self.space.encode(ranks))
        return mean + self.prior_mean(ranks), projected

    def latent_single(self, ranks: Ranks) -> tuple[Array, Single]:
        """`latent` in single precision."""
        mean, projected = self.process.project_single(self.space.encode(ranks))
        return mean + self.prior_mean(ranks), projected

    def latent_variance(self, projected: Array | Single) -> Array:
        """Posterior variance (m,) of the process, from the cross-covariances (n, m) of `latent`."""
        explained = np.einsum("ij,ij->j", projected, projected)
        return np.maximum(self.process.hyper.signal_variance - explained, 0.0)


class Comparison(ABC):
    """Posterior of J(t) - J(incumbent), the covariance of the two taken into account.

    Args:
        posterior: the posterior over J.
        incumbent: the plan (d,) compared with.
    """

    def __init__(self, posterior: Posterior, incumbent: Ranks) -> None:
        self.posterior = posterior
        self._theta = posterior.space.encode(incumbent[None])
        mean, self._projected = posterior.latent(incumbent[None])
        self._mean = float(mean[0])
        self._known_part = float(posterior.known_part(incumbent[None])[0])

    @abstractmethod
    def difference(self, ranks: Ranks) -> tuple[Array, Array]:
        """Posterior mean and variance (m,) of J(t) - J(incumbent) at ranks t (m, d)."""

    @abstractmethod
    def log_probability(self, ranks: Ranks, delta: float) -> Array:
        """log P(J(t) > J(incumbent) + delta) (m,) at ranks t (m, d), Eq. (7); quick, and may be approximate."""

    def exact_log_probability(self, ranks: Ranks, delta: float) -> Array:
        """The same (m,) to full precision; the certificate uses this."""
        return self.log_probability(ranks, delta)

    def _known_difference(self, ranks: Ranks) -> Array:
        """Difference (m,) of the parts of J that the process does not model."""
        return self.posterior.known_part(ranks) - self._known_part

    def _latent_covariance(self, ranks: Ranks, projected: Array | Single) -> Array:
        """Posterior covariance (m,) of the process at ranks (m, d) with its value at the incumbent."""
        posterior = self.posterior
        cross = posterior.process.prior_covariance(posterior.space.encode(ranks), self._theta)[:, 0]
        return np.asarray(cross - np.einsum("i,ij->j", self._projected[:, 0].astype(projected.dtype), projected))
