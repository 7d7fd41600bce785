"""Counts of what was tried, which `make test-hard` writes where HARD_RESULTS says; docs make a table of them."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compressor.cost.machine import describe_machine
from compressor.files import write_text
from tests.hard.clusters import dask_cluster, ray_cluster

__all__ = ["dask_cluster", "ray_cluster"]


@pytest.fixture(scope="session")
def tally() -> Iterator[Callable[..., None]]:
    """Call it with a kind of input, and how many were tried, refused in a sentence, and right."""
    began, rows = time.perf_counter(), []

    def add(kind: str, tried: int, refused: int, right: int) -> None:
        rows.append({"kind": kind, "tried": tried, "refused": refused, "right": right})
        assert refused + right == tried

    yield add
    if path := os.environ.get("HARD_RESULTS"):
        seconds, machine = time.perf_counter() - began, describe_machine().model_dump()
        study = {"study": "hard", "seconds": seconds, "machine": machine, "rows": rows}
        write_text(Path(path), json.dumps(study, indent=1) + "\n")
