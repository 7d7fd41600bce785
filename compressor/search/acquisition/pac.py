"""The probability of beating the incumbent by more than delta (Ma et al. 2019, Eqs. 7 and 11)."""

from compressor.arrays import Array, Ranks
from compressor.search.acquisition.base import IncumbentAcquisition
from compressor.search.surrogate.posterior import Posterior


class Pac(IncumbentAcquisition):
    """log P(J(t) > J(incumbent) + delta), Eq. (7).

    Its argmax is the next candidate, Eq. (11). Its maximum is the pointwise certificate: once it is at most epsilon,
    Eq. (12), each single plan is that unlikely to be better by more than delta.
    """

    def __init__(self, posterior: Posterior, incumbent: Ranks, delta: float) -> None:
        super().__init__(posterior, incumbent, delta)
        self._comparison = posterior.compare(incumbent)

    def values(self, ranks: Ranks) -> Array:
        """See `IncumbentAcquisition.values`."""
        return self._comparison.log_probability(ranks, self.delta)

    def exact_values(self, ranks: Ranks) -> Array:
        """See `IncumbentAcquisition.exact_values`."""
        return self._comparison.exact_log_probability(ranks, self.delta)
