"""Surrogates: how observations of L become targets of the Gaussian process, and its posterior one over J.

Three of them: `LossSurrogate` (gaussian.py) models -gamma L and adds the size term exactly; `ObjectiveSurrogate`
(objective.py), the paper's, models J as a whole; `LognormalSurrogate` (lognormal.py) models log L. L spans three orders
of magnitude and multiplies rather than adds across layers, so its logarithm is the smoother function.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.search.objective import Objective
from compressor.search.space import RankSpace
from compressor.search.surrogate.gp import GaussianProcess
from compressor.search.surrogate.posterior import Posterior

ExpectedLoss = Callable[[Ranks], Array]
"""A prior mean of L: values (...,) at ranks (..., d)."""


@dataclass(frozen=True)
class Targets:
    """Observations in the units of the Gaussian process: values (n,) and noise covariance (n, n)."""

    values: Array
    noise: Array


class Surrogate(ABC):
    """A model of J.

    Args:
        space: the ranks that are searched.
        objective: J.
        expected: prior mean of L before saturation; None for a constant one.
        saturation: loss of a network that is destroyed already, which more damage hardly raises. The prior mean S of L
            approaches it: 1 / S = 1 / expected + 1 / saturation.
    """

    def __init__(
        self,
        space: RankSpace,
        objective: Objective,
        expected: ExpectedLoss | None = None,
        saturation: float = np.inf,
    ) -> None:
        self.space = space
        self.objective = objective
        self._expected = expected
        self._saturation = saturation

    def expected_loss(self, ranks: Ranks) -> Array | None:
        """Prior mean S of L (...,) at ranks (..., d); None where it is constant."""
        if self._expected is None:
            return None
        total = self._expected(ranks)
        return total / (1.0 + total / self._saturation)

    @abstractmethod
    def prior_mean(self, ranks: Ranks) -> Array:
        """Prior mean (...,) at ranks (..., d) in the targets' units, less the constant that the process fits."""

    @abstractmethod
    def targets(self, ranks: Ranks, losses: Array, noise: Array, levels: Array | None = None) -> Targets:
        """Targets, less their prior mean, from estimates of L.

        Args:
            ranks: the plans that were evaluated (n, d).
            losses: estimates of L (n,).
            noise: covariance of their noise (n, n).
            levels: rough sizes of L (n,), by which noise is scaled where estimates are too noisy for that; None takes
                the estimates.
        """

    @abstractmethod
    def posterior(self, process: GaussianProcess) -> Posterior:
        """The posterior over J by a process that was fitted to `targets`."""

    def fantasize(self, posterior: Posterior, ranks: Ranks, noise: float) -> Posterior:
        """The posterior after an evaluation that finds the posterior mean.

        No mean moves, only variances shrink: this chooses what to evaluate beside an evaluation that is still running
        (Ginsbourger et al. 2010, "Kriging is well-suited to parallelize optimization").

        Args:
            posterior: before it.
            ranks: the plan that is evaluated (d,).
            noise: variance of the evaluation, in the targets' units.
        """
        process, theta = posterior.process, self.space.encode(ranks[None])
        count = len(process.targets)
        total = np.zeros((count + 1, count + 1))
        total[:count, :count], total[count, count] = process.noise, noise
        targets = np.append(process.targets, process.project(theta)[0])
        return self.posterior(GaussianProcess(np.concatenate([process.thetas, theta]), targets, total, process.hyper))

    @abstractmethod
    def evaluation_noise(self, variances: Array, losses: Array) -> Array:
        """Noise variances (m,), in the targets' units, of evaluations where L is about `losses` (m,).

        `variances` (m,) are those of the estimates of L.
        """
