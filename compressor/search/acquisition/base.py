"""What an acquisition function is."""

from abc import ABC, abstractmethod

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.search.surrogate.posterior import Posterior

MIN_DEVIATION = 1e-12  # of J; less counts as this much


class AcquisitionFunction(ABC):
    """A function of ranks that is maximized: quick everywhere, exact at the few points that are compared in the end."""

    @abstractmethod
    def __call__(self, ranks: Ranks) -> Array:
        """Values (m,) at ranks (m, d); minus infinity excludes a plan."""

    def exact(self, ranks: Ranks) -> Array:
        """The same (m,) without approximations."""
        return self(ranks)


class IncumbentAcquisition(AcquisitionFunction):
    """An acquisition function that measures plans against the incumbent, which it excludes.

    Args:
        posterior: over J.
        incumbent: the best plan (d,) so far.
        delta: differences of J up to this do not matter.
    """

    def __init__(self, posterior: Posterior, incumbent: Ranks, delta: float) -> None:
        self.posterior = posterior
        self.incumbent = incumbent
        self.delta = delta

    def __call__(self, ranks: Ranks) -> Array:
        return self._exclude_incumbent(ranks, self.values(ranks))

    def exact(self, ranks: Ranks) -> Array:
        """See `AcquisitionFunction.exact`."""
        return self._exclude_incumbent(ranks, self.exact_values(ranks))

    @abstractmethod
    def values(self, ranks: Ranks) -> Array:
        """Values (m,) at ranks (m, d); what the incumbent's is does not matter."""

    def exact_values(self, ranks: Ranks) -> Array:
        """The same (m,) without approximations."""
        return self.values(ranks)

    def incumbent_mean(self) -> float:
        """Posterior mean of J at the incumbent."""
        return float(self.posterior.mean(self.incumbent[None])[0])

    def _exclude_incumbent(self, ranks: Ranks, values: Array) -> Array:
        return np.where((ranks == self.incumbent).all(1), -np.inf, values)
