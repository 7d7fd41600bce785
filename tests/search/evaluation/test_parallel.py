"""Batches and workers: which worker evaluates a plan, and how many at once, changes nothing in the result."""

import json
import os
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from joblib import register_parallel_backend
from joblib.parallel import BACKENDS, ThreadingBackend

from compressor.arrays import Ranks
from compressor.errors import BocompressError, InputError
from compressor.fidelity.losses import Losses
from compressor.search.evaluation.journal import Journal
from compressor.search.evaluation.parallel import Workers
from compressor.search.objective import Objective
from compressor.search.optimizer import Search, SearchSettings
from compressor.search.problem import SearchProblem
from compressor.search.records import SearchRecord
from compressor.search.space import RankSpace

CAPS = np.array([40, 60, 24, 80])
STRENGTHS = np.array([1.0, 4.0, 0.5, 8.0])
NUM_IMAGES = 400


def evaluate(ranks: Ranks, images: np.ndarray) -> Losses:
    single = float((STRENGTHS * (1.0 / ranks - 1.0 / CAPS)).sum())
    rng = np.random.default_rng([*ranks.tolist(), int(images[0])])
    return Losses(images, single * (1.0 + 0.3 * single) * rng.gamma(4.0, 0.25, len(images)))


def search(
    workers: Workers | None = None, journal: Journal | None = None, **settings: object
) -> tuple[list[int], SearchRecord]:
    space = RankSpace(
        [str(break_even_rank) for break_even_rank in CAPS],
        [[100 * rank for rank in range(1, break_even_rank + 1)] for break_even_rank in CAPS],
    )
    chosen = SearchSettings(**{"max_evaluations": 30, "delta": 1e-6, **settings})  # type: ignore[arg-type]
    problem = SearchProblem(space, Objective(0.2), evaluate, NUM_IMAGES)
    ranks, record = Search(problem, chosen, journal or Journal(), workers=workers).run()
    return ranks.tolist(), record


def evaluations_of(record: SearchRecord) -> list[dict[str, object]]:
    return [row.model_dump() for row in record.history]


@pytest.fixture(scope="module")
def batched() -> tuple[list[int], SearchRecord]:
    """Three candidates at a time, one after the other."""
    return search(candidates=3)


@pytest.mark.parametrize(("count", "backend"), [(2, "loky"), (3, "threading")])
def test_neither_the_number_of_workers_nor_the_backend_changes_an_evaluation(
    batched: tuple[list[int], SearchRecord], count: int, backend: str
) -> None:
    with Workers(count, backend) as workers:
        ranks, record = search(workers, candidates=3)
    assert ranks == batched[0]
    assert evaluations_of(record) == evaluations_of(batched[1])


def test_one_candidate_at_a_time_is_a_batch_of_one() -> None:
    with Workers(2, "threading") as workers:
        assert evaluations_of(search(workers)[1]) == evaluations_of(search()[1])


@pytest.mark.parametrize("acquisition", ["pac", "ei"])
def test_a_batch_shows_no_plan_an_image_twice_and_keeps_to_the_budget(tmp_path: Path, acquisition: str) -> None:
    path = tmp_path / "search.jsonl"
    record = search(journal=Journal.open(path, {}), candidates=4, acquisition=acquisition)[1]
    assert record.evaluations == 30
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    later = [row for row in rows if row["source"] in ("candidate", "re-measure")]
    assert len({tuple(row["ranks"]) for row in later}) > 1
    for first in range(0, len(later), 4):
        seen = [(tuple(row["ranks"]), image) for row in later[first : first + 4] for image in row["images"]]
        assert len(set(seen)) == len(seen)


def test_a_batch_finds_as_good_a_plan() -> None:
    one, four = (search(candidates=count, delta=0.05, max_evaluations=80)[1] for count in (1, 4))
    assert four.stopped_because == "certificate met"
    assert four.objective == pytest.approx(one.objective, abs=one.certificate.delta)
    assert four.evaluations <= one.evaluations + 12


@pytest.mark.parametrize("lost", [1, 2, 3, 5])
def test_a_kill_within_a_batch_goes_on_as_if_nothing_had_happened(
    batched: tuple[list[int], SearchRecord], tmp_path: Path, lost: int
) -> None:
    path = tmp_path / "search.jsonl"
    search(journal=Journal.open(path, {}), candidates=3)
    whole = path.read_text()
    kept = whole.splitlines(keepends=True)[:-lost]
    path.write_text("".join(kept) + '{"evaluation": 9')
    with Workers(2, "threading") as workers:
        ranks, record = search(workers, Journal.open(path, {}, resume=True), candidates=3)
    assert ranks == batched[0]
    assert evaluations_of(record) == evaluations_of(batched[1])
    assert path.read_text() == whole


