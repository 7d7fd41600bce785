"""ONNX Runtime, on the CPU or on a GPU."""

import time
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from compressor.errors import BocompressError
from compressor.failures import blaming
from exporters.providers import available_providers
from exporters.runtimes.base import OpenedModel, Run
from exporters.session import CPU, model_name, open_session, run_within
from exporters.strangers import SECONDS_ALLOWED


class OnnxRuntime:
    """Sessions of ONNX Runtime with its own defaults of arithmetic: on CUDA it may round to TensorFloat-32."""

    name = "onnxruntime"
    label = "ONNX Runtime"

    def providers(self) -> list[str]:
        """ONNX Runtime's names of the execution providers that work here."""
        return available_providers()

    def open(self, model: Path | bytes, batch: NDArray[Any], provider: str, threads: int) -> OpenedModel:
        """See `Runtime.open`."""
        began = time.perf_counter_ns()
        session = open_session(model, provider, threads, tf32=True)
        load_ms = (time.perf_counter_ns() - began) / 1e6
        what = f"{model_name(model)} does not run on inputs of shape {list(batch.shape)}"
        with blaming(lambda reason: BocompressError(f"{what}: {reason}")):
            if provider == CPU:
                run = _bind_on_host(session, batch)
                run_within(session, None, {session.get_inputs()[0].name: batch}, SECONDS_ALLOWED * len(batch))
            else:
                run = _bind_on_device(session, batch)
                run()
        return OpenedModel(run, load_ms)


def _bind_on_host(session: ort.InferenceSession, batch: NDArray[Any]) -> Run:
    feed = {session.get_inputs()[0].name: batch}
    return lambda: session.run(None, feed)


def _bind_on_device(session: ort.InferenceSession, batch: NDArray[Any]) -> Run:
    """Keeps inputs and outputs on the device: the copy over the bus is the same for all networks."""
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(batch, "cuda", 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda", 0)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run
