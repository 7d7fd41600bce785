"""The schema of `sweep.json`; `sweep.csv` has its rows."""

from typing import Literal

from compressor.schema import Record

JobState = Literal["done", "no success", "failed", "waiting"]


class SweepRow(Record):
    """A file that a job delivered; of a job that delivered none, what became of it.

    `state` is "no success" where the network is destroyed or its target missed, as `reason` says; `asked` is the gamma
    or target, empty for the default, and `gamma` what the plan has. Sizes, operations and times are of this file and,
    with `original_`, of the original's; `relative_norm` is the function norm over the output energy, `top1` and
    `agreement` are shares of the test images. `on_size_front` and `on_time_front` say that no other file is at least
    as small (fast) and as good: of all models by top-1, where all have it, else of the same model by relative norm.
    `seconds` and `peak_memory_bytes` are the job's, `processor` is what it ran on.
    """

    job: str
    model: str
    asked: str
    seed: int
    state: JobState
    reason: str = ""
    precision: str = ""
    file: str = ""
    arch: str = ""
    gamma: float | None = None
    file_bytes: int | None = None
    gzip_bytes: int | None = None
    original_bytes: int | None = None
    params: int | None = None
    original_params: int | None = None
    macs: int | None = None
    original_macs: int | None = None
    latency_ms: float | None = None
    original_latency_ms: float | None = None
    relative_norm: float | None = None
    top1: float | None = None
    original_top1: float | None = None
    agreement: float | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    processor: str = ""
    on_size_front: bool = False
    on_time_front: bool = False


class SweepRecord(Record):
    """`sweep.json`: the rows of all jobs. `seconds` is what this run of the sweep took, up to `workers` jobs at once;
    `labelled` says whether all files have a top-1."""

    version: str
    created: str
    command: str
    backend: str
    workers: int | None
    seconds: float
    labelled: bool
    rows: list[SweepRow]
