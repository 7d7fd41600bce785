"""Temporary folders, which a later run removes where a killed one left them."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = "bocompress-"
MIN_AGE_SECONDS = 60.0  # a younger one may be about to be locked


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder that is gone after the block; those of processes that were killed go first."""
    _sweep()
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        lock = _try_lock(Path(name))
        try:
            yield Path(name)
        finally:
            if lock is not None:
                os.close(lock)


def _sweep() -> None:
    """Remove folders of ours that nobody holds: a lock ends with its process."""
    if fcntl is None:
        return
    with suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            status = folder.lstat()
            is_old = time.time() - status.st_mtime > MIN_AGE_SECONDS
            if folder.is_symlink() or status.st_uid != os.getuid() or not is_old:
                continue
            lock = _try_lock(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _try_lock(folder: Path) -> int | None:
    """A file descriptor that holds the folder until it is closed; None where another process holds it."""
    if fcntl is None:
        return None
    with suppress(OSError):
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return None
        return lock
    return None
