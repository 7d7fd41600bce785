"""What is believed about J after n looks, by what the Gaussian process models.

`ObjectivePosterior` is the paper's: J as a whole. `GaussianPosterior` models -gamma L and adds the size term exactly. `LognormalPosterior`
models log L: L spans three orders of magnitude and multiplies rather than adds across layers, so its logarithm is the
smoother function. What is expected of plans, where something is, is the prior mean of the last two. All answer the same
two questions: the posterior mean of J, and the probability of Eq. (7).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.arrays import Array, Ranks, Single
from compressor.search.objective import Objective
from compressor.search.space import RankSpace
from compressor.search.surrogate.gp import GaussianProcess

Expected = Callable[[Ranks], Array]
"""L (...,) that is expected at ranks (..., d)."""


@dataclass(frozen=True)
class Targets:
    """Observations as the Gaussian process sees them: values (n,) and noise covariance (n, n)."""

    values: Array
    noise: Array


class Surrogate(ABC):
    """How looks at L become the process's targets, and its posterior a belief about J.

    What is `expected` of L is bent towards the loss of a network that is destroyed already, which more damage hardly
    raises: 1 / S = 1 / expected + 1 / saturation. None expects the same of all plans.
    """

    def __init__(
        self,
        space: RankSpace,
        objective: Objective,
        expected: Expected | None = None,
        saturation: float = np.inf,
    ) -> None:
        self.space = space
        self.objective = objective
        self._expected = expected
        self._saturation = saturation

    def expected_loss(self, ranks: Ranks) -> Array | None:
        """S (...,) at ranks (..., d), None where nothing is expected."""
        if self._expected is None:
            return None
        total = self._expected(ranks)
        return total / (1.0 + total / self._saturation)

    @abstractmethod
    def prior_mean(self, ranks: Ranks) -> Array:
        """What is added to the process (...,) at ranks (..., d); zero where nothing is expected."""

    @abstractmethod
    def targets(self, ranks: Ranks, function_norms: Array, noise: Array, levels: Array | None = None) -> Targets:
        """Targets from estimates of L (n,) at ranks (n, d) with noise covariance (n, n).

        `levels` (n,) say about how large each L is where its estimate is too noisy to; None takes the estimates.
        """

    @abstractmethod
    def posterior(self, process: GaussianProcess) -> "Posterior":
        """The belief about J that `process` (fitted to `targets`) implies."""

    def fantasize(self, posterior: "Posterior", ranks: Ranks, noise: float) -> "Posterior":
        """The belief after a look at `ranks` (d,) that finds what `belief` expects, with this noise variance.

        No mean moves, only variances shrink: what is to be looked at beside a look under way (Ginsbourger et al. 2010,
        "Kriging is well-suited to parallelize optimization").
        """
        process, theta = posterior.process, self.space.encode(ranks[None])
        count = len(process.targets)
        total = np.zeros((count + 1, count + 1))
        total[:count, :count], total[count, count] = process.noise, noise
        targets = np.append(process.targets, process.project(theta)[0])
        return self.posterior(GaussianProcess(np.concatenate([process.thetas, theta]), targets, total, process.hyper))

    @abstractmethod
    def evaluation_noise(self, variances: Array, function_norms: Array) -> Array:
        """Noise variances (m,), in the targets' units, of looks where L is about `function_norms` (m,).

        `variances` (m,) are those of the estimates of L.
        """


class Posterior(ABC):
    """SurrogateFitter over J at any ranks."""

    def __init__(self, surrogate: Surrogate, process: GaussianProcess) -> None:
        self.space = surrogate.space
        self.objective = surrogate.objective
        self.process = process
        self.prior_mean = surrogate.prior_mean

    @abstractmethod
    def function_norm(self, ranks: Ranks) -> tuple[Array, Array]:
        """SurrogateFitter mean and standard deviation (m,) of L at ranks (m, d)."""

    @abstractmethod
    def score(self, incumbent: Ranks, delta: float) -> "Score":
        """The acquisition: how probable each point beats `incumbent` (d,) by more than `delta`."""

    @abstractmethod
    def slopes(self, ranks: Ranks) -> Array:
        """dJ / d target (m,) at the posterior mean, to first order."""

    @abstractmethod
    def objective_of(self, ranks: Ranks, latent: Array) -> Array:
        """J (...,) at ranks (..., d) where the process, on its own scale, has the values `latent` (...,)."""

    def size_term(self, ranks: Ranks) -> Array:
        """The exact part of J (...,) at ranks (..., d)."""
        return self.objective.size_term(self.space.ratio(ranks))

    def mean(self, ranks: Ranks) -> Array:
        """SurrogateFitter mean of J (m,)."""
        return self.moments(ranks)[0]

    def sd(self, ranks: Ranks) -> Array:
        """SurrogateFitter standard deviation of J (m,)."""
        return self.moments(ranks)[1]

    def moments(self, ranks: Ranks) -> tuple[Array, Array]:
        """SurrogateFitter mean and standard deviation (m,) of J."""
        mean, deviation = self.function_norm(ranks)
        gamma = self.objective.gamma
        return self.size_term(ranks) - gamma * mean, gamma * deviation

    def known_part(self, ranks: Ranks) -> Array:
        """The part of J (...,) at ranks (..., d) that the process leaves out."""
        return self.size_term(ranks)

    def latent(self, ranks: Ranks) -> tuple[Array, Array]:
        """SurrogateFitter mean (m,) of the process with its prior mean, and its whitened cross-covariances (n, m)."""
        mean, projected = self.process.project(self.space.encode(ranks))
        return mean + self.prior_mean(ranks), projected

    def latent_single(self, ranks: Ranks) -> tuple[Array, Single]:
        """The same in single precision."""
        mean, projected = self.process.project_single(self.space.encode(ranks))
        return mean + self.prior_mean(ranks), projected

    def latent_variance(self, projected: Array | Single) -> Array:
        """SurrogateFitter variance (m,) of the process from `latent`'s second part."""
        explained = np.einsum("ij,ij->j", projected, projected)
        return np.maximum(self.process.hyper.signal_variance - explained, 0.0)


