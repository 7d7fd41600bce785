"""`search.jsonl`: every evaluation, appended as it is made. The journal alone can resume a search.

The search is deterministic given its seed and its observations. To resume, it runs again from the start, and the
journal answers the recorded evaluations: the next one is the same as if nothing had happened, and a stop at any moment
loses at most the evaluation in progress. A search ends with its racing, and may go on when a network was built: a run
with a larger budget continues from the evaluation before a racing, and overwrites what follows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import TypeAdapter, model_validator

from compressor.arrays import Ranks
from compressor.errors import InputError
from compressor.fidelity.losses import Losses
from compressor.files import append_line, continue_lines, cut_lines, line_of, read_lines
from compressor.schema import Record
from compressor.search.evaluation.history import RACING

VERSION_KEY = "journal_version"
WHAT = "search journal"


class Row(Record):
    """One evaluation: the plan, the images, the loss on each, and what follows from them.

    Attributes:
        evaluation: its number in the journal, from 0.
        source: what asked for it (see `history`).
        ranks: the plan (d,).
        function_norm: the estimate of L, whatever loss is searched with.
        variance: of that estimate.
        ratio: R.
        objective: J with the estimate of L.
        images: indices (m,) into the pool.
        losses: on each of them (m,).
        squares: squared distances of the outputs (m,), where losses are something else.
        flips: 1 where only the original predicts the label, -1 where only the candidate does, else 0 (m,).
    """

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

    @model_validator(mode="after")
    def _has_a_loss_per_image(self) -> Self:
        known = [values for values in (self.losses, self.squares, self.flips) if values is not None]
        if any(len(values) != len(self.images) for values in known):
            raise ValueError("an evaluation has a loss for every image")
        return self


class SensitivityRow(Record):
    """Function norms of single compressed layers, by the linear model around the dense network.

    Attributes:
        sensitivities: per layer, at the ranks of `sensitivity_ranks`.
        images: indices (m,) into the pool.
        passes: what it took, in passes of an image.
    """

    sensitivities: list[list[float]]
    images: list[int]
    passes: int


class StepRow(Record):
    """A Gauss-Newton step.

    Attributes:
        step_from: the plan (d,) that the linear model is around.
        step_to: the plan (d,) that is best by the model.
        norm: function norm of the first plan, on the model's images.
        single_layer_norms: per layer and rank, by the model: function norm of the plan with that rank of that layer.
        images: indices (m,) into the pool.
        passes: what it took, in passes of an image.
    """

    step_from: list[int]
    step_to: list[int]
    norm: float
    single_layer_norms: list[dict[int, float]]
    images: list[int]
    passes: int


AnyRow = Row | StepRow | SensitivityRow
Stored = TypeVar("Stored", Row, StepRow, SensitivityRow)


ANY_ROW: TypeAdapter[AnyRow] = TypeAdapter(AnyRow)  # told apart by their fields


def stored_header(path: Path) -> dict[str, Any]:
    """The header of an earlier run's journal; empty where there is none, or where the journal was altered."""
    try:
        found = read_lines(path, WHAT)
    except InputError:
        return {}
    return found.rows[0] if found.rows else {}


