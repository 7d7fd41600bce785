"""Files appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressor.errors import InputError


@contextmanager
def replace_when_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it onto `path` when the block ends without an error.

    Whatever stood at `path` stays until then, and stays for good if the block fails.

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
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with replace_when_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
