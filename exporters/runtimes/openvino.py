"""OpenVINO on the CPU, from the extra `openvino`: it reads the same ONNX files."""

import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.errors import BocompressError, InputError
from compressor.text import first_line
from exporters.runtimes.base import OpenedModel
from exporters.session import CPU, model_name


class OpenVino:
    """Models compiled for the batch's shape, in float32 and one stream, as ONNX Runtime runs them."""

    name = "openvino"
    label = "OpenVINO"

    def providers(self) -> list[str]:
        """The CPU where the package is installed."""
        return [CPU] if importlib.util.find_spec("openvino") else []

    def open(self, model: Path | bytes, batch: NDArray[Any], provider: str, threads: int) -> OpenedModel:
        """See `Runtime.open`."""
        if isinstance(model, Path) and not model.is_file():
            raise InputError(f"there is no file {model}")
        if provider not in self.providers():
            raise InputError(f"OpenVINO cannot be used on {provider} here")
        import openvino

        name = model_name(model)
        began = time.perf_counter_ns()
        try:
            core = openvino.Core()
            network = core.read_model(model)
            network.reshape({network.input(0): list(batch.shape)})
            options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
            request = core.compile_model(network, "CPU", options).create_infer_request()
        except Exception as error:
            raise BocompressError(f"OpenVINO cannot load {name}: {first_line(error)}") from error
        load_ms = (time.perf_counter_ns() - began) / 1e6
        values = np.ascontiguousarray(batch)

        def run() -> object:
            return request.infer([values], share_inputs=True)

        try:
            run()
        except Exception as error:
            shape = list(batch.shape)
            raise BocompressError(f"{name} does not run on inputs of shape {shape}: {first_line(error)}") from error
        return OpenedModel(run, load_ms)
