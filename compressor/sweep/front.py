"""Pareto fronts of a sweep's files: no other one is at least as small (or fast) and as good."""

from collections.abc import Callable, Iterable, Sequence

from compressor.sweep.records import SweepRow
from compressor.sweep.table import is_labelled

Measure = Callable[[SweepRow], float | None]


def mark_fronts(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """The rows with `on_size_front` and `on_time_front` filled in.

    Relative norms are distances from each model's own original, and say nothing of another model: without labels every
    model has fronts of its own.
    """
    labelled = is_labelled(rows)
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row.file:
            groups.setdefault("" if labelled else row.model, []).append(index)
    small = _front(rows, groups.values(), lambda row: row.file_bytes, labelled)
    fast = _front(rows, groups.values(), lambda row: row.latency_ms, labelled)
    return [
        row.model_copy(update={"on_size_front": index in small, "on_time_front": index in fast})
        for index, row in enumerate(rows)
    ]


def loss_of(row: SweepRow, labelled: bool) -> float | None:
    """What is lost, the less the better: wrong decisions, or the relative norm."""
    if labelled:
        return None if row.top1 is None else 1.0 - row.top1
    return row.relative_norm


def _front(rows: Sequence[SweepRow], groups: Iterable[Sequence[int]], cost: Measure, labelled: bool) -> set[int]:
    """Indices of the rows that no other of their group is better than in cost and loss."""
    found: set[int] = set()
    for group in groups:
        points = [(cost(rows[index]), loss_of(rows[index], labelled), index) for index in group]
        known = sorted((c, loss, index) for c, loss, index in points if c is not None and loss is not None)
        least = float("inf")
        for _, loss, index in known:
            if loss < least:
                found.add(index)
                least = loss
    return found
