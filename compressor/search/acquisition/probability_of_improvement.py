"""Probability of improvement over the incumbent."""

import numpy as np
from scipy.special import log_ndtr

from compressor.arrays import Array, Ranks
from compressor.search.acquisition.base import MIN_DEVIATION, IncumbentAcquisition
from compressor.search.surrogate.posterior import Posterior


class ProbabilityOfImprovement(IncumbentAcquisition):
    """log P(J(t) > mean of J(incumbent)): the incumbent's value counts as known, and J(t) as Gaussian."""

    def __init__(self, posterior: Posterior, incumbent: Ranks, delta: float) -> None:
        super().__init__(posterior, incumbent, delta)
        self._best = self.incumbent_mean()

    def values(self, ranks: Ranks) -> Array:
        """See `IncumbentAcquisition.values`."""
        mean, deviation = self.posterior.moments(ranks)
        return np.asarray(log_ndtr((mean - self._best) / np.maximum(deviation, MIN_DEVIATION)))