class Journal:
    """Appends evaluations to a file, and answers those of an earlier run (see `open`); without a file keeps nothing.

    Args:
        path: the file, which has its first line; None to keep nothing.
        stored: rows of the earlier run, in order.
        offsets_bytes: where their lines begin in the file.
    """

    def __init__(
        self, path: Path | None = None, stored: Sequence[AnyRow] = (), offsets_bytes: Sequence[int] = ()
    ) -> None:
        self._path = path
        self._stored = list(stored)
        self._offsets_bytes = list(offsets_bytes)
        self._count = 0

    @classmethod
    def open(cls, path: Path, header: dict[str, Any], resume: bool = False) -> "Journal":
        """The journal in a file: with the rows of an earlier run, or begun anew.

        Args:
            path: the file.
            header: what the evaluations depend on (settings and fingerprints), JSON values only.
            resume: continue the file at `path`, if there is one.

        Raises:
            InputError: the file cannot be written, or the one to resume from cannot be read or was written with
                another version, model, images or settings.
        """
        if resume and path.exists():
            return cls(path, *_read(path, header))
        append_line(path, header, first=True)
        return cls(path)

    def recall(self, ranks: Ranks, indices: np.ndarray) -> Losses | None:
        """Losses of the next stored evaluation, or None where the earlier run ended.

        Args:
            ranks: the plan (d,) that the search evaluates.
            indices: of its images (m,).

        Raises:
            InputError: another evaluation is stored (by another version or machine).
        """
        row = self._recall(Row, ranks=ranks.tolist(), images=indices.tolist())
        return None if row is None else _losses_of(row, indices)

    def recall_racing(self, ranks: Ranks, indices: np.ndarray) -> Losses | None:
        """Losses of the next evaluation of the earlier run's racing, or None where that was another.

        Args:
            ranks: the plan (d,) that the search evaluates.
            indices: of its images (m,).
        """
        row = self._next_racing()
        if row is None or (row.ranks, row.images) != (ranks.tolist(), indices.tolist()):
            self._forget_rest()
            return None
        self._count += 1
        return _losses_of(row, indices)

    def recall_step(self, ranks: Ranks, indices: np.ndarray) -> StepRow | None:
        """The next stored step, or None where the earlier run ended; raises as `recall` does.

        Args:
            ranks: the plan (d,) that the model is around.
            indices: of the model's images (m,).
        """
        return self._recall(StepRow, step_from=ranks.tolist(), images=indices.tolist())

    def append_step(self, row: StepRow) -> StepRow:
        """Write one step and flush it to the disk."""
        return self._append(row)

    def recall_sensitivities(self, indices: np.ndarray) -> SensitivityRow | None:
        """Stored function norms of single layers, or None where the earlier run ended; raises as `recall` does."""
        return self._recall(SensitivityRow, images=indices.tolist())

    def append_sensitivities(self, norms: list[list[float]], indices: np.ndarray, passes: int) -> SensitivityRow:
        """Write function norms of single layers and flush them to the disk.

        Args:
            norms: per layer, at the ranks of `sensitivity_ranks`.
            indices: of the images (m,).
            passes: what it took, in passes of an image.
        """
        return self._append(SensitivityRow(sensitivities=norms, images=indices.tolist(), passes=passes))

    def _recall(self, kind: type[Stored], **asked: list[int]) -> Stored | None:
        if self._next_racing() is not None:  # of a run with a smaller budget
            self._forget_rest()
        row = self._next()
        if row is None:
            return None
        if not isinstance(row, kind) or any(getattr(row, name) != value for name, value in asked.items()):
            raise self._other_evaluation()
        self._count += 1
        return row

    def _next(self) -> AnyRow | None:
        return self._stored[self._count] if self._count < len(self._stored) else None

    def _next_racing(self) -> Row | None:
        row = self._next()
        return row if isinstance(row, Row) and row.source == RACING else None

    def _forget_rest(self) -> None:
        """Leave out what the earlier run found after a racing that this run does not come to, or decides otherwise."""
        if self._path is not None and self._count < len(self._stored):
            cut_lines(self._path, self._offsets_bytes[self._count])
            self._stored = self._stored[: self._count]

    def _append(self, row: Stored) -> Stored:
        self._count += 1
        if self._path is not None:
            append_line(self._path, row.model_dump(exclude_none=True))
        return row

    def _other_evaluation(self) -> InputError:
        return InputError(
            f"{self._path} departs from this search at evaluation {self._count}: it was written by another "
            "version or on another machine; choose another --out"
        )

    def append(self, source: str, ranks: Ranks, losses: Losses, ratio: float, objective: float) -> None:
        """Write one evaluation and flush it to the disk.

        Args:
            source: what asked for it (see `history`).
            ranks: the plan (d,).
            losses: on its images, before reconstruction.
            ratio: R of the plan.
            objective: J with the mean of the losses as reconstruction is expected to leave them.
        """
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


def _read(path: Path, header: dict[str, Any]) -> tuple[list[AnyRow], list[int]]:
    """Rows of a journal, and where their lines begin, in bytes; a line that was cut off is removed."""
    found = read_lines(path, WHAT)
    if not found.rows:
        if not line_of(header).startswith(found.rest):
            raise InputError(f"{path} is not a {WHAT}; choose another --out")
        append_line(path, header, first=True)  # the earlier run stopped in its first line
        return [], []
    rows = continue_lines(path, WHAT, found, header, VERSION_KEY, ANY_ROW.validate_python)
    return rows, found.offsets[1:-1]


def _losses_of(row: Row, indices: np.ndarray) -> Losses:
    squares, flips = (None if values is None else np.array(values) for values in (row.squares, row.flips))
    return Losses(indices, np.array(row.losses), squares, flips)
