"""Memory of the process: the most it held, what it gives back, and how much it may take."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import ceil
from pathlib import Path

from compressor.errors import InputError

KIBIBYTE = 1024
# What a process takes beside its work: the libraries (850 MB with torch), and copies of the weights: the original with
# norms and without, candidate, factors, and a file of each.
IDLE_BYTES, WEIGHT_COPIES = 850 * 10**6, 5
WORKING_BYTES = 600 * 10**6  # of work at its full size
UNTOUCHED_BYTES = 200 * 10**6  # that a process comes to reserve and does not use: stacks of threads, and the like
MIN_SHARE = 1 / 8  # of that size; with less, passes over the images would multiply
STATUS = Path("/proc/self/status")
M_MMAP_THRESHOLD, LARGE_BYTES = -3, 1 << 20  # of mallopt in glibc; blocks that large are mapped by themselves


class _Work:
    """What share of its full size a piece of work has: of the whole process, threads of workers among it."""

    share = 1.0


def own_peak_bytes() -> int | None:
    """The most memory that the process has held so far, in bytes; None where the system does not tell."""
    held = _status("VmHWM")
    if held is not None:  # what `getrusage` tells of a process includes what its parent held
        return held[0]
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return None
    peak = getrusage(RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * KIBIBYTE


def release_memory() -> None:
    """Give memory that was freed back to the system, where the C library can be told to: it keeps hundreds of MB."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def at_once(most: int) -> int:
    """How much is worked on at once, in the unit of `most`: that, or less of it within `limited_memory`."""
    return max(1, int(most * _Work.share))


@contextmanager
def limited_memory(max_bytes: float | None, weight_bytes: int, held_bytes: int) -> Iterator[None]:
    """Work in smaller pieces within the block, so that the process holds `max_bytes` at most; None limits nothing.

    On Linux the system refuses whatever would exceed the limit, which ends in a `ShortageError`; elsewhere the pieces
    are smaller, and nothing is refused. The size of the pieces depends on the arguments alone, so that equal runs give
    equal results.

    Args:
        max_bytes: of resident memory.
        weight_bytes: of the network's parameters.
        held_bytes: of what no smaller piece lessens: the images, and the work on the largest layer.

    Raises:
        InputError: nothing can be done in so little.
    """
    if max_bytes is None:
        yield
        return
    needed = IDLE_BYTES + WEIGHT_COPIES * weight_bytes + held_bytes
    share = (max_bytes - needed) / WORKING_BYTES
    if share < MIN_SHARE:
        least = ceil((needed + MIN_SHARE * WORKING_BYTES) / 1e7) / 100
        raise InputError(
            f"--max-memory {max_bytes / 1e9:.2f}GB is too little: this network with its images takes {least:.2f}GB "
            "at least"
        )
    _Work.share = min(1.0, share)
    try:
        with _refusing_beyond(int(max_bytes)):
            yield
    finally:
        _Work.share = 1.0


@contextmanager
def _refusing_beyond(max_bytes: int) -> Iterator[None]:
    """The system's own limit, on Linux: of data that may be written to, since it knows none of resident memory."""
    held = _status("VmRSS", "VmData")
    if held is None:
        yield
        return
    import resource

    _give_back_large_blocks()
    resident, data = held
    before = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = max(data, data + max_bytes - resident) + UNTOUCHED_BYTES
    if before[0] != resource.RLIM_INFINITY:
        allowed = min(allowed, before[0])
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _give_back_large_blocks() -> None:
    """Let large tensors leave the process where they are freed: kept for later, the limit would count them as data."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def _status(*names: str) -> list[int] | None:
    """What Linux counts of the process, in bytes; None on other systems."""
    try:
        rows = dict(line.split(":", 1) for line in STATUS.read_text(encoding="ascii").splitlines() if ":" in line)
        return [KIBIBYTE * int(rows[name].split()[0]) for name in names]
    except (OSError, KeyError, ValueError):
        return None
