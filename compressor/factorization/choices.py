"""`factors.jsonl`: the method and factors that suit each layer, appended as they are found: a stop loses one layer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.errors import InputError
from compressor.factorization.records import FactorKind, Method
from compressor.files import append_line, cut_lines, read_lines, require_same_header
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
    """Appends choices to a file, and knows those of an earlier run.

    Args:
        path: the file, or None to keep nothing.
        header: what the choices depend on, JSON values only, with a version under VERSION_KEY.
        resume: continue the file at `path`, if there is one.

    Attributes:
        rows: the choices so far, by layer.

    Raises:
        InputError: the file to resume from cannot be read, or was written with another header.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any], resume: bool = False) -> None:
        self._path = path
        self.rows: dict[str, ChoiceRow] = {}
        if path is None:
            return
        if not (resume and path.exists() and self._read(path, header)):
            append_line(path, header, first=True)

    def append(self, row: ChoiceRow) -> None:
        """Write one choice and flush it to the disk."""
        self.rows[row.layer] = row
        if self._path is not None:
            append_line(self._path, row.model_dump())

    def _read(self, path: Path, header: Mapping[str, Any]) -> bool:
        """Whether the file has a header, after its rows are read; a line that was cut off is removed."""
        found = read_lines(path, WHAT)
        if not found.rows:
            return False
        require_same_header(path, found.rows[0], header, VERSION_KEY)
        try:
            rows = [ChoiceRow.model_validate(row) for row in found.rows[1:]]
        except ValueError as error:
            raise InputError(f"{path} is not a {WHAT}; choose another --out") from error
        if found.rest:
            cut_lines(path, found.offsets[-1])
        self.rows = {row.layer: row for row in rows}
        return True
