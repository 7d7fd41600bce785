"""`search.jsonl`: every look at a candidate, appended as it happens; the journal alone can resume a search.

The search is deterministic given its seed and its observations. To resume, it is run again from the start
with the recorded observations answered from the journal: the next new point is the same as if nothing had
happened, and a stop at any moment loses at most the look under way. The looks that end a run (`FINAL_RACING`) come last: a
run with more to spend goes on from the look before them, and writes in their place.
"""

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter

from compressor.arrays import Ranks
from compressor.errors import InputError
from compressor.fidelity.losses import Losses
from compressor.schema import Record

FINAL_RACING = "race"  # source of the looks that end a run


class Row(Record):
    """One look: the ranks tried, the images seen, the loss on each, and what follows from them; `function_norm` is the
    estimate of L, `squares` are the squared distances of the outputs where the losses are others."""

    evaluation: int
    source: str
    ranks: list[int]
    function_norm: float
    variance: float
    ratio: float
    objective: float
    images: list[int]
    losses: list[float]
    squares: list[float] | None = None
    flips: list[float] | None = None


class SensitivityRow(Record):
    """Losses of single layers by the linear model around the dense network, and what it took in passes of an image."""

    sensitivities: list[list[float]]
    images: list[int]
    passes: int


class StepRow(Record):
    """A step by the linear model around a plan: where it leads, what it took in passes of an image, and the function
    norms by the model of the plan and of those that differ from it in one layer, rank by rank."""

    step_from: list[int]
    step_to: list[int]
    norm: float
    norms_alone: list[dict[int, float]]
    images: list[int]
    passes: int


AnyRow = Row | StepRow | SensitivityRow
Stored = TypeVar("Stored", Row, StepRow, SensitivityRow)


ANY_ROW: TypeAdapter[AnyRow] = TypeAdapter(AnyRow)  # their fields log them apart


def stored_header(path: Path) -> dict[str, Any]:
    """The header of an earlier run's journal; empty where there is none that can be read."""
    try:
        with path.open(encoding="utf-8") as file:
            header = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


