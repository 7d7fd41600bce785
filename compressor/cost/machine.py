"""The machine that figures are measured on, by psutil and py-cpuinfo."""

import platform
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version

import psutil
from cpuinfo import get_cpu_info

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
# Fields of psutil.cpu_times that add up to all time: guests are within user, Windows' interrupts within system.
CPU_TIMES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
IDLE_TIMES = ("idle", "iowait")


def describe_machine() -> MachineRecord:
    """This machine, the cores available to this process, and the versions of what figures depend on."""
    return MachineRecord(
        cores=_available_cores(),
        processor=_processor(),
        platform=platform.platform(),
        versions={"python": platform.python_version()} | {name: version_of(name) for name in PACKAGES},
    )


def core_seconds() -> tuple[float, float]:
    """Seconds that all cores together have worked, and seconds that have passed on them, since the machine started.

    Work counts for whichever process it was, and for other virtual machines (steal) where the system reports them.
    """
    times = psutil.cpu_times()
    seconds = {name: float(getattr(times, name, 0.0)) for name in CPU_TIMES}
    total = sum(seconds.values())
    return total - sum(seconds[name] for name in IDLE_TIMES), total


def _available_cores() -> int:
    process = psutil.Process()
    # macOS has no affinity
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1


@cache  # it takes about a second
def _processor() -> str:
    """The processor's name; the system's word for it where py-cpuinfo does not know it."""
    try:
        name = get_cpu_info().get("brand_raw")
    except Exception:  # the package's own, on systems that it does not know
        name = None
    return name or platform.processor() or platform.machine()


def version_of(package: str) -> str:
    """The version of a package, or of the one that brings the module of this name, as onnxruntime-gpu does."""
    with suppress(PackageNotFoundError):
        return version(package)
    brought_by = packages_distributions().get(package, [])  # reads what is said of all packages: half a second
    return version(brought_by[0]) if brought_by else "not installed"
