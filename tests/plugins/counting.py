"""A plugin of `make test-hard`: what its tests tried, and the processor time that they took, in all of its processes.

    python -m pytest -p tests.plugins.counting --hard-results benchmarks/results/hard.json -m "hard or slow" -n 2

Tests hand on their counts by the fixture `tally`. Those of several processes come together in the one that started
them, which writes the file when all tests passed; docs make a table of it.
"""

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from compressor.cost.machine import describe_machine
from compressor.files import write_text

COUNTS = "counts"  # the property of a test with a kind of input and what was tried of it
PROCESSOR_SECONDS = "processor seconds"
STARTED = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--hard-results", type=Path, help="where to write what was tried")


class Counting:
    """The sums over all tests of a session.

    Attributes:
        rows: what was tried, refused and right, by kind.
        processor_seconds: of tests, with the processes that they started and waited for.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.began, self.processor_seconds = path, time.monotonic(), 0.0
        self.rows: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "teardown":  # which has the properties of all three
            return
        for name, value in report.user_properties:
            if name == PROCESSOR_SECONDS:
                self.processor_seconds += value
            elif name == COUNTS:
                kind, counts = value
                self.rows.setdefault(kind, Counter()).update(counts)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus:
            return
        rows = [{"kind": kind, **self.rows[kind]} for kind in sorted(self.rows)]
        study = {
            "study": "hard",
            "seconds": time.monotonic() - self.began,
            "processor_seconds": self.processor_seconds,
            "machine": describe_machine().model_dump(),
            "rows": rows,
        }
        write_text(self.path, json.dumps(study, indent=1) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.hard_results and not hasattr(config, "workerinput"):  # not in the processes that only run tests
        config.pluginmanager.register(Counting(config.option.hard_results))


def processor_seconds() -> float:
    """Of this process, and of those that it started and waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[STARTED] = processor_seconds()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.when == "teardown":
        item.user_properties.append((PROCESSOR_SECONDS, processor_seconds() - item.stash[STARTED]))
