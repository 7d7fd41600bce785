"""The search's part of report.json."""

from typing import Literal

from pydantic import Field

from compressor.fidelity.records import DropUnit
from compressor.schema import Record

Form = Literal["ratio", "rate"]
Certificate = Literal["joint", "pointwise"]
TargetKind = Literal["ratio", "bytes", "macs", "latency", "drop"]
TARGET_OPTIONS: dict[TargetKind, str] = {
    "ratio": "--target-ratio",
    "bytes": "--target-bytes",
    "macs": "--target-macs",
    "latency": "--target-latency-ms",
    "drop": "--max-drop",
}
SurrogateChoice = Literal["log", "loss", "objective"]


class JointRecord(Record):
    """Monte Carlo estimate of the probability that any plan beats the chosen one by more than delta.

    Attributes:
        failures: posterior sample paths of the objective on which a local search over the lattice finds such a plan.
        paths: sample paths in all.
        upper: upper confidence bound of the probability.
        confidence: of that bound.
        allowed: what the bound must not exceed: epsilon less the failure probability of the bounds of all tests; null
            in reports of versions that kept none.
    """

    failures: int = Field(ge=0)
    paths: int = Field(ge=1)
    upper: float = Field(ge=0, le=1)
    confidence: float = Field(ge=0, le=1)
    allowed: float | None = None

    @property
    def estimate(self) -> float:
        """Share of the sample paths that failed."""
        return self.failures / self.paths

    @property
    def suffices(self) -> bool:
        """Whether the bound is low enough for a certificate."""
        return self.allowed is not None and self.upper <= self.allowed


class CertificateRecord(Record):
    """Two probabilities that the chosen plan is beaten by more than delta, given the Gaussian process.

    Attributes:
        pointwise: by a single other plan, Eq. (12): the largest that the optimization of the acquisition found.
        joint: by any plan at all; null in reports of versions that did not compute it.
        about: what other plans would be better in: the objective; L, with R at most the search's limit; or R, with L at
            most the chosen plan's.
        delta: differences up to this do not matter: of J, or as a share of the chosen plan's L or R.
        epsilon: the failure probability allowed.
        asked: which of the two was to stop the search.
        met: whether it is at most `epsilon` (the joint one: its upper bound at most epsilon less the share kept for the
            Monte Carlo error), the initial design being complete and one evaluation more being made.
    """

    pointwise: float
    joint: JointRecord | None = None
    about: Literal["objective", "loss", "size"] = "objective"
    delta: float
    epsilon: float
    asked: Certificate = "pointwise"
    met: bool


class CalibrationRecord(Record):
    """Leave-one-out check of the Gaussian process: each evaluation predicted from all the others.

    Attributes:
        z_rms: root mean square of (observed - predicted) / predicted deviation; 1 where the model is calibrated.
        within_two_sd: share of evaluations within two deviations; 0.95 where the model is calibrated.
        evaluations: how many were predicted.
    """

    z_rms: float
    within_two_sd: float = Field(ge=0, le=1)
    evaluations: int


class EvaluationRecord(Record):
    """One evaluation of a plan.

    Attributes:
        index: its number, from 0.
        source: what asked for it (see `search.evaluation.history`).
        ranks: in the order of the plan's layers; null means dense.
        function_norm: the estimate of L, whatever loss is searched with.
        variance: of that estimate.
        ratio: R.
        objective: J with the estimate of L; -L where the search has a limit.
        images: number of images.
        prune_fraction: share of weights set to zero, where the search includes sparsity.
        posterior_norm: posterior mean of L at the end of the search; null in reports of versions that kept none.
    """

    index: int
    source: str
    ranks: list[int | None]
    function_norm: float
    variance: float
    ratio: float
    objective: float
    images: int
    prune_fraction: float = 0.0
    posterior_norm: float | None = None


class ParetoRecord(Record):
    """An evaluated plan that no other beats in both R and the posterior mean of L.

    Attributes:
        file: holds the plan; a path relative to the report.
        ratio: R.
        function_norm: posterior mean of L.
        function_norm_sd: posterior standard deviation of L.
    """

    file: str
    ratio: float
    function_norm: float
    function_norm_sd: float


class TargetStep(Record):
    """A plan that was built to measure whether it meets a target.

    Attributes:
        gamma: the multiplier at it; null where there is none.
        ratio: R in what was searched.
        measured: of the network, in the target's unit.
        at_most: what was compared with the target: `measured`, or its upper bound where it is known with noise.
    """

    gamma: float | None = None
    ratio: float
    measured: float
    at_most: float


class TargetRecord(Record):
    """A target that was asked for in place of gamma, and what the result reaches, in one unit.

    The unit is the whole network's share of the original (of what `cost` counts), bytes of model.onnx, multiply-
    accumulates, milliseconds, or a drop in points: of top-1, mean IoU or mean AP where `labelled`, else of the function
    norm in per cent of the original's output energy.

    Attributes:
        kind: what is limited.
        asked: at most this.
        reached: on `images` images where it is a drop.
        at_most: its upper bound, which must be at most `asked` with 95 % confidence for a drop.
        met: whether it is; of times the delivered file's decides.
        labelled: whether a drop is measured in points, of `of`.
        images: number of images of a drop.
        image_passes: what measuring took.
        steps: the plans that were built and measured on the way.
    """

    kind: TargetKind
    asked: float
    reached: float
    at_most: float
    met: bool
    labelled: bool = False
    of: DropUnit = "top-1"
    images: int = 0
    image_passes: int = 0
    steps: list[TargetStep] = Field(default_factory=list)


class SearchRecord(Record):
    """How the plan was found.

    Attributes:
        evaluations: number of whole plans evaluated.
        image_passes: images times candidate networks, initial design included.
        seconds: of this process; a resumed search leaves out what came before.
        surrogate_seconds: of those, spent on the surrogate.
        stopped_because: in words.
        limit: of R, where there is a target; J is then -L.
        gain: what reconstruction was expected to leave of a small L, as a factor; every L here is what it was expected
            to leave.
        objective: posterior mean of J at the chosen plan.
        objective_sd: posterior standard deviation of it.
        certificate: the last test.
        calibration: leave-one-out check of the Gaussian process.
        history: all evaluations, those included that no budget counts: of plans that differ from the initial design's
            best in one layer, on fewer images.
        pareto_front: the plans that are worth applying.
    """

    evaluations: int
    image_passes: int
    seconds: float
    surrogate_seconds: float
    stopped_because: str
    limit: float | None = None
    gain: float = 1.0
    objective: float
    objective_sd: float
    certificate: CertificateRecord
    calibration: CalibrationRecord
    history: list[EvaluationRecord]
    pareto_front: list[ParetoRecord] = Field(default_factory=list)
