"""What is believed about J after n looks, by what the Gaussian process models.

`PlainBelief` is the paper's: J as a whole. `LossBelief` models -gamma L and adds the size term exactly. `LogBelief`
models log L: L spans three orders of magnitude and multiplies rather than adds across layers, so its logarithm is the
smoother function. What is expected of plans, where something is, is the prior mean of the last two. All answer the same
two questions: the posterior mean of J, and the probability of Eq. (7).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, logsumexp

from compressor.objective import Objective
from compressor.search.gp import Array, GaussianProcess, Single
from compressor.search.space import Ranks, RankSpace

SurrogateChoice = Literal["log", "loss", "plain"]
Expected = Callable[[Ranks], Array]
"""L (...,) that is expected at ranks (..., d)."""

VANISHING = 1e-12  # variance of a difference, relative to the signal's, that counts as no difference
VANISHING_QUICKLY = 1e-5  # likewise in single precision
LEAST_SHARE = 0.25  # of c: a lucky look at a loss that may be negative counts as no less than this
RESOLUTION = 1e-4  # differences of J below this are of no interest: log L is taken of L + RESOLUTION / gamma

# Quadrature over a standard normal: a few Gauss-Hermite nodes steer the acquisition; the certificate, whose integrand
# can be a step, takes a fine trapezoid.
COARSE_NODES, _coarse_weights = np.polynomial.hermite_e.hermegauss(7)
COARSE_LOG_WEIGHTS = np.log(_coarse_weights / _coarse_weights.sum())
FINE_NODES = np.linspace(-6.0, 6.0, 241)
FINE_LOG_WEIGHTS = -0.5 * FINE_NODES**2 - logsumexp(-0.5 * FINE_NODES**2)


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
    def belief(self, process: GaussianProcess) -> "Belief":
        """The belief about J that `process` (fitted to `targets`) implies."""

    def expect_look(self, belief: "Belief", ranks: Ranks, noise: float) -> "Belief":
        """The belief after a look at `ranks` (d,) that finds what `belief` expects, with this noise variance.

        No mean moves, only variances shrink: what is to be looked at beside a look under way (Ginsbourger et al. 2010,
        "Kriging is well-suited to parallelize optimization").
        """
        process, theta = belief.process, self.space.encode(ranks[None])
        count = len(process.targets)
        total = np.zeros((count + 1, count + 1))
        total[:count, :count], total[count, count] = process.noise, noise
        targets = np.append(process.targets, process.project(theta)[0])
        return self.belief(GaussianProcess(np.concatenate([process.thetas, theta]), targets, total, process.hyper))

    @abstractmethod
    def look_noise(self, variances: Array, function_norms: Array) -> Array:
        """Noise variances (m,), in the targets' units, of looks where L is about `function_norms` (m,).

        `variances` (m,) are those of the estimates of L.
        """


class Belief(ABC):
    """Posterior over J at any ranks."""

    def __init__(self, surrogate: Surrogate, process: GaussianProcess) -> None:
        self.space = surrogate.space
        self.objective = surrogate.objective
        self.process = process
        self.prior_mean = surrogate.prior_mean

    @abstractmethod
    def function_norm(self, ranks: Ranks) -> tuple[Array, Array]:
        """Posterior mean and standard deviation (m,) of L at ranks (m, d)."""

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
        """Posterior mean of J (m,)."""
        return self.moments(ranks)[0]

    def sd(self, ranks: Ranks) -> Array:
        """Posterior standard deviation of J (m,)."""
        return self.moments(ranks)[1]

    def moments(self, ranks: Ranks) -> tuple[Array, Array]:
        """Posterior mean and standard deviation (m,) of J."""
        mean, deviation = self.function_norm(ranks)
        gamma = self.objective.gamma
        return self.size_term(ranks) - gamma * mean, gamma * deviation

    def known_part(self, ranks: Ranks) -> Array:
        """The part of J (...,) at ranks (..., d) that the process leaves out."""
        return self.size_term(ranks)

    def latent(self, ranks: Ranks) -> tuple[Array, Array]:
        """Posterior mean (m,) of the process with its prior mean, and its whitened cross-covariances (n, m)."""
        mean, projected = self.process.project(self.space.encode(ranks))
        return mean + self.prior_mean(ranks), projected

    def latent_quickly(self, ranks: Ranks) -> tuple[Array, Single]:
        """The same in single precision."""
        mean, projected = self.process.project_quickly(self.space.encode(ranks))
        return mean + self.prior_mean(ranks), projected

    def latent_variance(self, projected: Array | Single) -> Array:
        """Posterior variance (m,) of the process from `latent`'s second part."""
        explained = np.einsum("ij,ij->j", projected, projected)
        return np.maximum(self.process.hyper.signal_variance - explained, 0.0)


