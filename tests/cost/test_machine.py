"""The machine's record, also where py-cpuinfo does not know the processor."""

import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from compressor.cost import machine
from compressor.cost.machine import describe_machine, version_of


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """The processor's name is kept for the life of the process."""
    machine._processor.cache_clear()
    yield
    machine._processor.cache_clear()


def test_the_record_names_processor_cores_and_versions() -> None:
    record = describe_machine()
    assert 1 <= record.cores <= (os.cpu_count() or 1)
    assert record.platform == platform.platform()
    assert {"python", *machine.PACKAGES} == record.versions.keys()
    assert record.versions["python"] == platform.python_version()
    facts = Path("/proc/cpuinfo")
    if facts.exists() and "model name" in facts.read_text():
        assert record.processor in facts.read_text()


def test_the_processor_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(machine, "get_cpu_info", lambda: calls.append(1) or {"brand_raw": "Abacus 3000"})
    assert {describe_machine().processor for _ in range(3)} == {"Abacus 3000"}
    assert calls == [1]


def fail() -> dict[str, str]:
    raise Exception("py-cpuinfo does not know this system")


@pytest.mark.parametrize("info", [fail, dict], ids=["an error", "no name"])
def test_the_system_names_a_processor_that_cpuinfo_does_not_know(
    info: Callable[[], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "get_cpu_info", info)
    assert describe_machine().processor == (platform.processor() or platform.machine())


def test_a_module_has_the_version_of_the_package_that_brings_it() -> None:
    """As onnxruntime does of onnxruntime-gpu."""
    assert version_of("PIL") == version_of("pillow") == version("pillow")
    assert version_of("no-such-package") == "not installed"
