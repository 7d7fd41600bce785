"""Records of costs: latency, ratios, and the machine they were measured on."""

from typing import Literal

from pydantic import Field

from compressor.schema import Record

Cost = Literal["params", "bytes", "macs", "latency"]
COST_WORDS: dict[Cost, str] = {
    "params": "parameters",
    "bytes": "bytes",
    "macs": "multiply-accumulates",
    "latency": "time",
}


class StageCost(Record):
    """What a stage of a run cost: its seconds, and the most memory that the process had held when it ended."""

    stage: str
    seconds: float
    peak_memory_bytes: int | None


class LatencyRecord(Record):
    """Latency of two ONNX files, run in turn; milliseconds for one batch.

    `original_ms` and `compressed_ms` are medians over `runs` pairs; `ratio` is the median of the paired ratios
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
    original_samples_ms: list[float] = Field(default_factory=list)
    compressed_samples_ms: list[float] = Field(default_factory=list)


class MachineRecord(Record):
    """The machine that figures were measured on: the cores available, and versions by package."""

    cores: int
    processor: str
    platform: str
    versions: dict[str, str]


class RatioRecord(Record):
    """Median of paired ratios with its 95 % bootstrap interval over sessions and the runs within them."""

    value: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)
