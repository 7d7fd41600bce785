"""The data that passes between stages; the same pydantic records write and validate every JSON file.

Units are part of the names. This module imports nothing of ours.
"""

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["conv", "linear"]
Method = Literal["svd", "spatial", "tucker", "cp", "interpolative"]
Form = Literal["ratio", "rate"]
Cost = Literal["params", "bytes", "macs", "latency"]
COST_WORDS: dict[Cost, str] = {
    "params": "parameters",
    "bytes": "bytes",
    "macs": "multiply-accumulates",
    "latency": "time",
}
Fidelity = Literal["norm", "risk", "error"]
FIDELITY_WORDS: dict[Fidelity, str] = {
    "norm": "the function norm",
    "risk": "the cross-entropy above the original’s",
    "error": "the share of wrong decisions above the original’s",
}
FactorKind = Literal["weight", "refit", "activation"]
FactorChoice = Literal["auto", "weight", "refit", "activation"]
StepKind = Literal["last factor", "both factors", "batch-norm statistics"]
Certificate = Literal["joint", "pointwise"]
Precision = Literal["fp32", "fp16", "int8"]
FileFormat = Literal["onnx", "ort"]
CalibrationName = Literal["min-max", "percentile", "entropy"]
TuneTarget = Literal["teacher", "labels"]
Schedule = Literal["cosine", "step", "cyclic"]
StageKind = Literal["original", "compress", "finetune", "prune"]
Wish = Literal["ratio", "bytes", "macs", "latency", "drop"]
WISH_OPTIONS: dict[Wish, str] = {
    "ratio": "--target-ratio",
    "bytes": "--target-bytes",
    "macs": "--target-macs",
    "latency": "--target-latency-ms",
    "drop": "--max-drop",
}
Number = TypeVar("Number", int, float)


class Record(BaseModel):
    """Base of all records: immutable, unknown fields refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Pair(Record, Generic[Number]):
    """One figure of the original network and the same figure of the compressed one."""

    original: Number
    compressed: Number


class LayerPlan(Record):
    """What happens to one layer: factorised by `method` at `rank`, or kept dense (`rank` null).

    `factors`: the weight's own; with the last factor refitted on calibration images; or those of the layer's inputs
    ("activation"). Null leaves the choice to the run that applies the plan."""

    name: str
    method: Method
    factors: FactorKind | None = None
    rank: int | None = Field(ge=1)
    cap: int = Field(ge=1)
    why: str = ""


class Plan(Record):
    """`plan.json`: a rank for every compressible layer. Can be edited by hand and applied again. `gamma` weighs
    `fidelity`, both of the search that made the plan."""

    version: Literal[1] = 1
    arch: str
    gamma: float | None = Field(default=None, gt=0)
    fidelity: Fidelity = "norm"
    prune_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    layers: list[LayerPlan] = Field(min_length=1)


class LayerRecord(Record):
    """One conv or linear layer as found in the network, and what was done with it.

    `shape` is the weight's shape: (Co, Ci/groups, kh, kw) or (Co, Ci). `skipped` says why a layer cannot be
    compressed; it is null for compressible layers. `rank` is null where the layer stays dense; `cap` is the
    rank at which the factors would hold as many parameters as the layer (break-even, Sec. 3.3).
    """

    name: str
    kind: Kind
    shape: list[int]
    method: Method | None = None
    factors: FactorKind | None = None
    cap: int | None = None
    rank: int | None = None
    params: int
    params_compressed: int | None = None
    macs: int
    macs_compressed: int | None = None
    skipped: str | None = None


class LatencyRecord(Record):
    """Latency of two ONNX files measured interleaved in one run; milliseconds for one batch.

    `original_ms` and `compressed_ms` are medians; `ratio` is the median of the paired ratios
    compressed/original and [ratio_low, ratio_high] its 95 % bootstrap interval.
    """

    original_ms: float
    compressed_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    original_p90_ms: float
    compressed_p90_ms: float
    original_p99_ms: float
    compressed_p99_ms: float
    runs: int
    threads: int
    batch_size: int
    original_samples_ms: list[float] = []
    compressed_samples_ms: list[float] = []


class FidelityRecord(Record):
    """Function norm L = E||f~(x) - f*(x)||^2 (Eq. 5) on images outside the search.

    `stderr` is the standard error of `function_norm`; `teacher_energy` is E||f*(x)||^2 and `relative` their
    ratio L / E||f*(x)||^2. `top1_agreement` is the share of images on which both networks decide for the same class.
    """

    function_norm: float = Field(ge=0)
    stderr: float = Field(ge=0)
    relative: float = Field(ge=0)
    teacher_energy: float = Field(ge=0)
    images: int = Field(ge=2)
    top1_agreement: float = Field(ge=0, le=1)


class ParityRecord(Record):
    """ONNX Runtime against torch on the same images: outputs' largest absolute difference, the same over the
    largest output magnitude (at most `tolerance`), and the share of images with the same top-1 class."""

    max_abs_error: float = Field(ge=0)
    max_rel_error: float = Field(ge=0)
    top1_agreement: float = Field(ge=0, le=1)
    images: int
    batch_sizes: list[int]
    tolerance: float


class PartingRecord(Record):
    """A tensor in which two files differ: its name, the layer (or operator) that gives it, and the largest difference
    over the first file's largest magnitude."""

    tensor: str
    layer: str
    relative_error: float = Field(ge=0)


