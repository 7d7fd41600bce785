"""Upper confidence bound of J."""

from compressor.arrays import Array, Ranks
from compressor.search.acquisition.base import IncumbentAcquisition

CONFIDENCE_WIDTH = 2.0  # in posterior standard deviations


class UpperConfidenceBound(IncumbentAcquisition):
    """Posterior mean of J plus CONFIDENCE_WIDTH standard deviations."""

    def values(self, ranks: Ranks) -> Array:
        """See `IncumbentAcquisition.values`."""
        mean, deviation = self.posterior.moments(ranks)
        return mean + CONFIDENCE_WIDTH * deviation
