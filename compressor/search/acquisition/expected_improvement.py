"""Expected improvement over the incumbent, and the paper's variant of it (Ma et al. 2019, Sec. 3.2).

Under the log-normal surrogate J is not Gaussian; both then take the Gaussian of the same mean and variance.
"""

import numpy as np
from scipy.special import erfcx, log_ndtr

from compressor.arrays import Array, Ranks
from compressor.search.acquisition.base import MIN_DEVIATION, IncumbentAcquisition
from compressor.search.surrogate.posterior import Posterior

ASYMPTOTIC_BELOW = -1e4  # z below which the correction to log phi(z) is -2 log |z| to rounding


class ExpectedImprovement(IncumbentAcquisition):
    """log E[max(J(t) - mean of J(incumbent), 0)]: the incumbent's value counts as known."""

    def __init__(self, posterior: Posterior, incumbent: Ranks, delta: float) -> None:
        super().__init__(posterior, incumbent, delta)
        self._best = self.incumbent_mean()

    def values(self, ranks: Ranks) -> Array:
        """See `IncumbentAcquisition.values`."""
        mean, deviation = self.posterior.moments(ranks)
        return log_expected_improvement(mean - self._best, deviation)


class PacExpectedImprovement(IncumbentAcquisition):
    """log E[max(J(t) - J(incumbent) - delta, 0)], by the joint variance of both: Eq. (11) in expected improvement."""

    def __init__(self, posterior: Posterior, incumbent: Ranks, delta: float) -> None:
        super().__init__(posterior, incumbent, delta)
        self._comparison = posterior.compare(incumbent)

    def values(self, ranks: Ranks) -> Array:
        """See `IncumbentAcquisition.values`."""
        mean, variance = self._comparison.difference(ranks)
        return log_expected_improvement(mean - self.delta, np.sqrt(variance))


def log_expected_improvement(mean: Array, deviation: Array) -> Array:
    """log E[max(x, 0)] (m,) of x ~ N(mean, deviation^2): log(s (phi(z) + z Phi(z))), z = mean / s.

    In the logarithm, so that points far from improving still have an order (Ament et al. 2023, Eq. 9).
    """
    deviation = np.maximum(deviation, MIN_DEVIATION)
    z = mean / deviation
    log_density = -0.5 * z**2 - 0.5 * np.log(2.0 * np.pi)
    low = np.minimum(z, -1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        # 1 + z Phi(z) / phi(z) for z < -1; it cancels down to 1 / z^2
        rest = np.log1p(np.sqrt(0.5 * np.pi) * low * erfcx(-low / np.sqrt(2.0)))
        rest = np.where(low < ASYMPTOTIC_BELOW, -2.0 * np.log(-low), rest)
    high = np.maximum(z, -1.0)
    direct = np.log(np.exp(-0.5 * high**2) / np.sqrt(2.0 * np.pi) + high * np.exp(log_ndtr(high)))
    return np.asarray(np.log(deviation) + np.where(z < -1.0, log_density + rest, direct))
