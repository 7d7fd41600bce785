"""Acquisitions beside the PAC quantity: expected improvement, probability of improvement, upper confidence bound.

Sec. 3.2 plugs Eq. (11) into expected improvement ("pac-ei": the improvement is J(t) - J(incumbent) - delta with its
joint variance). The other three know the incumbent by its posterior mean alone. Under the log surrogate J is not
Gaussian; all four then take the Gaussian of the same mean and variance (those of a log-normal, exactly).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, log_ndtr

from compressor.arrays import Array, Ranks
from compressor.search.settings import Acquisition
from compressor.search.surrogate.base import Posterior, Score

CONFIDENCE_WIDTH = 2.0  # standard deviations
MIN_DEVIATION = 1e-12
NEVER = -1e4  # deviations: below, log z^2 is all that is left of the correction


class Improvement:
    """The score of one of these acquisitions; called as a `Score` is.

    Args:
        score: incumbent and delta.
        kind: any acquisition but "pac", whose score is the `Score` itself.
    """

    def __init__(self, score: Score, kind: Acquisition) -> None:
        self._score = score
        self._kind = kind
        self._best = float(score.posterior.mean(score.incumbent[None])[0])

    @property
    def posterior(self) -> Posterior:
        return self._score.posterior

    def __call__(self, ranks: Ranks) -> NDArray[np.float64]:
        """Values (m,) at ranks (m, d), to be maximized; minus infinity at the incumbent itself."""
        return self._score.mask(ranks, self._value(ranks))

    exact = __call__

    def _value(self, ranks: Ranks) -> Array:
        if self._kind == "pac-ei":
            mean, variance = self._score.difference(ranks)
            return log_expected_improvement(mean - self._score.delta, np.sqrt(variance))
        mean, deviation = self.posterior.moments(ranks)
        if self._kind == "ei":
            return log_expected_improvement(mean - self._best, deviation)
        if self._kind == "pi":
            return np.asarray(log_ndtr((mean - self._best) / np.maximum(deviation, MIN_DEVIATION)))
        return mean + CONFIDENCE_WIDTH * deviation


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
        rest = np.where(low < NEVER, -2.0 * np.log(-low), rest)
    high = np.maximum(z, -1.0)
    direct = np.log(np.exp(-0.5 * high**2) / np.sqrt(2.0 * np.pi) + high * np.exp(log_ndtr(high)))
    return np.asarray(np.log(deviation) + np.where(z < -1.0, log_density + rest, direct))
