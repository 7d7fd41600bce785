"""The journal: every evaluation comes back, whatever stopped the run that wrote it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import InputError
from compressor.fidelity.losses import Losses
from compressor.files import append_line, line_of, read_lines
from compressor.search.evaluation.journal import Journal


def num_recalled(journal: Journal) -> int:
    """Number of rows of the earlier run, without its final racing."""
    return len(journal._stored)


HEADER: dict[str, Any] = {
    "weights": "abc",
    "gamma": 0.01,
    "layers": [["fc", "svd", 9]],
    "search settings": {"seed": 0},
}
Evaluation = tuple[np.ndarray, Losses]


def make_evaluations(count: int, seed: int = 0) -> list[Evaluation]:
    rng = np.random.default_rng(seed)
    return [(rng.integers(1, 9, 3), Losses(rng.permutation(20)[:5], rng.lognormal(size=5))) for _ in range(count)]


def append(journal: Journal, evaluation: Evaluation) -> None:
    ranks, losses = evaluation
    journal.append("initial", ranks, losses, 0.5, -0.25)


def write(path: Path, evaluations: list[Evaluation], header: dict[str, Any] | None = None) -> None:
    journal = Journal.open(path, header or HEADER)
    for evaluation in evaluations:
        append(journal, evaluation)


def assert_recalled(journal: Journal, evaluations: list[Evaluation]) -> None:
    for ranks, losses in evaluations:
        found = journal.recall(ranks, losses.indices)
        assert found is not None
        np.testing.assert_array_equal(found.values, losses.values)
        np.testing.assert_array_equal(found.indices, losses.indices)


NOTHING = np.array([1, 1, 1]), np.array([0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "search.jsonl"


def test_evaluations_come_back_to_the_last_bit_and_the_run_goes_on(path: Path) -> None:
    evaluations = make_evaluations(6)
    write(path, evaluations[:4])
    journal = Journal.open(path, HEADER, resume=True)
    assert num_recalled(journal) == 4
    assert_recalled(journal, evaluations[:4])
    assert journal.recall(*NOTHING) is None
    append(journal, evaluations[4])
    append(journal, evaluations[5])
    again = Journal.open(path, HEADER, resume=True)
    assert num_recalled(again) == 6
    assert_recalled(again, evaluations)


def test_a_row_holds_the_evaluation(path: Path) -> None:
    (evaluation,) = make_evaluations(1)
    write(path, [evaluation])
    header, row = read_lines(path, "journal").rows
    assert header == HEADER
    ranks, losses = evaluation
    assert row == {
        "evaluation": 0,
        "source": "initial",
        "ranks": ranks.tolist(),
        "function_norm": losses.mean,
        "variance": losses.variance,
        "ratio": 0.5,
        "objective": -0.25,
        "images": losses.indices.tolist(),
        "losses": losses.values.tolist(),
    }


def test_rows_are_numbered_on_across_a_resumption(path: Path) -> None:
    evaluations = make_evaluations(3)
    write(path, evaluations[:2])
    journal = Journal.open(path, HEADER, resume=True)
    assert_recalled(journal, evaluations[:2])
    append(journal, evaluations[2])
    assert [json.loads(line).get("evaluation") for line in path.read_text().splitlines()] == [None, 0, 1, 2]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_kill_at_any_byte_costs_at_most_the_evaluation_in_progress(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "search.jsonl"
    evaluations = make_evaluations(3)
    write(path, evaluations)
    whole = path.read_bytes()
    kept = whole[: data.draw(st.integers(whole.index(b"\n") + 1, len(whole)))]
    path.write_bytes(kept)
    num_whole = kept.count(b"\n") - 1
    journal = Journal.open(path, HEADER, resume=True)
    assert num_recalled(journal) == num_whole
    assert_recalled(journal, evaluations[:num_whole])
    assert journal.recall(*NOTHING) is None
    for evaluation in evaluations[num_whole:]:
        append(journal, evaluation)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"gamma": 0.02}, "gamma"),
        ({"layers": [["fc", "svd", 8]]}, "layers"),
        ({"gamma": 0.02, "weights": "abd"}, "gamma, weights"),
        ({"search settings": {"seed": 1}}, "search settings"),
        ({"new": 1}, "new"),
    ],
)
def test_a_journal_of_another_search_is_refused_with_what_differs(
    path: Path, change: dict[str, Any], named: str
) -> None:
    write(path, make_evaluations(2))
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"search\.jsonl was written with other {named}; --resume needs the same"):
        Journal.open(path, {**HEADER, **change}, resume=True)
    assert path.read_bytes() == before


def test_a_journal_of_another_version_is_refused_whatever_its_rows_hold(path: Path) -> None:
    content = json.dumps({**HEADER, "journal_version": 10}) + '\n{"look": 0, "source": "start"}\n'
    path.write_text(content)
    with pytest.raises(InputError, match="or of another version of bocompress; choose another --out"):
        Journal.open(path, {**HEADER, "journal_version": 11}, resume=True)
    assert path.read_text() == content


def test_a_journal_of_a_later_version_is_refused(path: Path) -> None:
    write(path, make_evaluations(2), {**HEADER, "journal_version": 10})
    with pytest.raises(InputError, match="was written by another version of bocompress; choose another --out"):
        Journal.open(path, {**HEADER, "journal_version": 11}, resume=True)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_altered_in_a_line_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "search.jsonl"
    write(path, make_evaluations(3))
    lines = path.read_bytes().splitlines(keepends=True)
    number = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.integers(0, len(lines[number]) - 2))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte not in (lines[number][place], 10)))
    lines[number] = lines[number][:place] + bytes([byte]) + lines[number][place + 1 :]
    path.write_bytes(b"".join(lines))
    with pytest.raises(InputError, match=f"altered in line {number + 1}|is not a search journal"):
        Journal.open(path, HEADER, resume=True)


@pytest.mark.parametrize("order", [[0, 2], [0, 2, 1], [0, 1, 1, 2], [1, 2]])
def test_a_line_left_out_moved_or_repeated_is_noticed(path: Path, order: list[int]) -> None:
    write(path, make_evaluations(2))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[number] for number in order))
    with pytest.raises(InputError, match="was altered in line"):
        Journal.open(path, HEADER, resume=True)


def test_an_evaluation_with_another_number_of_losses_is_refused(path: Path) -> None:
    write(path, make_evaluations(1))
    header, row = read_lines(path, "journal").rows
    append_line(path, header, first=True)
    append_line(path, {**row, "losses": row["losses"][1:]})
    with pytest.raises(InputError, match="is not a search journal"):
        Journal.open(path, HEADER, resume=True)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_stop_within_the_first_line_begins_anew(path: Path, share: float) -> None:
    first_line = line_of(HEADER)
    path.write_bytes(first_line[: round(share * len(first_line))])
    assert num_recalled(Journal.open(path, HEADER, resume=True)) == 0
    assert path.read_bytes() == first_line


def test_a_search_that_goes_another_way_is_refused(path: Path) -> None:
    evaluations = make_evaluations(2)
    write(path, evaluations)
    ranks, losses = evaluations[1]
    for other in [(ranks + 1, losses.indices), (ranks, losses.indices[::-1])]:
        journal = Journal.open(path, HEADER, resume=True)
        assert_recalled(journal, evaluations[:1])
        with pytest.raises(InputError, match="departs from this search at evaluation 1"):
            journal.recall(*other)


@pytest.mark.parametrize("content", [b"\n", b"ranks, losses\n1, 2\n", b"my notes", b'{"weights": "of another'])
def test_what_is_no_journal_is_refused_and_left(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a search journal"):
        Journal.open(path, HEADER, resume=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\xff\xfe\x00\n", id="not text"),
        pytest.param(b"[]\n", id="a header that is no object"),
        pytest.param(json.dumps(HEADER).encode() + b'\n{"evaluation": 0}\n', id="a row that is no evaluation"),
    ],
)
def test_what_resembles_a_journal_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError):
        Journal.open(path, HEADER, resume=True).recall(*NOTHING)


def test_a_journal_that_cannot_be_read(path: Path) -> None:
    path.mkdir()
    with pytest.raises(InputError):
        Journal.open(path, HEADER, resume=True)


def test_without_resume_the_file_begins_anew(path: Path) -> None:
    write(path, make_evaluations(3))
    journal = Journal.open(path, HEADER)
    assert num_recalled(journal) == 0
    assert journal.recall(*NOTHING) is None
    assert path.read_bytes() == line_of(HEADER)


def test_resuming_where_nothing_was_begins_anew(path: Path) -> None:
    assert num_recalled(Journal.open(path, HEADER, resume=True)) == 0
    assert path.read_bytes() == line_of(HEADER)


def test_no_path_keeps_nothing(tmp_path: Path) -> None:
    journal = Journal()
    append(journal, make_evaluations(1)[0])
    assert journal.recall(*NOTHING) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing/search.jsonl", "No such file"), (".", "Is a directory"), ("/dev/full", "No space left")],
)
def test_a_disk_that_refuses_is_an_input_error(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"cannot write .*: {reason}"):
        Journal.open(tmp_path / name, HEADER)


def test_a_disk_that_fills_up_later_is_an_input_error(path: Path) -> None:
    evaluations = make_evaluations(2)
    journal = Journal.open(path, HEADER)
    append(journal, evaluations[0])
    path.rename(path.with_name("kept"))
    path.symlink_to("/dev/full")
    with pytest.raises(InputError, match="No space left"):
        append(journal, evaluations[1])
    assert num_recalled(Journal.open(path.with_name("kept"), HEADER, resume=True)) == 1
