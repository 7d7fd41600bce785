"""`factors.jsonl`: the method and factors that suit each layer, appended as they are found: a stop loses one layer."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compressor.factorization.records import FactorKind, Method
from compressor.files import append_line, continue_lines, read_lines
from compressor.schema import Record

VERSION_KEY = "factors_version"
WHAT = "journal of factors"


class ChoiceRow(Record):
    """One layer's method and factors, with the function norms of all candidates that decided (see `Decomposed`)."""

    layer: str
    method: Method
    factors: FactorKind
    trials: dict[str, list[float]]


class ChoiceJournal:
    """Appends choices to a file, and knows those of an earlier run (see `open`); without a file keeps them in memory.

    Args:
        path: the file, which has its first line; None to keep nothing on the disk.
        rows: choices of the earlier run, in order.

    Attributes:
        rows: the choices so far, by layer.
    """

    def __init__(self, path: Path | None = None, rows: Iterable[ChoiceRow] = ()) -> None:
        self._path = path
        self.rows: dict[str, ChoiceRow] = {row.layer: row for row in rows}

    @classmethod
    def open(cls, path: Path, header: Mapping[str, Any], resume: bool = False) -> "ChoiceJournal":
        """The journal in a file: with the choices of an earlier run, or begun anew.

        Args:
            path: the file.
            header: what the choices depend on, JSON values only, with a version under VERSION_KEY.
            resume: continue the file at `path`, if there is one with a whole first line.

        Raises:
            InputError: the file cannot be written, or the one to resume from cannot be read or was written with
                another header.
        """
        rows = _read(path, header) if resume and path.exists() else None
        if rows is None:
            append_line(path, header, first=True)
        return cls(path, rows or ())

    def append(self, row: ChoiceRow) -> None:
        """Write one choice and flush it to the disk."""
        self.rows[row.layer] = row
        if self._path is not None:
            append_line(self._path, row.model_dump())


def _read(path: Path, header: Mapping[str, Any]) -> list[ChoiceRow] | None:
    """The file's rows, None where it has no header; a line that was cut off is removed."""
    found = read_lines(path, WHAT)
    if not found.rows:
        return None
    return continue_lines(path, WHAT, found, header, VERSION_KEY, ChoiceRow.model_validate)
