"""Every runtime by name. A new one is a file beside this one and an entry here."""

from exporters.runtimes.base import Runtime
from exporters.runtimes.onnx_runtime import OnnxRuntime
from exporters.runtimes.openvino import OpenVino

ONNX_RUNTIME = OnnxRuntime.name

RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in (OnnxRuntime(), OpenVino())}
