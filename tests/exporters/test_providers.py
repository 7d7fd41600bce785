"""Which providers count as there, and sessions that say what is wrong with a file."""

import re
from pathlib import Path

import numpy as np
import pytest

from compressor.errors import BocompressError, InputError
from exporters import providers as sessions
from exporters.providers import (
    CPU,
    CUDA,
    TENSORRT,
    available_providers,
    explain_absence,
    open_run,
    open_session,
    tile_batch,
)


def test_the_cpu_is_always_available() -> None:
    assert available_providers()[0] == CPU
    assert set(available_providers()) <= {CPU, CUDA, TENSORRT}


@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
def test_a_provider_that_falls_back_is_not_available(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class FallenBack:
        def __init__(self, *arguments: object) -> None: ...

        def get_providers(self) -> list[str]:
            return [CPU]

    class Real(FallenBack):
        def get_providers(self) -> list[str]:
            return [provider, CPU]

    monkeypatch.setattr(sessions.ort, "get_available_providers", lambda: [provider, CPU])
    monkeypatch.setattr(sessions.ort, "InferenceSession", FallenBack)
    assert available_providers() == [CPU]
    monkeypatch.setattr(sessions.ort, "InferenceSession", Real)
    assert available_providers() == [CPU, provider]


def test_images_are_repeated_or_cut_in_order() -> None:
    images = np.arange(6).reshape(3, 2)
    assert tile_batch(images, 5).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    assert tile_batch(images, 1).tolist() == [[0, 1]]
    with pytest.raises(InputError, match="at least one image"):
        tile_batch(images[:0], 2)


def test_an_opened_file_runs_and_tells_its_load_time(tmp_path: Path) -> None:
    path = tmp_path / "probe.onnx"
    path.write_bytes(sessions.probe_model())
    opened = open_run(path, np.ones(1, np.float32), CPU, threads=1)
    opened.run()
    assert 0 < opened.load_ms < 60_000
    with pytest.raises(BocompressError, match=r"does not run on inputs of shape \[2, 2\]"):
        open_run(path, np.ones((2, 2), np.float32), CPU, threads=1)


def test_a_model_in_memory_runs_like_a_file() -> None:
    open_run(sessions.probe_model(), np.ones(1, np.float32), CPU, threads=1).run()
    with pytest.raises(BocompressError, match=r"a model in memory does not run on inputs of shape \[2, 2\]"):
        open_run(sessions.probe_model(), np.ones((2, 2), np.float32), CPU, threads=1)
    with pytest.raises(BocompressError, match="cannot load a model in memory"):
        open_run(b"no network", np.ones(1, np.float32), CPU, threads=1)


def test_it_is_said_what_a_provider_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "available_providers", lambda: [CPU])
    monkeypatch.setattr(sessions.ort, "get_available_providers", lambda: [CPU])
    assert explain_absence(["cpu"]) is None
    absence = explain_absence(["cpu", "cuda"])
    assert absence is not None
    assert re.search("cannot run on cuda: that takes the package onnxruntime-gpu.*here there is cpu", absence)
    monkeypatch.setattr(sessions.ort, "get_available_providers", lambda: [CUDA, CPU])
    assert "cannot run on cuda: it was built for cuda, but the driver" in str(explain_absence(["cuda"]))


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(InputError, match="there is no file"):
        open_session(tmp_path / "none.onnx", CPU, 1)
    with pytest.raises(InputError, match="NoSuchProvider"):
        open_session(tmp_path / "broken.onnx", "NoSuchProvider", 1)
    with pytest.raises(BocompressError, match="cannot load"):
        open_session(tmp_path / "broken.onnx", CPU, 1)
