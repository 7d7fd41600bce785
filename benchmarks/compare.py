"""Two ONNX files side by side: bytes, and latency on every provider."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.latency import available_providers, measure_latency
from benchmarks.size import file_bytes, gzip_bytes
from compressor.errors import InputError
from compressor.records import Comparison, Pair


def compare_files(
    original: Path, compressed: Path, threads: int, batch_size: int, input_size: int | None, seed: int
) -> Comparison:
    """Measure both files with random inputs of the first file's shape.

    Raises:
        InputError: a file is missing, is no ONNX network of one input, or both want different inputs.
    """
    shapes = [_input_shape(path, input_size) for path in (original, compressed)]
    if shapes[0] != shapes[1]:
        raise InputError(f"{original} takes inputs {shapes[0]} and {compressed} takes {shapes[1]}")
    example: NDArray[np.float32] = np.random.default_rng(seed).standard_normal((1, *shapes[0]), dtype=np.float32)
    return Comparison(
        onnx_bytes=Pair[int](original=file_bytes(original), compressed=file_bytes(compressed)),
        gzip_bytes=Pair[int](original=gzip_bytes(original), compressed=gzip_bytes(compressed)),
        latency={
            provider: measure_latency(
                original, compressed, example, provider, threads=threads, batch_size=batch_size, seed=seed
            )
            for provider in available_providers()
        },
    )


def _input_shape(path: Path, input_size: int | None) -> tuple[int, ...]:
    """Shape of one input, without the batch."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        inputs = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()
    except Exception as error:  # ONNX Runtime raises its own types for every kind of bad file
        raise InputError(f"{path} is not an ONNX network that ONNX Runtime can load") from error
    if len(inputs) != 1 or inputs[0].type != "tensor(float)":
        raise InputError(f"{path} must take one float32 input")
    sides = [side if isinstance(side, int) else input_size for side in inputs[0].shape[1:]]
    known = [side for side in sides if side is not None]
    if len(known) < len(sides):
        raise InputError(f"{path} leaves its input size open: give --input-size")
    return tuple(known)
