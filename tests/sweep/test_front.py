"""Fronts: of all models by top-1, of each model without labels."""

from compressor.sweep.front import mark_fronts
from tests.sweep.rows import make_row


def test_without_labels_every_model_has_a_front_of_its_own() -> None:
    rows = [
        make_row("a.pt", megabytes=1, ms=4, norm=0.1),
        make_row("a.pt", megabytes=2, ms=3, norm=0.2),  # larger and worse, but faster
        make_row("a.pt", megabytes=3, ms=5, norm=0.05),
        make_row("b.pt", megabytes=9, ms=9, norm=0.5),
    ]
    marked = mark_fronts(rows)
    assert [row.on_size_front for row in marked] == [True, False, True, True]
    assert [row.on_time_front for row in marked] == [True, True, True, True]


def test_with_labels_models_are_compared() -> None:
    rows = [make_row("a.pt", 1, 1, top1=0.9), make_row("b.pt", 2, 2, top1=0.8), make_row("b.pt", 3, 3, top1=0.95)]
    marked = mark_fronts(rows)
    assert [row.on_size_front for row in marked] == [True, False, True]
    assert [row.on_time_front for row in marked] == [True, False, True]


def test_equal_files_are_there_once_and_failed_jobs_never() -> None:
    failed = make_row(file="", file_bytes=None, latency_ms=None, relative_norm=None, state="failed")
    marked = mark_fronts([make_row(), make_row(), failed, make_row(latency_ms=None)])
    assert sum(row.on_size_front for row in marked) == 1
    assert not marked[2].on_size_front
    assert not marked[3].on_time_front
