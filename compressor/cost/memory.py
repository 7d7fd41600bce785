"""Peak memory of the process."""

import sys

KIBIBYTE = 1024


def peak_memory_bytes() -> int | None:
    """The most memory that the process has held so far, in bytes; None where the system does not tell."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return None
    peak = getrusage(RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * KIBIBYTE
