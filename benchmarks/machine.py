"""What figures were measured on and with."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from compressor.records import MachineRecord

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