class Score(ABC):
    """log P(J(t) > J(incumbent) + delta), Eq. (7); its argmax is Eq. (11), its maximum Eq. (12)."""

    def __init__(self, belief: Belief, incumbent: Ranks, delta: float) -> None:
        self.belief = belief
        self.incumbent = incumbent
        self.delta = delta
        self._theta = belief.space.encode(incumbent[None])
        mean, self._projected = belief.latent(incumbent[None])
        self._mean = float(mean[0])
        self._known_part = float(belief.known_part(incumbent[None])[0])

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
        """Posterior mean and variance (m,) of J(t) - J(incumbent), their covariance taken into account."""

    def _latent_covariance(self, ranks: Ranks, projected: Array | Single) -> Array:
        """Posterior covariance (m,) of the process with its value at the incumbent."""
        belief = self.belief
        cross = belief.process.prior_covariance(belief.space.encode(ranks), self._theta)[:, 0]
        return np.asarray(cross - np.einsum("i,ij->j", self._projected[:, 0].astype(projected.dtype), projected))


# Loss: Gaussian process on -gamma L


class LossSurrogate(Surrogate):
    """Targets are -gamma L, less that of the loss expected."""

    def prior_mean(self, ranks: Ranks) -> Array:
        expected = self.expected_loss(ranks)
        return np.zeros(ranks.shape[:-1]) if expected is None else -self.objective.gamma * expected

    def targets(self, ranks: Ranks, function_norms: Array, noise: Array, levels: Array | None = None) -> Targets:
        gamma = self.objective.gamma
        return Targets(-gamma * function_norms - self.prior_mean(ranks), gamma**2 * noise)

    def belief(self, process: GaussianProcess) -> "LossBelief":
        return LossBelief(self, process)

    def look_noise(self, variances: Array, function_norms: Array) -> Array:
        return self.objective.gamma**2 * variances


class LossBelief(Belief):
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


class GaussianScore(Score):
    """Eq. (11) as written, behind the monotone log Phi."""

    def _log_probability(self, ranks: Ranks) -> Array:
        mean, variance = self.difference(ranks)
        floor = VANISHING * self.belief.process.hyper.signal_variance
        return np.asarray(log_ndtr((mean - self.delta) / np.sqrt(np.maximum(variance, floor))))

    def difference(self, ranks: Ranks) -> tuple[Array, Array]:
        # var(t) + var(incumbent) - 2 cov, written so that the prior's variances cancel before the data come in
        mean, projected = self.belief.latent(ranks)
        process = self.belief.process
        cross = process.prior_covariance(self.belief.space.encode(ranks), self._theta)[:, 0]
        variance = 2.0 * (process.hyper.signal_variance - cross) - ((projected - self._projected) ** 2).sum(0)
        known = self.belief.known_part(ranks) - self._known_part
        return mean - self._mean + known, np.maximum(variance, 0.0)


# Plain: Gaussian process on J


