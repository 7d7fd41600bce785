"""What figures were measured on and with."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from compressor.cost.records import MachineRecord

PACKAGES = (
    "bocompress",
    "torch",
    "torchvision",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "scikit-optimize",
    "scipy",
)


def describe_machine() -> MachineRecord:
    """This machine, its cores available to us, and the versions that matter."""
    return MachineRecord(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        processor=_processor(),
        platform=platform.platform(),
        versions={"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    )


def core_seconds() -> tuple[float, float] | None:
    """Seconds that all cores together have worked (for whomever, other virtual machines included) and seconds that they
    have had, since the machine started. None where the system does not say: Linux does."""
    statistics = Path("/proc/stat")
    if not statistics.exists():
        return None
    ticks = [int(word) for word in statistics.read_text().split("\n", 1)[0].split()[1:9]]  # guests are in user already
    per_second = os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle) / per_second, sum(ticks) / per_second


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
