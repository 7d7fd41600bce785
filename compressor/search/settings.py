"""What a person may choose about the search."""

from dataclasses import dataclass
from typing import Literal

from compressor.errors import InputError
from compressor.search.acquisition.registry import ACQUISITIONS, PAC
from compressor.search.dimension import Coordinates
from compressor.search.records import Certificate, SurrogateChoice

StartChoice = Literal["sensitivity", "random"]
PriorMeanChoice = Literal["measured", "energies", "none"]

DEFAULT_EPSILON: dict[Certificate, float] = {"joint": 0.05, "pointwise": 0.005}


@dataclass(frozen=True)
class SearchSettings:
    """`delta` and `epsilon` of Eq. (6); `delta_is_relative` makes delta a fraction of |mu(incumbent)|.

    `certificate` is what stops the search: Eq. (12) for each single plan, or the same for all plans at once. `epsilon`
    None is the certificate's own: 0.05 for joint, the paper's 0.005 for pointwise. `samples` images per look;
    `max_evaluations` looks at joint plans (probes of single layers come before). `candidates` plans are proposed at
    once, so that several workers have something to do. `refine` takes steps by a linear model of the network.
    `prior_mean` is what plans are expected to lose before any of them is looked at: what layers were measured to, alone
    and around the plan of the last step, the energy that they give up, or the same for all.
    """

    delta: float = 0.05
    delta_is_relative: bool = True
    epsilon: float | None = None
    certificate: Certificate = "joint"
    acquisition: str = PAC
    samples: int = 50
    candidates: int = 1
    max_evaluations: int = 200
    max_seconds: float | None = None
    coordinates: Coordinates = "log"
    start: StartChoice = "sensitivity"
    surrogate: SurrogateChoice = "log"
    prior_mean: PriorMeanChoice = "measured"
    refine: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.acquisition not in ACQUISITIONS:
            raise InputError(f"unknown acquisition {self.acquisition!r}; choices are {', '.join(ACQUISITIONS)}")

    @property
    def risk(self) -> float:
        """Epsilon, chosen or by certificate."""
        return DEFAULT_EPSILON[self.certificate] if self.epsilon is None else self.epsilon
