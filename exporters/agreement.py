"""Differences of outputs in numbers of any shape: errors, squared distances, and decisions that are the same."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.records import Agreement

Values = NDArray[Any]
DECIDED = (np.int32, np.int64)
MAP_AXES = 4  # (N, classes, height, width)


def decided_by(values: Values) -> Agreement:
    """What outputs (N, ...) decide, by their shape and type."""
    if not values.size:
        return "nothing"
    if values.dtype in DECIDED:  # as of ArgMax; bytes are quantized numbers
        return "integers"
    if values.ndim == 2:
        return "sign" if values.shape[1] == 1 else "top-1 class"
    return "class of a pixel" if values.ndim == MAP_AXES else "nothing"


def decisions(values: Values) -> NDArray[np.int64]:
    """The classes (N,) or (N, H, W) of scores (N, classes) or (N, classes, H, W); a single one decides by its sign."""
    return (values[:, 0] > 0).astype(np.int64) if values.shape[1] == 1 else values.argmax(axis=1)


@dataclass
class OutputDifference:
    """Differences of one output of two networks, added up batch by batch.

    Attributes:
        kind: what it decides.
        scale: largest magnitude of the expected values so far.
        errors: largest absolute difference of each image; infinite where a found value is not finite.
        squares: squared distance of each image, of maps the mean over positions.
        same, decided: decisions that are the same, and all.
    """

    kind: Agreement
    scale: float = 0.0
    errors: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    same: int = 0
    decided: int = 0

    def add(self, found: Values, expected: Values) -> None:
        """Add a batch (n, ...) of each, of one shape."""
        differences = np.abs(found.astype(np.float64) - expected).reshape(len(expected), -1)
        positions = max(1, prod(expected.shape[2:])) if expected.ndim >= MAP_AXES else 1
        self.scale = max(self.scale, float(np.abs(expected).max(initial=0)))
        self.errors += np.nan_to_num(differences.max(axis=1, initial=0), nan=np.inf).tolist()
        self.squares += np.nan_to_num(np.square(differences).sum(axis=1) / positions, nan=np.inf).tolist()
        if self.kind == "nothing":
            return
        equal = (
            (found == expected).reshape(len(expected), -1).all(axis=1)
            if self.kind == "integers"
            else decisions(found) == decisions(expected)
        )
        self.same += int(equal.sum())
        self.decided += equal.size

    @property
    def relative(self) -> float:
        """The largest error over the largest expected magnitude."""
        return max(self.errors, default=0.0) / (self.scale or 1.0)  # a network of zeros has no scale of its own

    @property
    def agreement(self) -> float | None:
        """The share of decisions that are the same; None where nothing is decided."""
        return self.same / self.decided if self.decided else None


def first_deciding(differences: Iterable[OutputDifference]) -> OutputDifference:
    """The first output by which something is decided, else the first."""
    every = list(differences)
    return next((each for each in every if each.kind != "nothing"), every[0])
