"""Every runtime by the name that `bocompress benchmark --runtime` takes.

A new one is a file beside this one and an entry here, which is loaded on first use: the command line reads the names
without loading any.
"""

from typing import TYPE_CHECKING

from compressor.lazy import load_named

if TYPE_CHECKING:
    from exporters.runtimes.base import Runtime

ONNX_RUNTIME = "onnxruntime"
RUNTIMES: dict[str, "str | Runtime"] = {
    ONNX_RUNTIME: "exporters.runtimes.onnx_runtime:OnnxRuntime",
    "openvino": "exporters.runtimes.openvino:OpenVino",
}
"""A runtime, or where its class is: "module:name"."""


def open_runtime(name: str) -> "Runtime":
    """The runtime of this name, a key of `RUNTIMES`."""
    entry = RUNTIMES[name]
    if not isinstance(entry, str):
        return entry
    runtime: Runtime = load_named(entry)()
    return runtime
