"""Atomic writes: a file appears whole or not at all, and a run that is killed leaves what the next one removes."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from compressor.errors import InputError
from compressor.text import well_formed

# A file half written, or a folder of such files; the middle is the final name.
PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]+\.tmp")


def partial_path(path: Path) -> Path:
    """A name beside `path` that nobody else has: process numbers repeat, in containers at once."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def replace_when_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces `path` when the block ends without an error.

    An older file at `path` stays until then, and for good if the block fails.

    Raises:
        InputError: the file could not be written (disk full, folder not writable).
    """
    path = Path(path)
    partial = partial_path(path)
    try:
        yield partial
        _flush(partial)
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
    folder = partial_path(path)
    try:
        folder.mkdir()
        yield folder / path.name
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            _flush(file)
            os.replace(file, path.with_name(file.name))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flush(file: Path) -> None:
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, in UTF-8 as far as it can hold it (see `well_formed`)."""
    with replace_when_whole(path) as partial:
        partial.write_text(well_formed(text), encoding="utf-8")
