"""Output folders: one run at a time, writable before long work, nothing of the user's touched; the cache folder."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from compressor.errors import InputError
from compressor.files.writing import PARTIAL

try:
    import fcntl
except ImportError:  # Windows has no locks of folders
    fcntl = None  # type: ignore[assignment]

SECONDS_BETWEEN_TRIES = 0.2
HELD = (errno.EWOULDBLOCK, errno.EACCES)


def check_folder(folder: Path, keep: Sequence[str] = ()) -> None:
    """Refuse a folder that contains anything but the files named in `keep`, and what killed runs left of them.

    Raises:
        InputError: it is a file, contains other files, or cannot be read.
    """
    try:
        others = sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise InputError(f"{folder} is a file, not a folder to write into") from error
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from error
    others = [name for name in others if PARTIAL.sub(r"\1", name) not in keep]
    if others:
        raise InputError(
            f"the folder {folder} already holds other files ({', '.join(others[:3])}"
            f"{', ...' if len(others) > 3 else ''}): choose another --out or empty it"
        )


def prepare_folder(folder: Path) -> None:
    """Create the folder where it is missing.

    Raises:
        InputError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError for names with a zero byte
        raise InputError(f"cannot create the folder {folder}: {getattr(error, 'strerror', None) or error}") from error


def require_writable(folder: Path) -> None:
    """Check that files can be made in a folder, or where it would be created.

    Raises:
        InputError: the disk is full or read-only, or the folder is not ours to write into.
    """
    place = next((above for above in (folder, *folder.absolute().parents) if os.path.isdir(above)), folder)
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"0")
            probe.flush()
    except OSError as error:
        raise InputError(f"cannot write into {place}: {error.strerror}") from error


@contextmanager
def claim_folder(folder: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold a folder for this run alone, created where it is missing, and removed again if it stays empty.

    The lock is the system's, and ends with the process however it ends. Where the file system has none (some
    networks), nothing is held.

    Args:
        folder: to hold.
        wait_seconds: how long to wait for another run that holds it.

    Raises:
        InputError: another run holds it for longer, or it cannot be created or written into.
    """
    missing = [above for above in (folder, *folder.absolute().parents) if not os.path.exists(above)]
    prepare_folder(folder)
    lock = _lock(folder, time.monotonic() + wait_seconds)
    try:
        require_writable(folder)
        yield
    finally:
        with suppress(OSError):  # up to the first that is not empty
            for empty in missing:
                empty.rmdir()
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, deadline: float) -> int | None:
    """A file descriptor that holds the lock until it is closed; `deadline` is when to stop waiting for it."""
    if fcntl is None:
        return None
    lock = os.open(folder, os.O_RDONLY)
    try:
        _wait_for(lock, deadline)
    except OSError as error:
        os.close(lock)
        if error.errno not in HELD:
            return None
        raise InputError(f"another run writes into {folder} now: wait for its end, or choose another --out") from error
    if not folder.is_dir() or os.stat(folder).st_ino != os.fstat(lock).st_ino:  # removed by the run that held it
        os.close(lock)
        prepare_folder(folder)
        return _lock(folder, deadline)
    return lock


def _wait_for(lock: int, deadline: float) -> None:
    """Take the lock; raises OSError where it cannot be had by then."""
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD or time.monotonic() >= deadline:
                raise
        time.sleep(SECONDS_BETWEEN_TRIES)


def remove_leftovers(folder: Path, is_ours: Callable[[Path], bool]) -> None:
    """Remove what killed runs left half written below a folder that this run holds.

    Args:
        folder: it is walked through, links aside.
        is_ours: whether a path relative to it, whose names may be partial, is one that runs write.
    """
    for parent, folders, files in os.walk(folder):
        for name in [name for name in (*folders, *files) if PARTIAL.fullmatch(name)]:
            path = Path(parent) / name
            inner = [path / file for file in os.listdir(path)] if path.is_dir() and not path.is_symlink() else [path]
            if all(is_ours(one.relative_to(folder)) for one in inner):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def user_cache_dir() -> Path:
    """The user's cache folder for this program, as the platform has it; on Linux XDG_CACHE_HOME decides.

    Raises:
        RuntimeError: there is no home directory.
    """
    folder = platformdirs.user_cache_path("bocompress", appauthor=False)
    if not folder.is_absolute():
        raise RuntimeError(f"no home directory: the cache folder would be {folder}")
    return folder
