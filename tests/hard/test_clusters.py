"""Evaluations of one search by real clusters of Ray and Dask: what is found is what one process finds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from compressor import compress
from compressor.errors import BocompressError, InputError
from compressor.search.evaluation.parallel import Workers
from compressor.workers.registry import make_backend
from tests.hard.job import SETTINGS
from tests.hard.networks import make_images, make_network
from tests.search.evaluation.test_parallel import evaluations_of, search
from tests.unmeasured import without_measuring
from tests.workers.test_backends import end

pytestmark = pytest.mark.hard
WRITTEN = ("plan.json", "compressed.safetensors", "search.jsonl")
Tally = Callable[..., None]


@pytest.fixture(params=["ray", "dask"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cluster(backend: str, request: pytest.FixtureRequest) -> str:
    """The address of a cluster that runs already."""
    return str(request.getfixturevalue(f"{backend}_cluster"))


def refuse(number: int) -> int:
    if number == 2:
        raise InputError("no such image")
    return number


def test_a_search_by_a_cluster_is_the_search_of_one_process(backend: str, cluster: str, tally: Tally) -> None:
    alone = search(candidates=3)
    with Workers(2, backend, cluster=cluster) as workers:
        ranks, record = search(workers, candidates=3)
    assert ranks == alone[0]
    assert evaluations_of(record) == evaluations_of(alone[1])
    tally(f"searches by a cluster of {backend.capitalize()}", tried=1, refused=0, right=1)


def test_a_job_by_workers_of_a_cluster_is_the_job_of_one_process(backend: str, tmp_path: Path) -> None:
    """The cluster is started by the job itself, and ends with it."""
    settings = replace(SETTINGS, search=replace(SETTINGS.search, candidates=3))
    with without_measuring():
        compress(make_network(), make_images(40), tmp_path / "alone", settings)
        compress(make_network(), make_images(40), tmp_path / "many", replace(settings, workers=2, backend=backend))
    for name in WRITTEN:
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name


def test_what_a_task_raises_is_raised_as_it_is_and_a_dead_worker_is_one_sentence(backend: str, cluster: str) -> None:
    with make_backend(backend, 2, cluster) as entered:
        assert sorted(entered.run(refuse, [(0,), (1,)], in_order=False)) == [0, 1]
        with pytest.raises(InputError, match=r"^no such image$"):
            list(entered.run(refuse, [(1,), (2,)]))
        with pytest.raises(BocompressError, match="a worker ended unexpectedly") as raised:
            list(entered.run(end, [(9,)]))
    assert raised.value.exit_code == 1
