"""Atomic writes, first bytes, lines of journals, output folders and the cache folder."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs

from compressor.errors import InputError


@contextmanager
def replace_when_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces `path` when the block ends without an error.

    An older file at `path` stays until then, and for good if the block fails.

    Raises:
        InputError: the file could not be written (disk full, folder not writable).
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def replace_files_when_whole(path: Path) -> Iterator[Path]:
    """`replace_when_whole` for a file that refers to others beside it.

    Yields a path of the same name in a temporary folder. When the block ends without an error, all files in it are
    moved beside `path`, the file itself last.

    Raises:
        InputError: the files could not be written (disk full, folder not writable).
    """
    path = Path(path)
    folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir()
        yield folder / path.name
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
            os.replace(file, path.with_name(file.name))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    with replace_when_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_head(path: Path) -> tuple[bytes, int]:
    """The first 64 bytes of a checkpoint file, and its size in bytes.

    Raises:
        InputError: it is no file, empty, or cannot be read.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a checkpoint file")
    try:
        with open(path, "rb") as file:
            head = file.read(64)
        size_bytes = path.stat().st_size
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if not head:
        raise InputError(f"{path} is empty")
    return head, size_bytes


def check_folder(folder: Path, keep: Sequence[str] = ()) -> None:
    """Refuse a folder that contains anything but the files named in `keep`.

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
    others = [name for name in others if name not in keep and not (keep and _is_partial(name))]
    if others:
        raise InputError(
            f"the folder {folder} already holds other files ({', '.join(others[:3])}"
            f"{', ...' if len(others) > 3 else ''}): choose another --out or empty it"
        )


def _is_partial(name: str) -> bool:
    """Whether a killed run left this file of `replace_when_whole`."""
    return name.startswith(".") and name.endswith(".tmp")


def prepare_folder(folder: Path) -> None:
    """Create the folder where it is missing.

    Raises:
        InputError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the folder {folder}: {error.strerror}") from error


def user_cache_dir() -> Path:
    """The user's cache folder for this program, as the platform has it; on Linux XDG_CACHE_HOME decides.

    Raises:
        RuntimeError: there is no home directory.
    """
    folder = platformdirs.user_cache_path("bocompress", appauthor=False)
    if not folder.is_absolute():
        raise RuntimeError(f"no home directory: the cache folder would be {folder}")
    return folder


def write_json_line(path: Path, row: Mapping[str, Any], mode: str) -> None:
    """Write one line of a journal and flush it to the disk.

    Args:
        path: the journal.
        row: JSON values only.
        mode: "w" for the first line, "a" for those after it.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        with open(path, mode, encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def require_same_header(path: Path, stored: Mapping[str, Any], header: Mapping[str, Any], version_key: str) -> None:
    """Check that a journal's first line is what a run would write now.

    Args:
        path: the journal, for the sentence.
        stored: its first line.
        header: what a run would write now.
        version_key: under which both have the version of the journal.

    Raises:
        InputError: it is of another version, or of other settings or inputs.
    """
    if stored.get(version_key) != header.get(version_key):
        raise InputError(f"{path} was written by another version of bocompress; choose another --out")
    different = sorted(key for key in header if stored.get(key) != header[key])
    if different:
        raise InputError(f"{path} was written with other {', '.join(different)}; --resume needs the same")
