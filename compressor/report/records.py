"""The schema of `report.json`, as pydantic records that write and validate it. Units are part of the names."""

from pydantic import Field

from compressor.cost.records import Cost, LatencyRecord, MachineRecord, StageCost
from compressor.fidelity.records import (
    DetectionRecord,
    Fidelity,
    FidelityRecord,
    FlowRecord,
    Metrics,
    PairedChange,
    SegmentationRecord,
)
from compressor.network.records import LayerRecord
from compressor.recovery.records import ReconstructionRecord, TuneRecord
from compressor.schema import Pair, Record
from compressor.search.records import Form, SearchRecord, TargetRecord
from compressor.text import input_noun
from exporters.records import ExportCheckRecord, Precision, QuantizationRecord


class PrecisionRecord(Record):
    """The compressed network in another precision, evaluated in ONNX Runtime on the test images.

    `fidelity` is against the original network; `norm_to_float32`, `agreement_to_float32` and `latency_to_float32`
    against the compressed float32 file, whose times are that record's `original_ms`.
    """

    precision: Precision
    file: str
    onnx_bytes: int
    gzip_bytes: int
    fidelity: FidelityRecord
    norm_to_float32: float = Field(ge=0)
    agreement_to_float32: float | None = Field(default=None, ge=0, le=1)
    top1: float | None = None
    mean_iou: float | None = None
    average_precision: float | None = None
    latency: dict[str, LatencyRecord]
    latency_to_float32: dict[str, LatencyRecord]
    quantization: QuantizationRecord | None = None


class FileRecord(Record):
    """A file converted from another of the run: to ORT format, or zipped (then both sizes are the same).

    For ORT format `max_rel_error` is against torch for float32, else against `source`, and `operators` names the file
    that lists the operators for a minimal build.
    """

    file: str
    source: str
    size_bytes: int
    gzip_bytes: int
    max_rel_error: float | None = None
    operators: str | None = None


class StageRecord(Record):
    """One stage of a recipe and the network after it, with `metrics` on the test images.

    The first of a report is the original. `ratio` is weights that are not zero over the original's; `what` says in
    words what was done.
    """

    name: str
    kind: str
    what: str
    nonzero_params: int
    ratio: float
    metrics: Metrics
    seconds: float
    gamma: float | None = None
    search: SearchRecord | None = None
    reconstruction: ReconstructionRecord | None = None
    tuning: TuneRecord | None = None


class ImagesRecord(Record):
    """Where the images came from, and how many were for what; `label_note` says why there are no labels."""

    source: str
    calibration: int = 0
    search: int
    validation: int = 0
    test_images: int
    unreadable: int
    labelled: bool
    label_note: str = ""
    input_shape: list[int]

    @property
    def noun(self) -> str:
        """What one of them is called."""
        return input_noun(self.input_shape)


class VerdictRecord(Record):
    """Whether the network still computes what the original does, and meets its target.

    Where it does not, `reason` says what is wrong and `advice` what would do; `gamma` is the one named there, if any.
    """

    success: bool
    reason: str = ""
    advice: str = ""
    gamma: float | None = None


class GroupsRecord(Record):
    """Groups of layers that share hidden channels: how many there are, and how many were searched for fewer channels
    since these lose less than lower ranks of the same layers do, or since nothing else was asked for."""

    found: int
    searched: int


class Report(Record):
    """`report.json`: everything the page shows, and enough to run it again.

    `ratio` is R, compressed over original `cost` of the searched layers, or of their weights that are not zero
    where `prune_searched`. `searched` is what L was in the search. `top1` is the share of correct decisions on the
    test images, `top1_change` how it changed, and `risk` their mean cross-entropy, all null without labels.
    `segmentation` is null for networks that give no class to every pixel, `detection` for all but detectors, `flow` for
    all but optical flow.
    `precisions` holds the compressed network in precisions other than float32, `files` what was converted from its
    ONNX files. `stages` are those of a recipe, each with its own search and fine-tuning. `seconds` is the whole run's;
    `stage_costs` say where they went, up to the report itself, and `seconds_per_image` is what one image took the
    original, on average. `gamma` is null where a target was given and none leads to the plan. `verdict` says whether it
    is a success; null in reports of versions that gave none. `channel_groups` is null where nothing was searched, or
    nothing but ranks. `preset` is what --preset stands for in this run, as typed.
    """

    version: str
    created: str
    command: str
    preset: str = ""
    seed: int
    seconds: float
    arch: str
    gamma: float | None
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
    export_check: ExportCheckRecord
    top1: Pair[float] | None = None
    top1_change: PairedChange | None = None
    risk: Pair[float] | None = None
    segmentation: SegmentationRecord | None = None
    detection: DetectionRecord | None = None
    flow: FlowRecord | None = None
    precisions: list[PrecisionRecord] = Field(default_factory=list)
    files: list[FileRecord] = Field(default_factory=list)
    search: SearchRecord | None = None
    target: TargetRecord | None = None
    reconstruction: ReconstructionRecord | None = None
    tuning: TuneRecord | None = None
    stages: list[StageRecord] = Field(default_factory=list)
    layers: list[LayerRecord]
    images: ImagesRecord
    machine: MachineRecord
    warnings: list[str]
    verdict: VerdictRecord | None = None
    stage_costs: list[StageCost] = Field(default_factory=list)
    seconds_per_image: float | None = None
    channel_groups: GroupsRecord | None = None
