"""ONNX Runtime as the exporters use it: a session that stays where it was put, outputs batch by batch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.errors import InputError, VerificationError
from compressor.text import first_line

CPU = "CPUExecutionProvider"
SILENT = 4  # ONNX Runtime's severity for fatal errors only: failures are raised, they need not be printed too
# Unless told otherwise the CUDA provider rounds to TensorFloat-32: 1e-3 away from torch by design.
PROVIDER_OPTIONS: dict[str, dict[str, str]] = {"CUDAExecutionProvider": {"use_tf32": "0"}}

Logits = NDArray[np.floating[Any]]


def open_session(path: Path, provider: str = CPU, optimize: bool = True) -> ort.InferenceSession:
    """A session on the file, on as many threads as torch uses.

    Args:
        path: an ONNX file.
        provider: the execution provider, or an error: ONNX Runtime would fall back to the CPU without a word.
        optimize: False keeps every node as it stands in the file.

    Raises:
        InputError: there is no such file or provider.
        VerificationError: ONNX Runtime cannot load the file.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if provider not in ort.get_available_providers():
        raise InputError(f"this ONNX Runtime has no {provider}")
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = torch.get_num_threads()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(path, options, [(provider, PROVIDER_OPTIONS.get(provider, {}))])
    except Exception as error:
        raise VerificationError(f"ONNX Runtime cannot load {path}: {first_line(error)}") from error
    used = session.get_providers()[0]
    if used != provider:
        raise InputError(f"{provider} cannot be used here: ONNX Runtime fell back to {used}")
    return session


def describe_input(path: Path) -> tuple[str, int | None]:
    """The architecture in the file's metadata (empty if it has none), and the side of its square input, if fixed.

    Raises:
        InputError: the file cannot be loaded, or does not take one batch of float32 images.
    """
    try:
        session = open_session(Path(path))
    except VerificationError as error:
        raise InputError(str(error)) from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
        raise InputError(f"{path} does not take one batch of float32 images")
    side = inputs[0].shape[-1]
    return session.get_modelmeta().custom_metadata_map.get("architecture", ""), side if isinstance(side, int) else None


def run_batches(session: ort.InferenceSession, path: Path, images: Tensor, size: int) -> Logits:
    """The first output (N, ...) for images (N, ...), run in batches of `size`; `path` is for the error's words.

    Raises:
        VerificationError: the network does not run on them.
    """
    name = session.get_inputs()[0].name
    try:
        outputs = [session.run(None, {name: batch})[0] for batch in split_batches(images, size)]
    except Exception as error:
        raise VerificationError(f"{path} does not run on batches of {size}: {first_line(error)}") from error
    return np.concatenate(outputs)


def split_batches(images: Tensor, size: int) -> Iterator[Logits]:
    """Images (N, ...) as arrays of up to `size` of them."""
    for batch in images.detach().cpu().split(size):
        yield batch.contiguous().numpy()
