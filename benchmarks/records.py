"""The schema of `benchmark.json`, as pydantic records that write and validate it."""

from pydantic import Field

from compressor.cost.records import MachineRecord, RatioRecord
from compressor.schema import Record


class BenchmarkedFile(Record):
    """A benchmarked ONNX file. Its bytes include the data that it keeps in a file next to it."""

    name: str
    path: str
    onnx_bytes: int
    gzip_bytes: int


class TimingRecord(Record):
    """One file in one setting: milliseconds for one batch.

    `wall_ms` is the median wall time, where the others may be processor time (see `SettingRecord`). `load_ms` is the
    median of creating a session. `peak_memory_bytes` is what a fresh process that loads and runs only this file takes
    above one that does not; null where the system does not report it. `ratio` is to the reference, null for itself.
    """

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
    """A node of the graph that ran, or all `nodes` nodes of one type: milliseconds of one run and their share."""

    name: str
    op_type: str
    nodes: int = 1
    output_shape: list[int] | None = None
    median_ms: float
    share: float


class ProfileRecord(Record):
    """Time of one file by operator, from ONNX Runtime's profiler.

    `run_ms` is the median of a whole run. `operators` holds all types and `nodes` the most expensive nodes, the slowest
    first; shares are of the sum over all nodes.
    """

    file: str
    runs: int
    run_ms: float
    operators: list[OperatorRecord]
    nodes: list[OperatorRecord]


class SettingRecord(Record):
    """All files in one runtime on one provider with one number of threads and one batch size.

    `noise` is the ratio of the reference to itself, opened twice. With `on_core`, times are processor times (as with
    one thread on the CPU), else wall times. `others` is the share of all cores' time that other processes took, null
    where the system does not report it.
    """

    runtime: str = "onnxruntime"
    provider: str
    threads: int
    batch_size: int
    rounds: int
    sessions: int
    noise: RatioRecord
    on_core: bool
    others: float | None
    timings: list[TimingRecord]
    profiles: list[ProfileRecord] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)


class BenchmarkRecord(Record):
    """`benchmark.json`: what `bocompress benchmark` measured.

    The first file is the reference; `skipped` names the providers that are not available.
    """

    created: str
    command: str
    seed: int
    seconds: float
    input_shape: list[int]
    files: list[BenchmarkedFile] = Field(min_length=1)
    settings: list[SettingRecord]
    skipped: list[str]
    machine: MachineRecord
