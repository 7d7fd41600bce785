"""Files appear whole or not at all, in folders that hold nothing else."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def replace_files_when_whole(path: Path) -> Iterator[Path]:
    """Like `replace_when_whole` for a file that names others beside it: give a path of the same name in a temporary
    folder; move all that the block wrote there beside `path`, and the file itself last.

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
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with replace_when_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_folder(folder: Path, keep: Sequence[str] = ()) -> None:
    """Refuse a folder that holds anything but the files named in `keep`.

    Raises:
        InputError: it is a file, holds other files, or cannot be read.
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
    """A file that a killed run left half written; see `replace_when_whole`."""
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
    """The user's cache directory for this program (XDG base directories)."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return base / "bocompress"
