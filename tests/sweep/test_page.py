"""The page and the table of made-up sweeps."""

import csv
import io

import pytest

from compressor.sweep.front import mark_fronts
from compressor.sweep.page import MAX_SHOWN, describe_sweep, render_page
from compressor.sweep.printing import print_table
from compressor.sweep.table import as_csv
from tests.sweep.rows import make_record, make_row

HOSTILE = "<script>alert(1)</script>&.pt"


def test_a_page_shows_both_fronts_failures_and_nothing_of_names_as_markup() -> None:
    failed = make_row("c.pt", file="", state="failed", reason="c.pt is <b>no</b> checkpoint")
    missed = make_row("d.pt", state="no success", reason="Not a success: the network is destroyed.")
    rows = mark_fronts([make_row(HOSTILE), make_row("b.pt", 2, norm=0.0), failed, missed])
    page = render_page(make_record(*rows))
    assert page.count("<svg") == 2
    assert "<script" not in page
    assert "<b>no</b>" not in page
    assert "1 job failed" in page
    assert "c.pt is &lt;b&gt;no&lt;/b&gt; checkpoint" in page
    assert "no success" in page
    assert describe_sweep(make_record(*rows)) == "3 of 4 jobs are done: 4 models"
    assert page == render_page(make_record(*rows))


@pytest.mark.parametrize("labelled", [True, False])
def test_a_large_sweep_shows_fronts_first(labelled: bool, capsys: pytest.CaptureFixture[str]) -> None:
    top1 = {"top1": 0.9, "original_top1": 0.91} if labelled else {}
    rows = mark_fronts(
        [make_row(f"m{model}.pt", 1 + size, 9 - size, 0.1 / size, **top1) for model in range(15) for size in (1, 2, 3)]
    )
    record = make_record(*rows, labelled=labelled)
    assert len(rows) > MAX_SHOWN
    page = render_page(record)
    assert "All 45 files" in page
    print_table(record, MAX_SHOWN)
    assert "of 45 files, on a front" in capsys.readouterr().out


def test_pages_of_nothing_and_of_what_waits() -> None:
    waiting = make_row(file="", state="waiting", file_bytes=None)
    page = render_page(make_record(waiting))
    assert "1 job not done yet" in page
    assert "<svg" not in page
    assert "No jobs" in render_page(make_record())


def test_csv_holds_every_field_and_no_formula() -> None:
    (row,) = csv.DictReader(io.StringIO(as_csv([make_row("=cmd()", top1=None)])))
    assert row["model"] == "'=cmd()"
    assert (row["file_bytes"], row["top1"], row["on_size_front"]) == ("1000000", "", "False")
