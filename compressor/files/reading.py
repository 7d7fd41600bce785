"""Opens files of strangers: regular ones only, up to a size and a depth, and never waits for what may not come."""

import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any, BinaryIO

from compressor.errors import InputError

MAX_TEXT_BYTES = 200_000_000  # of journals, reports and the like, which are read as a whole
HEAD_BYTES = 64


def open_regular(path: Path, what: str = "") -> BinaryIO:
    """A regular file opened for reading; `what` ("plan") names its kind in errors.

    Raises:
        InputError: there is none, it is a folder, a pipe or a device, or it cannot be read.
    """
    name = f"the {what} {path}" if what else str(path)
    try:
        # Opening a pipe would wait for its writer, and opening a device may do something.
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(f"cannot read {name}: it is no regular file, but a pipe or a device")
        return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError for names with a zero byte
        raise InputError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error


def read_bytes(path: Path, what: str = "", max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """The content of a file of at most `max_bytes`; errors as of `open_regular`."""
    with open_regular(path, what) as file:
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > max_bytes:
        raise InputError(f"{path} has more than {max_bytes / 1e6:g} MB, which no {what or 'such file'} has")
    return content


def read_text(path: Path, what: str = "") -> str:
    """The text of a file in UTF-8; errors as of `read_bytes`."""
    try:
        return read_bytes(path, what).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a {what or 'text'}: not a text in UTF-8") from error


def read_json(path: Path, what: str) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: see `read_text`, or it holds no JSON, or JSON that is nested too deeply.
    """
    try:
        return json.loads(read_text(path, what))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a {what}: not valid JSON") from error


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """What a TOML file holds; errors as of `parse_toml` and `read_text`."""
    return parse_toml(read_text(path, what), str(path), what)


def parse_toml(text: str, source: str, what: str) -> dict[str, Any]:
    """What a TOML text holds; `source` and `what` name it in errors.

    Raises:
        InputError: it is no TOML, or nested too deeply.
    """
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOML's own, and Python's of numbers with thousands of digits
        raise InputError(f"{source} is not a {what}: no TOML ({error})") from error
    except RecursionError as error:
        raise InputError(f"{source} is not a {what}: TOML nested too deeply") from error


def read_head(path: Path) -> tuple[bytes, int]:
    """The first 64 bytes of a checkpoint file, and its size in bytes.

    Raises:
        InputError: it is no regular file, empty, or cannot be read.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a checkpoint file")
    with open_regular(path) as file:
        head, size_bytes = file.read(HEAD_BYTES), os.fstat(file.fileno()).st_size
    if not head:
        raise InputError(f"{path} is empty")
    return head, size_bytes
