"""Memory of the process."""

import ctypes
import sys
from contextlib import suppress

KIBIBYTE = 1024


def own_peak_bytes() -> int | None:
    """The most memory that the process has held so far, in bytes; None where the system does not tell."""
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