class Journal:
    """Appends looks to a file, and answers the first ones from an earlier run.

    Args:
        path: the file, or None to keep nothing.
        header: what the looks depend on (settings and fingerprints), JSON values only.
        resume: go on from the file at `path`, if there is one.

    Raises:
        InputError: the file to resume from cannot be read or belongs to another model, images or settings.
    """

    def __init__(self, path: Path | None, header: dict[str, Any], resume: bool = False) -> None:
        self._path = path
        self._header = header
        self._stored: list[AnyRow] = []
        self._ending: list[Row] = []
        self._ending_sizes: list[int] = []  # of their lines, in bytes
        self._count = 0
        if path is not None:
            if resume and path.exists():
                self._stored = self._read(path)
            else:
                self._write_line(header, mode="w")

    @property
    def num_recalled(self) -> int:
        """How many looks the earlier run left behind."""
        return len(self._stored)

    def recall(self, ranks: Ranks, indices: np.ndarray) -> Losses | None:
        """The next stored look, or None where the earlier run ended.

        Raises:
            InputError: the stored look is not the one the search asks for (another version or machine).
        """
        row = self._recall(Row, ranks=ranks.tolist(), images=indices.tolist())
        return None if row is None else _losses_of(row, indices)

    def recall_racing(self, ranks: Ranks, indices: np.ndarray) -> Losses | None:
        """The next stored look of those that ended the earlier run, or None where that ended otherwise."""
        if not self._ending or (self._ending[0].ranks, self._ending[0].images) != (ranks.tolist(), indices.tolist()):
            return None
        self._count += 1
        self._ending_sizes.pop(0)
        return _losses_of(self._ending.pop(0), indices)

    def recall_step(self, ranks: Ranks, indices: np.ndarray) -> StepRow | None:
        """The next stored step, or None where the earlier run ended; raises as `recall` does."""
        return self._recall(StepRow, step_from=ranks.tolist(), images=indices.tolist())

    def append_step(self, row: StepRow) -> StepRow:
        """Write one step and push it to the disk."""
        return self._append(row)

    def recall_sensitivities(self, indices: np.ndarray) -> SensitivityRow | None:
        """Stored losses of single layers, or None where the earlier run ended; raises as `recall` does."""
        return self._recall(SensitivityRow, images=indices.tolist())

    def append_sensitivities(self, norms: list[list[float]], indices: np.ndarray, passes: int) -> SensitivityRow:
        """Write losses of single layers and push them to the disk."""
        return self._append(SensitivityRow(sensitivities=norms, images=indices.tolist(), passes=passes))

    def _recall(self, kind: type[Stored], **asked: list[int]) -> Stored | None:
        if self._count >= len(self._stored):
            return None
        row = self._stored[self._count]
        if not isinstance(row, kind) or any(getattr(row, name) != value for name, value in asked.items()):
            raise self._departure()
        self._count += 1
        return row

    def _append(self, row: Stored) -> Stored:
        self._count += 1
        if self._path is not None:
            if self._ending:
                self._cut(self._path, self._path.stat().st_size - sum(self._ending_sizes))
                self._ending, self._ending_sizes = [], []
            self._write_line(row.model_dump(exclude_none=True), mode="a")
        return row

    def _departure(self) -> InputError:
        return InputError(
            f"{self._path} departs from this search at look {self._count}: it was written by another "
            "version or on another machine; choose another --out"
        )

    def append(self, source: str, ranks: Ranks, losses: Losses, ratio: float, objective: float) -> None:
        """Write one look and push it to the disk."""
        self._append(
            Row(
                evaluation=self._count,
                source=source,
                ranks=ranks.tolist(),
                function_norm=losses.mean,
                variance=losses.variance,
                ratio=ratio,
                objective=objective,
                images=losses.indices.tolist(),
                losses=losses.values.tolist(),
                squares=None if losses.squares is None else losses.squares.tolist(),
                flips=None if losses.flips is None else losses.flips.tolist(),
            )
        )

    def _read(self, path: Path) -> list[AnyRow]:
        try:
            whole, newline, cut_off = path.read_bytes().rpartition(b"\n")
            lines = [json.loads(line) for line in whole.splitlines()]
            rows: list[AnyRow] = [ANY_ROW.validate_python(line) for line in lines[1:]]
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not a search journal; choose another --out") from error
        if not (lines or newline) and json.dumps(self._header).encode().startswith(cut_off):
            self._write_line(self._header, mode="w")  # the earlier run was stopped in its first line
            return []
        if not (lines and isinstance(lines[0], dict)):
            raise InputError(f"{path} is not a search journal; choose another --out")
        header = lines[0]
        different = sorted(key for key in self._header if header.get(key) != self._header[key])
        if different:
            raise InputError(f"{path} was written with other {', '.join(different)}; --resume needs the same")
        if cut_off:
            self._cut(path, len(whole + newline))
        last = len(rows)
        while last and isinstance(row := rows[last - 1], Row) and row.source == FINAL_RACING:
            self._ending.insert(0, row)
            last -= 1
        self._ending_sizes = [len(line) for line in (whole + newline).splitlines(keepends=True)[1 + last :]]
        return rows[:last]

    def _cut(self, path: Path, size_bytes: int) -> None:
        """Drop the line that a stop cut off."""
        try:
            os.truncate(path, size_bytes)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error

    def _write_line(self, row: dict[str, Any], mode: str) -> None:
        assert self._path is not None
        try:
            with open(self._path, mode, encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}") from error


def _losses_of(row: Row, indices: np.ndarray) -> Losses:
    squares, flips = (None if values is None else np.array(values) for values in (row.squares, row.flips))
    return Losses(indices, np.array(row.losses), squares, flips)