# Loss: Gaussian process on -gamma L


# Plain: Gaussian process on J


# Log: Gaussian process on the logarithm of L


class Score(ABC):
    """log P(J(t) > J(incumbent) + delta), Eq. (7); its argmax is Eq. (11), its maximum Eq. (12)."""

    def __init__(self, posterior: Posterior, incumbent: Ranks, delta: float) -> None:
        self.posterior = posterior
        self.incumbent = incumbent
        self.delta = delta
        self._theta = posterior.space.encode(incumbent[None])
        mean, self._projected = posterior.latent(incumbent[None])
        self._mean = float(mean[0])
        self._known_part = float(posterior.known_part(incumbent[None])[0])

    def __call__(self, ranks: Ranks) -> NDArray[np.float64]:
        """Log probabilities (m,) at ranks (m, d); minus infinity at the incumbent itself."""
        return self.mask(ranks, self._log_probability(ranks))

    def exact(self, ranks: Ranks) -> NDArray[np.float64]:
        """The same (m,) without the short cuts that make the acquisition quick; the certificate reads this."""
        return self(ranks)

    def mask(self, ranks: Ranks, values: Array) -> NDArray[np.float64]:
        """`values` (m,), minus infinity where ranks (m, d) are the incumbent's."""
        same = (ranks == self.incumbent).all(1)
        return np.where(same, -np.inf, values)

    @abstractmethod
    def _log_probability(self, ranks: Ranks) -> Array: ...

    @abstractmethod
    def difference(self, ranks: Ranks) -> tuple[Array, Array]:
        """SurrogateFitter mean and variance (m,) of J(t) - J(incumbent), their covariance taken into account."""

    def _latent_covariance(self, ranks: Ranks, projected: Array | Single) -> Array:
        """SurrogateFitter covariance (m,) of the process with its value at the incumbent."""
        posterior = self.posterior
        cross = posterior.process.prior_covariance(posterior.space.encode(ranks), self._theta)[:, 0]
        return np.asarray(cross - np.einsum("i,ij->j", self._projected[:, 0].astype(projected.dtype), projected))
