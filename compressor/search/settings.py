"""Settings of the search."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from compressor.errors import InputError
from compressor.schema import Count, Natural, Positive
from compressor.search.acquisition.registry import ACQUISITIONS, PAC
from compressor.search.dimension import Coordinates
from compressor.search.records import Certificate, SurrogateChoice

StartChoice = Literal["sensitivity", "random"]
NoiseChoice = Literal["pooled", "sample"]
RefitChoice = Literal["growing", "stopping"]
PriorMeanChoice = Literal["measured", "energies", "none"]

DEFAULT_EPSILON: dict[Certificate, float] = {"joint": 0.05, "pointwise": 0.005}


@dataclass(frozen=True)
class SearchSettings:
    """Settings of one search.

    Attributes:
        delta: differences of J up to this do not matter, Eq. (6).
        delta_is_relative: `delta` is a fraction of |posterior mean of J at the incumbent|.
        epsilon: the failure probability allowed, Eq. (6); None takes the certificate's own: 0.05 for "joint", the
            paper's 0.005 for "pointwise".
        certificate: what stops the search: Eq. (12) for each single plan, or the same for all plans at once.
        acquisition: a key of `ACQUISITIONS`.
        samples: images per evaluation.
        candidates: plans proposed at once, to keep several workers busy.
        max_evaluations: of joint plans; sensitivities of single layers come before.
        max_seconds: None for no limit.
        coordinates: the scale of theta.
        start: the initial design: plans from sensitivities, or random ones.
        surrogate: what the Gaussian process models: log L, L or J.
        prior_mean: of L: from measured sensitivities and the linear model of the last Gauss-Newton step, from the
            energies that ranks give up, or none.
        noise: the known noise of evaluations: "pooled" over all of them, correlated where they share images, or each
            one's own sample variance, all independent.
        refit: when hyperparameters are fitted again: with a tenth more evaluations, or also before the search may stop.
        excess_noise: whether the process fits a noise beside the known one of the evaluations.
        remeasure: whether the incumbent is evaluated again where that says more than the candidate would.
        refine: take Gauss-Newton steps by a linear model of the network.
        seed: of all random streams.

    Raises:
        InputError: no such acquisition function.
    """

    delta: Positive = 0.05
    delta_is_relative: bool = True
    epsilon: Annotated[float, Field(gt=0, lt=1)] | None = None
    certificate: Certificate = "joint"
    acquisition: str = PAC
    samples: Annotated[int, Field(ge=2)] = 50
    candidates: Count = 1
    max_evaluations: Count = 200
    max_seconds: Positive | None = None
    coordinates: Coordinates = "log"
    start: StartChoice = "sensitivity"
    surrogate: SurrogateChoice = "log"
    prior_mean: PriorMeanChoice = "measured"
    noise: NoiseChoice = "pooled"
    refit: RefitChoice = "growing"
    excess_noise: bool = True
    remeasure: bool = True
    refine: bool = True
    seed: Natural = 0

    def __post_init__(self) -> None:
        if self.acquisition not in ACQUISITIONS:
            raise InputError(f"unknown acquisition {self.acquisition!r}; choices are {', '.join(ACQUISITIONS)}")

    @property
    def failure_probability(self) -> float:
        """The failure probability allowed: `epsilon`, or where that is None the certificate's own."""
        return DEFAULT_EPSILON[self.certificate] if self.epsilon is None else self.epsilon
