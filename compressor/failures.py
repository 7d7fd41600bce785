"""Failures that are no fault of the code, as sentences: short memory, disks, depth."""

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from compressor.errors import BocompressError, InputError, ShortageError
from compressor.text import first_line

# What allocators of torch, numpy, ONNX Runtime and the C library say, and the loader and threads without memory.
SHORT = re.compile(
    r"DefaultCPUAllocator|not enough memory|out of memory|bad[_ ]alloc|bad_array_new_length|pthread_create failed|"
    r"(can't|cannot|failed to|unable to) (allocate|map segment)|can't start new thread|temporarily unavailable|"
    r"could not create a primitive",  # oneDNN, whose kernels need room for their code and their copies
    re.IGNORECASE,
)
NO_MEMORY = (errno.ENOMEM, errno.EAGAIN)
NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP)


def is_shortage(error: BaseException) -> bool:
    """Whether an error, or one that led to it, comes from too little memory."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, MemoryError | ShortageError):
            return True
        if isinstance(current, OSError) and current.errno in NO_MEMORY:
            return True
        if not isinstance(current, BocompressError) and SHORT.search(str(current)):
            return True
        current = current.__cause__ or current.__context__
    return False


def explain_shortage(error: BaseException) -> ShortageError | None:
    """The sentence for an error that comes from too little memory; None for all others."""
    if not is_shortage(error):
        return None
    ways = "close other programs, raise --max-memory if it was given, or lower --max-images, --input-size or --workers"
    return ShortageError(f"too little memory ({first_line(error)}): {ways}")


def explain(error: BaseException) -> BocompressError | None:
    """The sentence for an error that a person can do something about; None for all others."""
    if isinstance(error, BocompressError):
        return error
    if shortage := explain_shortage(error):
        return shortage
    if isinstance(error, RecursionError):
        return InputError("something given is nested too deeply to be read")
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename is not None else ""
        kind = InputError if error.errno in NO_NAME else BocompressError
        return kind(f"{name}{error.strerror or error}")
    return None


@contextmanager
def blaming(sentence: Callable[[str], BocompressError]) -> Iterator[None]:
    """Turn whatever the block raises into `sentence(reason)`; short memory is not blamed on what the block reads.

    Raises:
        ShortageError: there was too little memory.
        BocompressError: errors of ours as they are, all others as `sentence` says.
    """
    try:
        yield
    except BocompressError:
        raise
    except Exception as error:  # whatever a library raises on what a stranger wrote
        if shortage := explain_shortage(error):
            raise shortage from error
        reason = "nested too deeply" if isinstance(error, RecursionError) else first_line(error)
        raise sentence(reason) from error
