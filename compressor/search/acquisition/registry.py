"""The acquisition functions by the names that `--acquisition` takes.

A new one is a file with a subclass of `AcquisitionFunction` and an entry here. An entry is loaded on first use, so that
the command line reads the names without loading scipy.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from compressor.lazy import load_named

if TYPE_CHECKING:
    from compressor.arrays import Ranks
    from compressor.search.acquisition.base import AcquisitionFunction
    from compressor.search.surrogate.posterior import Posterior

    AcquisitionFactory = Callable[[Posterior, Ranks, float], AcquisitionFunction]

PAC = "pac"
ACQUISITIONS: dict[str, "str | AcquisitionFactory"] = {
    PAC: "compressor.search.acquisition.pac:Pac",
    "pac-ei": "compressor.search.acquisition.expected_improvement:PacExpectedImprovement",
    "ei": "compressor.search.acquisition.expected_improvement:ExpectedImprovement",
    "pi": "compressor.search.acquisition.probability_of_improvement:ProbabilityOfImprovement",
    "ucb": "compressor.search.acquisition.upper_confidence_bound:UpperConfidenceBound",
}
"""What makes an acquisition function of a posterior, the incumbent (d,) and delta, or where that is: "module:name"."""


def make_acquisition(name: str, posterior: "Posterior", incumbent: "Ranks", delta: float) -> "AcquisitionFunction":
    """The acquisition function of this name.

    Args:
        name: a key of `ACQUISITIONS`.
        posterior: over J.
        incumbent: the best plan (d,) so far.
        delta: differences of J up to this do not matter.
    """
    factory = ACQUISITIONS[name]
    if isinstance(factory, str):
        factory = load_named(factory)
    made: AcquisitionFunction = factory(posterior, incumbent, delta)
    return made