class PlainSurrogate(LossSurrogate):
    """Targets are J, size and all, and nothing is expected of any plan."""

    def prior_mean(self, ranks: Ranks) -> Array:
        return np.zeros(ranks.shape[:-1])

    def targets(self, ranks: Ranks, function_norms: Array, noise: Array, levels: Array | None = None) -> Targets:
        losses = super().targets(ranks, function_norms, noise)
        return Targets(losses.values + self.objective.size_term(self.space.ratio(ranks)), losses.noise)

    def belief(self, process: GaussianProcess) -> "PlainBelief":
        return PlainBelief(self, process)


class PlainBelief(LossBelief):
    """J is Gaussian, and no part of it known beforehand."""

    def known_part(self, ranks: Ranks) -> Array:
        return np.zeros(ranks.shape[:-1])

    def function_norm(self, ranks: Ranks) -> tuple[Array, Array]:
        norm, deviation = super().function_norm(ranks)
        return norm + self.size_term(ranks) / self.objective.gamma, deviation


# Log: Gaussian process on the logarithm of L


class LogSurrogate(Surrogate):
    """Targets are log(L + c) less the prior mean log(S + c), c = RESOLUTION / gamma + `floor`.

    `floor` is what the loss of the original itself is taken to be (see `LossLaw`); L may then lie a little below zero.

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
        return np.maximum(function_norms + self.offset, LEAST_SHARE * self.offset)

    def belief(self, process: GaussianProcess) -> "LogBelief":
        return LogBelief(self, process)

    def look_noise(self, variances: Array, function_norms: Array) -> Array:
        return variances / self._shifted(function_norms) ** 2


class LogBelief(Belief):
    """L + c is log-normal."""

    def __init__(self, surrogate: LogSurrogate, process: GaussianProcess) -> None:
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
        latent = self.belief.latent(ranks)
        return self.mask(ranks, self._integrate(ranks, latent, VANISHING, FINE_NODES, FINE_LOG_WEIGHTS))

    def _log_probability(self, ranks: Ranks) -> Array:
        latent = self.belief.latent_quickly(ranks)
        return self._integrate(ranks, latent, VANISHING_QUICKLY, COARSE_NODES, COARSE_LOG_WEIGHTS)

    def _integrate(
        self,
        ranks: Ranks,
        latent: tuple[Array, Array | Single],
        vanishing: float,
        standard_nodes: Array,
        log_weights: Array,
    ) -> Array:
        belief = self.belief
        mean, projected = latent
        process = belief.process
        covariance = self._latent_covariance(ranks, projected)
        floor = vanishing * process.hyper.signal_variance
        own = max(float(belief.latent_variance(self._projected)[0]), floor)
        deviation = np.sqrt(np.maximum(belief.latent_variance(projected) - covariance**2 / own, floor))
        margin = (belief.known_part(ranks) - self._known_part - self.delta) / belief.objective.gamma
        nodes = self._mean + np.sqrt(own) * standard_nodes[:, None]
        threshold = np.exp(nodes) + margin
        conditional = mean + covariance / own * (nodes - self._mean)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(threshold > 0, (np.log(threshold) - conditional) / deviation, -np.inf)
        return np.asarray(np.logaddexp.reduce(log_ndtr(z) + log_weights[:, None], axis=0))

    def difference(self, ranks: Ranks) -> tuple[Array, Array]:
        mean, projected = self.belief.latent(ranks)
        variance, own = (self.belief.latent_variance(part) for part in (projected, self._projected))
        covariance = self._latent_covariance(ranks, projected)
        # Means and covariances of log-normals
        first, second = np.exp(mean + 0.5 * variance), np.exp(self._mean + 0.5 * own)
        spread = first**2 * np.expm1(variance) + second**2 * np.expm1(own) - 2.0 * first * second * np.expm1(covariance)
        gamma = self.belief.objective.gamma
        sizes = self.belief.known_part(ranks) - self._known_part
        return sizes - gamma * (first - second), gamma**2 * np.maximum(spread, 0.0)