class DifferenceRecord(Record):
    """Two files on the same images, as `bocompress verify` compares them; figures as in `ParityRecord`, with the first
    file in torch's place. `function_norm` is the mean squared distance of the outputs, `worst_image` the number of the
    image with the largest difference. On it `tensors_compared` tensors within were compared, up to the first that is
    further apart than `tolerance`: `parting`, null where none is."""

    max_abs_error: float = Field(ge=0)
    max_rel_error: float = Field(ge=0)
    function_norm: float = Field(ge=0)
    top1_agreement: float = Field(ge=0, le=1)
    images: int
    worst_image: int
    tolerance: float
    same: bool
    parting: PartingRecord | None
    tensors_compared: int


class FloatLayer(Record):
    """A layer that an int8 file keeps in float32, and the function norm it adds where it alone is in int8."""

    name: str
    added_norm: float = Field(ge=0)


class QuantisationRecord(Record):
    """How an int8 file came about. Function norms are against the float32 file, on `judge_images` of the search's:
    `added_norm_all` with every layer in int8, `added_norm` with `float_layers` (costliest first, of `layers` in all)
    left in float32 because `allowed_norm` was exceeded. `trials` counts the int8 networks that were run for it."""

    calibration: CalibrationName
    calibration_images: int
    judge_images: int
    added_norm: float = Field(ge=0)
    added_norm_all: float = Field(ge=0)
    allowed_norm: float = Field(ge=0)
    layers: int
    float_layers: list[FloatLayer]
    trials: int


class PrecisionRecord(Record):
    """The compressed network in another precision, judged through ONNX Runtime on the images outside the search.

    `fidelity` is against the original network; `norm_to_float32`, `agreement_to_float32` and `latency_to_float32`
    against the compressed float32 file, whose times are that record's `original_ms`.
    """

    precision: Precision
    file: str
    onnx_bytes: int
    gzip_bytes: int
    fidelity: FidelityRecord
    norm_to_float32: float = Field(ge=0)
    agreement_to_float32: float = Field(ge=0, le=1)
    top1: float | None = None
    latency: dict[str, LatencyRecord]
    latency_to_float32: dict[str, LatencyRecord]
    quantisation: QuantisationRecord | None = None


class FileRecord(Record):
    """A file made from another of the run: in ORT format (`max_rel_error` is against torch for float32, else against
    `source`; `operators` names the list for a minimal build), or zipped, when both sizes are the same."""

    file: str
    source: str
    size_bytes: int
    gzip_bytes: int
    max_rel_error: float | None = None
    operators: str | None = None


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
    looks: int


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


class FrontRecord(Record):
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

    wish: Wish
    asked: float
    reached: float
    at_most: float
    met: bool
    labelled: bool = False
    images: int = 0
    image_passes: int = 0
    steps: list[TargetStep] = []


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
    front: list[FrontRecord] = []


class RecalibrationStep(Record):
    """One step of the recalibration: function norm on the check images before and after; `layer` is empty where the
    step speaks of the whole network."""

    layer: str
    kind: StepKind
    before: float
    after: float
    kept: bool


class RecalibrationRecord(Record):
    """What refitting the layers of the compressed network brought, on images outside calibration."""

    calibration_images: int
    check_images: int
    before: float
    after: float
    seconds: float
    steps: list[RecalibrationStep]


class TuneEpoch(Record):
    """One epoch of a fine-tuning; epoch 0 is the network before it. Losses are those trained on (null where they were
    not finite), `check_loss` and `function_norm` on the check images; `learning_rate` is that of the last step."""

    epoch: int
    learning_rate: float
    train_loss: float | None
    check_loss: float | None
    function_norm: float
    seconds: float


class Judgement(Record):
    """A network on the images outside the search; accuracies are null without labels, top-5 without five classes."""

    function_norm: float
    top1: float | None = None
    top5: float | None = None


class TuneRecord(Record):
    """A fine-tuning: what it learnt from (`by`), how, and what every epoch brought. The weights of `kept_epoch` were
    kept, those with the lowest loss on the check images, which are outside training and judging.

    `before` and `after` are on the images outside the search; `excluded` counts images that were left out of the
    training because they judge."""

    by: TuneTarget
    schedule: Schedule
    learning_rate: float
    batch_size: int
    autocast: bool
    epochs: int
    train_images: int
    check_images: int
    excluded: int = 0
    kept_epoch: int
    stopped_because: str
    seconds: float
    rows: list[TuneEpoch]
    before: Judgement | None = None
    after: Judgement | None = None


