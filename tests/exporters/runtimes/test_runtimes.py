"""The table of runtimes: one is added here, and files are timed in it as in ONNX Runtime."""

import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from compressor.cost.latency import LatencySettings, measure_latency
from compressor.errors import BocompressError, InputError
from exporters.providers import available_providers, tiny_model
from exporters.runtimes.base import OpenedModel, Runtime, tile_batch
from exporters.runtimes.registry import ONNX_RUNTIME, RUNTIMES, open_runtime
from exporters.session import CPU


class ReferenceRuntime:
    """ONNX's own evaluator in numpy; it counts what it loads and runs."""

    name, label = "reference", "ONNX's reference"

    def __init__(self) -> None:
        self.loads = self.runs = 0

    def providers(self) -> list[str]:
        return [CPU]

    def open(self, model: Path | bytes, batch: NDArray[Any], provider: str, threads: int) -> OpenedModel:
        assert (provider, threads) == (CPU, 1)
        began = time.perf_counter()
        evaluator = ReferenceEvaluator(onnx.load(model) if isinstance(model, Path) else onnx.load_from_string(model))
        self.loads += 1

        def run() -> None:
            self.runs += 1
            evaluator.run(None, {evaluator.input_names[0]: batch})

        run()
        return OpenedModel(run, 1e3 * (time.perf_counter() - began))


def chain_of(count: int, path: Path) -> Path:
    """A file of `count` activations one after the other."""
    names = ["x", *(f"v{number}" for number in range(1, count)), "y"]
    nodes = [onnx.helper.make_node("Relu", [first], [then]) for first, then in pairwise(names)]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 8]) for name in "xy")
    graph = onnx.helper.make_graph(nodes, "chain", [x], [y])
    opsets = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def test_a_runtime_that_is_added_times_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime: Runtime = (reference := ReferenceRuntime())
    monkeypatch.setitem(RUNTIMES, runtime.name, runtime)
    long, short = chain_of(60, tmp_path / "long.onnx"), chain_of(3, tmp_path / "short.onnx")
    settings = LatencySettings(runtime="reference", batch_size=2, min_runs=20)
    record = measure_latency(long, short, np.ones((1, 8), np.float32), settings)
    assert record.runs >= 20
    assert record.ratio_high < 0.5  # its time goes with the number of operators
    assert reference.loads >= 4  # each file in two sessions at least
    assert reference.runs > 2 * record.runs


def test_onnx_runtime_is_the_first_entry() -> None:
    assert next(iter(RUNTIMES)) == ONNX_RUNTIME == open_runtime(ONNX_RUNTIME).name
    assert open_runtime(ONNX_RUNTIME).providers() == available_providers()


def test_a_loaded_model_runs_and_knows_its_load_time(tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_model())
    loaded = open_runtime(ONNX_RUNTIME).open(path, np.ones(1, np.float32), CPU, threads=1)
    loaded.run()
    assert 0 < loaded.load_ms < 60_000
    with pytest.raises(BocompressError, match=r"tiny.onnx does not run on inputs of shape \[2, 2\]"):
        open_runtime(ONNX_RUNTIME).open(path, np.ones((2, 2), np.float32), CPU, threads=1)


def test_a_model_in_memory_runs_like_a_file() -> None:
    open_model = open_runtime(ONNX_RUNTIME).open
    open_model(tiny_model(), np.ones(1, np.float32), CPU, threads=1).run()
    with pytest.raises(BocompressError, match=r"a model in memory does not run on inputs of shape \[2, 2\]"):
        open_model(tiny_model(), np.ones((2, 2), np.float32), CPU, threads=1)
    with pytest.raises(BocompressError, match="cannot load a model in memory"):
        open_model(b"no network", np.ones(1, np.float32), CPU, threads=1)


def test_runtimes_are_imported_without_torch() -> None:
    """`bocompress benchmark` measures the memory of a process that holds a runtime and one file."""
    program = (
        "import sys, benchmarks.runtime.memory, compressor.cost.latency\n"
        "from exporters.providers import tiny_model\n"
        "from exporters.session import open_session\n"
        "open_session(tiny_model(), threads=1)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_images_are_repeated_or_cut_in_order() -> None:
    images = np.arange(6).reshape(3, 2)
    assert tile_batch(images, 5).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    assert tile_batch(images, 1).tolist() == [[0, 1]]
    with pytest.raises(InputError, match="at least one image"):
        tile_batch(images[:0], 2)


def test_openvino_runs_the_same_files(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    runtime, batch = open_runtime("openvino"), np.ones((2, 8), np.float32)
    assert runtime.providers() == [CPU]
    loaded = runtime.open(chain_of(3, tmp_path / "chain.onnx"), batch, CPU, threads=1)
    loaded.run()
    assert loaded.load_ms > 0
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(BocompressError, match=r"OpenVINO cannot load .*broken.onnx: "):
        runtime.open(tmp_path / "broken.onnx", batch, CPU, threads=1)
    with pytest.raises(InputError, match="there is no file"):
        runtime.open(tmp_path / "none.onnx", batch, CPU, threads=1)
    with pytest.raises(InputError, match="cannot be used on CUDA"):
        runtime.open(tmp_path / "chain.onnx", batch, "CUDAExecutionProvider", threads=1)
