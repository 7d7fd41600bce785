"""Execution providers of ONNX Runtime: their short names, which of them work here, and what the others lack."""

from collections.abc import Sequence

import onnxruntime as ort

from compressor.errors import BocompressError
from compressor.text import join_words
from exporters.session import CPU, CUDA, TENSORRT, open_session

__all__ = ["CPU", "CUDA", "PROVIDERS", "TENSORRT", "available_providers", "explain_absence", "tiny_model"]

PROVIDERS = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}  # by the names that users type
TINY_OPSET = 13


def available_providers() -> list[str]:
    """ONNX Runtime's names of the providers that work here: the CPU, and CUDA and TensorRT where they do.

    A provider counts if a session opened on it stays on it: ONNX Runtime lists a provider even where its libraries are
    missing, and then falls back to the CPU without an error.
    """
    return [CPU, *(provider for provider in (CUDA, TENSORRT) if _opens_on(provider))]


def explain_absence(asked: Sequence[str]) -> str | None:
    """What is missing to run on the providers asked for by short name; None where nothing is."""
    if unknown := [name for name in asked if name not in PROVIDERS]:
        return f"there is no provider {unknown[0]!r}; choices are {', '.join(PROVIDERS)}"
    if set(asked) <= {"cpu"}:
        return None  # opens no session on any other
    usable = available_providers()
    absent = [name for name in asked if PROVIDERS[name] not in usable]
    if not absent:
        return None
    listed = [name for name in absent if PROVIDERS[name] in ort.get_available_providers()]
    reason = (
        f"it was built for {join_words(listed)}, but the driver or its libraries do not load"
        if listed
        else "that takes the package onnxruntime-gpu, a GPU and its driver and libraries"
    )
    here = join_words([name for name, provider in PROVIDERS.items() if provider in usable])
    return f"this ONNX Runtime {ort.__version__} cannot run on {join_words(absent)}: {reason}; here there is {here}"


def tiny_model() -> bytes:
    """The content of an ONNX file with the smallest network there is: y = relu(x) for one number."""
    from onnx import TensorProto, helper  # slow to import, and needed only here

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "tiny", [x], [y])
    opsets = [helper.make_opsetid("", TINY_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def _opens_on(provider: str) -> bool:
    if provider not in ort.get_available_providers():
        return False
    try:
        open_session(tiny_model(), provider, threads=1)
    except BocompressError:
        return False
    return True
