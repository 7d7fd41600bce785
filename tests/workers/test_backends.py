"""Backends on this machine; those of real clusters are hard tests."""

import os
import time

import pytest

from compressor.errors import BocompressError, InputError
from compressor.workers.backend import sort_by_place
from compressor.workers.registry import CLUSTERS, make_backend


def slow_first(number: int) -> int:
    time.sleep(0.5 if number == 0 else 0.0)
    return number


@pytest.mark.parametrize("in_order", [True, False])
def test_results_come_in_order_or_as_they_are_ready(in_order: bool) -> None:
    with make_backend("threading", 2) as backend:
        found = list(backend.run(slow_first, [(number,) for number in range(4)], in_order))
    assert sorted(found) == [0, 1, 2, 3]
    assert (found == sorted(found)) == in_order


def test_early_results_wait_for_those_before_them() -> None:
    assert list(sort_by_place(iter([(2, "c"), (0, "a"), (1, "b")]))) == ["a", "b", "c"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_whose_package_is_missing_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, {"ray": "ray", "dask": "distributed"}[name], None)
    with pytest.raises(InputError, match=rf"--backend {name} cannot be used \(.*\).*pip install.*'{name}\["):
        make_backend(name, 2)


def test_an_address_needs_a_cluster() -> None:
    with pytest.raises(InputError, match="--cluster here needs --backend ray or dask: loky runs on this machine"):
        make_backend("loky", 2, "here")


def end(number: int) -> None:
    os._exit(number)


def test_a_worker_that_dies_is_one_sentence() -> None:
    with make_backend("loky", 2) as backend, pytest.raises(BocompressError, match="a worker ended unexpectedly"):
        list(backend.run(end, [(9,), (9,)]))