def test_a_larger_budget_continues_a_batch_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    search(journal=Journal.open(path, {}), candidates=3, max_evaluations=26)
    _, record = search(journal=Journal.open(path, {}, resume=True), candidates=3, max_evaluations=30)
    assert evaluations_of(record) == evaluations_of(search(candidates=3, max_evaluations=30)[1])


def test_rows_are_written_as_they_come_in_the_order_of_evaluations(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    with Workers(3, "threading") as workers:
        search(workers, Journal.open(path, {}), candidates=3)
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert [row["evaluation"] for row in rows] == list(range(len(rows)))


def where(ranks: Ranks, images: np.ndarray) -> Losses:
    return Losses(images, np.array([os.getpid(), threading.get_ident()], dtype=float))


EVALUATIONS = [(np.array([rank]), np.array([0, 1])) for rank in range(1, 9)]


def test_processes_get_what_a_closure_holds_and_prepare_once(tmp_path: Path) -> None:
    offset = 3.0

    def closure(ranks: Ranks, images: np.ndarray) -> Losses:
        return Losses(images, np.array([float(ranks[0]) + offset, float(os.getpid())]))

    def note() -> None:
        with (tmp_path / "prepared").open("a") as file:
            file.write(f"{os.getpid()}\n")

    with Workers(2, prepare=note) as workers:
        found = [losses.values for _ in range(2) for losses in workers.run(closure, EVALUATIONS)]
    assert [value for value, _ in found] == [rank + 3.0 for rank in range(1, 9)] * 2
    processes = {int(process) for _, process in found}
    assert os.getpid() not in processes
    assert processes == {int(line) for line in (tmp_path / "prepared").read_text().splitlines()}
    assert len((tmp_path / "prepared").read_text().splitlines()) == len(processes)


def test_one_worker_is_this_process_whatever_the_backend() -> None:
    with Workers(1, "nobody") as workers:
        assert {losses.values[0] for losses in workers.run(where, EVALUATIONS)} == {float(os.getpid())}


def test_an_error_of_a_worker_is_the_same_error() -> None:
    def fail(ranks: Ranks, images: np.ndarray) -> Losses:
        raise InputError("no such image")

    with Workers(2) as workers, pytest.raises(InputError, match="no such image"):
        list(workers.run(fail, EVALUATIONS))


def test_a_worker_that_dies_is_one_sentence() -> None:
    def die(ranks: Ranks, images: np.ndarray) -> Losses:
        os._exit(9)

    with Workers(2) as workers, pytest.raises(BocompressError, match="a worker ended unexpectedly") as raised:
        list(workers.run(die, EVALUATIONS))
    assert raised.value.exit_code == 1


def test_what_cannot_be_sent_is_said_before_any_evaluation() -> None:
    lock = threading.Lock()

    def locked(ranks: Ranks, images: np.ndarray) -> Losses:
        with lock:
            return Losses(images, np.zeros(2))

    with Workers(2) as workers, pytest.raises(InputError, match=r"cannot be sent to other processes .*--workers 1"):
        list(workers.run(locked, EVALUATIONS))
    with Workers(2, "threading") as workers:
        assert len(list(workers.run(locked, EVALUATIONS))) == len(EVALUATIONS)


@pytest.mark.parametrize("name", ["nobody", "spark"])
def test_an_unknown_backend_is_one_sentence(name: str) -> None:
    with pytest.raises(InputError, match=rf"--backend {name} cannot be used \(.*\): loky and threading come") as raised:
        Workers(2, name)
    assert "\n" not in str(raised.value)


@pytest.fixture
def spark(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that registers a backend as Spark's does."""
    module = types.ModuleType("joblibspark")
    module.register_spark = lambda: register_parallel_backend("spark", ThreadingBackend)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "joblibspark", module)
    yield
    BACKENDS.pop("spark", None)


@pytest.mark.usefixtures("spark")
def test_an_installed_backend_is_registered_and_gives_the_same(batched: tuple[list[int], SearchRecord]) -> None:
    with Workers(2, "spark") as workers:
        _, record = search(workers, candidates=3)
    assert evaluations_of(record) == evaluations_of(batched[1])