class StageRecord(Record):
    """One stage of a recipe, and the network as it left it, on the images outside the search; the first row of a report
    is the original. `ratio` counts weights that are not zero, over the original's; `what` says what was done."""

    name: str
    kind: StageKind
    what: str
    nonzero_params: int
    ratio: float
    judgement: Judgement
    seconds: float
    gamma: float | None = None
    search: SearchRecord | None = None
    recalibration: RecalibrationRecord | None = None
    tuning: TuneRecord | None = None


class ImagesRecord(Record):
    """Where the images came from and how they were used."""

    source: str
    calibration: int = 0
    search: int
    deciding: int = 0
    held_out: int
    unreadable: int
    labelled: bool
    input_shape: list[int]


class MachineRecord(Record):
    """What the figures were measured on and with."""

    cores: int
    processor: str
    platform: str
    versions: dict[str, str]


class RatioRecord(Record):
    """Median of paired ratios and the 95 % interval around it; sessions, and runs within them, are resampled."""

    value: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)


class BenchmarkedFile(Record):
    """One benchmarked ONNX file; data that it keeps in a file beside it counts."""

    name: str
    path: str
    onnx_bytes: int
    gzip_bytes: int


class TimingRecord(Record):
    """One file in one setting: milliseconds for one batch; `wall_ms` is the median by the clock on the wall where the
    others leave out what other processes took of the core (see `SettingRecord`). `load_ms` is the median of creating a
    session; `peak_memory_bytes` what a fresh process that loads and runs the file alone takes above one that does not
    (null where the system does not say); `ratio` is to the reference, null for the reference itself."""

    file: str
    median_ms: float
    wall_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    load_ms: float
    peak_memory_bytes: int | None
    ratio: RatioRecord | None
    samples_ms: list[float]


class OperatorRecord(Record):
    """One node of the graph that ran, or all of one type (`nodes` of them): milliseconds of one run and their share."""

    name: str
    op_type: str
    nodes: int = 1
    output_shape: list[int] | None = None
    median_ms: float
    share: float


class ProfileRecord(Record):
    """Where one file's time went, by ONNX Runtime's profiler: `run_ms` is the median of a whole run; `operators` hold
    all types and `nodes` the most expensive ones, the slowest first; shares are of the sum over all nodes."""

    file: str
    runs: int
    run_ms: float
    operators: list[OperatorRecord]
    nodes: list[OperatorRecord]


class SettingRecord(Record):
    """All files on one provider with one number of threads and one batch size. `noise` compares the reference with
    itself, opened twice. `on_core`: times are the processor's, as with one thread on the CPU, not those on the wall;
    `others` is the share of all cores' time that other processes took, null where the system does not say."""

    provider: str
    threads: int
    batch_size: int
    rounds: int
    sessions: int
    noise: RatioRecord
    on_core: bool
    others: float | None
    timings: list[TimingRecord]
    profiles: list[ProfileRecord] = []
    warnings: list[str] = []


class BenchmarkRecord(Record):
    """`benchmark.json`: what `bocompress benchmark` measured. The first file is the reference; `skipped` names the
    providers that were not there."""

    created: str
    command: str
    seed: int
    seconds: float
    input_shape: list[int]
    files: list[BenchmarkedFile] = Field(min_length=1)
    settings: list[SettingRecord]
    skipped: list[str]
    machine: MachineRecord


class Report(Record):
    """`report.json`: everything the page shows, and enough to run it again.

    `ratio` is R, compressed/original `cost` of the layers searched; `top1` holds shares of correct decisions
    on the images outside the search, null where the images carry no labels, `risk` the mean cross-entropy on them;
    `searched` is what L was in the search; where `prune_searched`, `ratio` counts the weights that are not zero.
    `precisions` holds the compressed network in precisions other than float32, `files` those made from its ONNX files;
    `stages` are those of a recipe, each with its own search and fine-tuning; `seconds` is the whole run.
    """

    version: str
    created: str
    command: str
    seed: int
    seconds: float
    arch: str
    gamma: float
    form: Form
    searched: Fidelity = "norm"
    cost: Cost = "params"
    provider: str = "CPUExecutionProvider"
    ratio: float
    rank_multiple: int = 1
    prune_fraction: float
    prune_searched: bool = False
    params: Pair[int]
    params_compressible: Pair[int]
    nonzero_params: Pair[int]
    macs: Pair[int]
    onnx_bytes: Pair[int]
    gzip_bytes: Pair[int]
    latency: dict[str, LatencyRecord]
    fidelity: FidelityRecord
    parity: ParityRecord
    top1: Pair[float] | None = None
    risk: Pair[float] | None = None
    precisions: list[PrecisionRecord] = []
    files: list[FileRecord] = []
    search: SearchRecord | None = None
    target: TargetRecord | None = None
    recalibration: RecalibrationRecord | None = None
    tuning: TuneRecord | None = None
    stages: list[StageRecord] = []
    layers: list[LayerRecord]
    images: ImagesRecord
    machine: MachineRecord
    warnings: list[str]
