"""TODO docstring."""

from typing import Literal

from pydantic import Field

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
    """`failures` of `paths` draws of the objective from the posterior had some plan, of those a search over the lattice
    finds, that beats the chosen one by more than delta; with `confidence` the probability is at most `upper`."""

    failures: int = Field(ge=0)
    paths: int = Field(ge=1)
    upper: float = Field(ge=0, le=1)
    confidence: float = Field(ge=0, le=1)

    @property
    def estimate(self) -> float:
        """Share of the draws that failed."""
        return self.failures / self.paths


class CertificateRecord(Record):
    """Two probabilities that the chosen plan is beaten by more than `delta`, both conditional on the Gaussian process.

    `pointwise`, Eq. (12): by a given other plan; the largest found among the plans tried by the acquisition's search.
    `joint`: by any plan at all; null in reports of versions that did not compute it. `asked` names the one that was to
    stop the search; `met` says that it is at most `epsilon` (the joint one: its upper bound, with epsilon's share for
    the Monte Carlo error taken off) and that the search had its start and at least one look beyond."""

    pointwise: float
    joint: JointRecord | None = None
    delta: float
    epsilon: float
    asked: Certificate = "pointwise"
    met: bool


class CalibrationRecord(Record):
    """Each look predicted from all the others: `z_rms` is the root mean square of (observed - predicted) / predicted
    deviation, 1 for a model that knows what it does not know; `within_two_sd` the share of looks within two
    deviations, 0.95 for a good one. Over `looks` looks."""

    z_rms: float
    within_two_sd: float = Field(ge=0, le=1)
    evaluations: int


class EvaluationRecord(Record):
    """One look at a candidate: its ranks (in the order of the plan's layers; null means dense), the estimate of L
    (`function_norm`, whatever the search took for L), the variance of that estimate, the ratio R, the objective J and
    where the candidate came from; `prune_fraction` is that of a search for sparsity. `index` counts from 0."""

    index: int
    source: str
    ranks: list[int | None]
    function_norm: float
    variance: float
    ratio: float
    objective: float
    images: int
    prune_fraction: float = 0.0


class ParetoRecord(Record):
    """A plan looked at by the search that no other beats in both R and L, by the Gaussian process: its `function_norm`
    and the deviation of that; `file` holds the plan, relative to the report."""

    file: str
    ratio: float
    function_norm: float
    function_norm_sd: float


class TargetStep(Record):
    """A plan that was built to see whether it keeps to a target: its R in what was searched, what was measured, and
    with what that was compared (`at_most`, an upper bound where it is known with noise)."""

    gamma: float
    ratio: float
    measured: float
    at_most: float


class TargetRecord(Record):
    """What was asked in place of gamma, at most `asked`, and what the result has, all in one unit: the whole network's
    share of the original (of what `cost` counts), bytes of model.onnx, multiply-accumulates, milliseconds, or a drop
    in points: of top-1 where `labelled`, else of the function norm in per cent of the original's output energy.

    `reached` is on `images` images, `at_most` its upper bound, which must keep to a drop with 95 % confidence; of times
    the delivered file's counts. `steps` are the plans that were built and measured on the way, `image_passes` what the
    measuring took."""

    kind: TargetKind
    asked: float
    reached: float
    at_most: float
    met: bool
    labelled: bool = False
    images: int = 0
    image_passes: int = 0
    steps: list[TargetStep] = Field(default_factory=list)


class SearchRecord(Record):
    """How the plan was found. `evaluations` counts looks at whole plans; `history` holds, too, the start's looks at
    plans that differ from its best in one layer, on fewer images. `image_passes` counts images times candidate
    networks, start included; `seconds` is the time of this process: a resumed search leaves out what came before.

    `calibration` is the leave-one-out check of the Gaussian process, `front` the plans that are worth applying."""

    evaluations: int
    image_passes: int
    seconds: float
    surrogate_seconds: float
    stopped_because: str
    objective: float
    objective_sd: float
    certificate: CertificateRecord
    calibration: CalibrationRecord
    history: list[EvaluationRecord]
    pareto_front: list[ParetoRecord] = Field(default_factory=list)
