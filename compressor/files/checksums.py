"""Files that a later run believes: JSON and lines of JSON with checksums, so that an altered one is noticed."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from compressor.errors import InputError
from compressor.files.reading import read_bytes, read_json
from compressor.files.writing import write_text

T = TypeVar("T")
KEY = "checksum"
DIGITS = 32
LINE_END = re.compile(rb', "checksum": "([0-9a-f]{32})"}\n')
LINE_END_BYTES = 50  # what LINE_END matches


def digest(text: bytes) -> str:
    """The checksum of some bytes."""
    return hashlib.sha256(text).hexdigest()[:DIGITS]


def checksum_of(content: object) -> str:
    """The checksum of JSON values, however they are laid out."""
    return _checksum_of_json(json.loads(json.dumps(content)))  # keys are texts there, and are sorted as such


def _checksum_of_json(values: object) -> str:
    return digest(json.dumps(values, sort_keys=True).encode())


# --- whole files ---


def write_sealed(path: Path, content: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write a JSON object with its checksum, atomically."""
    write_text(path, json.dumps({**content, KEY: checksum_of(content)}, indent=indent) + "\n")


def read_sealed(path: Path, what: str) -> dict[str, Any]:
    """What `write_sealed` wrote, without the checksum.

    Raises:
        InputError: it cannot be read, or was altered since.
    """
    content = read_json(path, what)
    if not isinstance(content, dict) or content.pop(KEY, None) != _checksum_of_json(content):
        raise InputError(f"{path} is not a {what} as it was written: it was altered, or is of another version")
    return content


def is_sealed(path: Path) -> bool:
    """Whether a file is as `write_sealed` wrote it."""
    try:
        read_sealed(path, "file of ours")
    except InputError:
        return False
    return True


# --- lines of journals, each of which vouches for those before it ---


@dataclass(frozen=True)
class Lines:
    """The whole lines of a journal, the header first.

    Attributes:
        rows: without their checksums.
        offsets: where each line begins, in bytes, and where the last one ends.
        rest: bytes behind the last whole line, of a run that stopped in it.
    """

    rows: list[dict[str, Any]]
    offsets: list[int]
    rest: bytes


def line_of(row: Mapping[str, Any], before: bytes = b"") -> bytes:
    """A row as a line with its checksum, chained to the checksum of the line before; none for the first."""
    text = json.dumps(row).encode()
    return text[:-1] + f', "{KEY}": "{digest(before + text)}"}}\n'.encode()


def append_line(path: Path, row: Mapping[str, Any], first: bool = False) -> None:
    """Write one line of a journal, the first in place of an older file, and flush it to the disk.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        with open(path, "wb+" if first else "rb+") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LINE_END_BYTES))
            before = LINE_END.fullmatch(file.read(LINE_END_BYTES))  # a device would never end
            file.seek(0, os.SEEK_END)
            file.write(line_of(row, before[1] if before else b""))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def read_lines(path: Path, what: str) -> Lines:
    """The lines that `append_line` wrote.

    Raises:
        InputError: it cannot be read, a line is no JSON object, or one was altered, left out or moved.
    """
    whole, newline, rest = read_bytes(path, what).rpartition(b"\n")
    rows: list[dict[str, Any]] = []
    offsets, before = [0], b""
    for line in (whole + newline).splitlines(keepends=True):
        end = LINE_END.fullmatch(line, max(0, len(line) - LINE_END_BYTES))
        text = line[:-LINE_END_BYTES] + b"}"
        if end is None and not rows:
            raise InputError(f"{path} is not a {what}, or of another version of bocompress; choose another --out")
        if end is None or end[1] != digest(before + text).encode():
            raise InputError(f"{path} was altered in line {len(rows) + 1}; choose another --out")
        rows.append(_row(text, path, what))
        offsets.append(offsets[-1] + len(line))
        before = end[1]
    return Lines(rows, offsets, rest)


def _row(text: bytes, path: Path, what: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise InputError(f"{path} is not a {what}; choose another --out")
    return row


def continue_lines(
    path: Path,
    what: str,
    found: Lines,
    header: Mapping[str, Any],
    version_key: str,
    validate: Callable[[dict[str, Any]], T],
) -> list[T]:
    """The rows of a journal that a run goes on with; a line that was cut off is removed.

    Args:
        path: the journal.
        what: it is, for errors.
        found: its lines, the header among them.
        header: what a run would write now.
        version_key: under which both have the version of the journal.
        validate: makes a row; raises ValueError where it cannot be one.

    Raises:
        InputError: it is of another version, of other settings or inputs, or holds a row that cannot be one.
    """
    _require_same_header(path, found.rows[0], header, version_key)
    try:
        rows = [validate(row) for row in found.rows[1:]]
    except ValueError as error:
        raise InputError(f"{path} is not a {what}; choose another --out") from error
    if found.rest:
        cut_lines(path, found.offsets[-1])
    return rows


def cut_lines(path: Path, size_bytes: int) -> None:
    """Leave out what is behind so many bytes, the end of a line.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        os.truncate(path, size_bytes)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _require_same_header(path: Path, stored: Mapping[str, Any], header: Mapping[str, Any], version_key: str) -> None:
    """Check that a journal's first line is what a run would write now.

    Raises:
        InputError: it is of another version, or of other settings or inputs.
    """
    if stored.get(version_key) != header.get(version_key):
        raise InputError(f"{path} was written by another version of bocompress; choose another --out")
    different = sorted(key for key in header if stored.get(key) != header[key])
    if different:
        raise InputError(f"{path} was written with other {', '.join(different)}; --resume needs the same")
