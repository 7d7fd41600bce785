"""Does the exported file compute what the torch network computes?"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.errors import InputError, VerificationError
from compressor.records import ParityRecord
from exporters.onnx import first_line, frozen_copy

# Sixteen images at 1 and at 6 (6 + 6 + 4): three batch sizes, two passes; ResNet-18 at 224 px takes seconds.
VERIFY_IMAGES = 16
DEFAULT_BATCH_SIZES = (1, 6)
TORCH_BATCH = 8
SILENT = 4  # ONNX Runtime's severity for fatal errors only: failures are raised, they need not be printed too
# Unless told otherwise the CUDA provider rounds to TensorFloat-32: 1e-3 away from torch by design.
PROVIDER_OPTIONS: dict[str, dict[str, str]] = {"CUDAExecutionProvider": {"use_tf32": "0"}}

Logits = NDArray[np.floating[Any]]


def verify_onnx(
    path: Path,
    model: nn.Module,
    images: Tensor,
    batch_sizes: Sequence[int] = DEFAULT_BATCH_SIZES,
    tolerance: float = 1e-4,
    provider: str = "CPUExecutionProvider",
) -> ParityRecord:
    """Compare ONNX Runtime with torch on the same images, cut into batches of every given size.

    Where a size does not divide the number of images, the remainder is a batch of its own size. Torch runs in
    eval mode on a copy on the CPU. The caller decides what becomes of a file that fails.

    Args:
        path: the ONNX file.
        model: the network it was exported from.
        images: real inputs (N, ...), N at least 2; `VERIFY_IMAGES` suffice.
        batch_sizes: sizes to run; sizes above N become N, and 1 and one larger size are always among them.
        tolerance: the largest permitted absolute difference of two outputs, as a share of the largest
            magnitude among torch's outputs.
        provider: the ONNX Runtime execution provider.

    Returns:
        The largest errors over all batch sizes, the smallest top-1 agreement, and the batch sizes that ran,
        remainders included.

    Raises:
        InputError: fewer than two images, a batch size below 1, or a provider that is not there.
        VerificationError: the file does not load or run, gives NaN or infinity, or is further from torch than
            `tolerance`.
    """
    sizes = _sizes_to_run(len(images), batch_sizes)
    expected = _torch_logits(model, images)
    session = _open_session(Path(path), provider)
    found = [_onnx_logits(session, Path(path), images, size) for size in sizes]
    return _judge(Path(path), expected, found, _sizes_seen(len(images), sizes), tolerance)


def _sizes_to_run(images: int, batch_sizes: Sequence[int]) -> list[int]:
    if images < 2:
        raise InputError(f"the comparison with torch needs at least 2 images, not {images}")
    if min(batch_sizes, default=1) < 1:
        raise InputError(f"a batch holds at least one image, not {min(batch_sizes)}")
    sizes = {min(size, images) for size in batch_sizes}
    return sorted({1} | (sizes if sizes - {1} else {2}))


def _sizes_seen(images: int, sizes: Sequence[int]) -> list[int]:
    return sorted({*sizes, *(images % size for size in sizes if images % size)})


def _torch_logits(model: nn.Module, images: Tensor) -> Logits:
    frozen = frozen_copy(model)
    with torch.no_grad():
        logits = torch.cat([frozen(batch) for batch in images.detach().cpu().split(TORCH_BATCH)])
    if not torch.isfinite(logits).all():
        raise VerificationError("the torch network itself gives NaN or infinity on the images")
    return logits.numpy()


def _open_session(path: Path, provider: str) -> ort.InferenceSession:
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if provider not in ort.get_available_providers():
        raise InputError(f"this ONNX Runtime has no {provider}")
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = ort.InferenceSession(path, options, [(provider, PROVIDER_OPTIONS.get(provider, {}))])
    except Exception as error:
        raise VerificationError(f"ONNX Runtime cannot load {path}: {first_line(error)}") from error
    _require_provider(session, provider)
    return session


def _require_provider(session: ort.InferenceSession, provider: str) -> None:
    """ONNX Runtime falls back to the CPU without a word."""
    used = session.get_providers()[0]
    if used != provider:
        raise InputError(f"{provider} cannot be used here: ONNX Runtime fell back to {used}")


def _onnx_logits(session: ort.InferenceSession, path: Path, images: Tensor, size: int) -> Logits:
    name = session.get_inputs()[0].name
    try:
        outputs = [session.run(None, {name: batch})[0] for batch in _batches(images, size)]
    except Exception as error:
        raise VerificationError(f"{path} does not run on batches of {size}: {first_line(error)}") from error
    return np.concatenate(outputs)


def _batches(images: Tensor, size: int) -> Iterator[Logits]:
    for batch in images.detach().cpu().split(size):
        yield batch.contiguous().numpy()


def _judge(
    path: Path, expected: Logits, found: Sequence[Logits], batch_sizes: list[int], tolerance: float
) -> ParityRecord:
    _require_finite_and_same_shape(path, expected, found)
    scale = float(np.abs(expected).max()) or 1.0  # a network of zeros has no scale of its own
    max_abs = max(float(np.abs(logits - expected).max()) for logits in found)
    record = ParityRecord(
        max_abs_error=max_abs,
        max_rel_error=max_abs / scale,
        top1_agreement=min(_top1_agreement(logits, expected) for logits in found),
        images=len(expected),
        batch_sizes=batch_sizes,
        tolerance=tolerance,
    )
    _require_within_tolerance(path, record)
    return record


def _require_finite_and_same_shape(path: Path, expected: Logits, found: Sequence[Logits]) -> None:
    for logits in found:
        if logits.shape != expected.shape:
            given, wanted = list(logits.shape), list(expected.shape)
            raise VerificationError(f"{path} gives outputs of shape {given} where torch gives {wanted}")
        if not np.isfinite(logits).all():
            raise VerificationError(f"{path} gives NaN or infinity where torch gives finite outputs")


def _require_within_tolerance(path: Path, record: ParityRecord) -> None:
    if record.max_rel_error > record.tolerance:
        raise VerificationError(
            f"{path} does not compute what the torch network computes: outputs differ by up to "
            f"{record.max_abs_error:.3g}, which is {record.max_rel_error:.3g} of the largest output where "
            f"{record.tolerance:.3g} is allowed; top-1 agrees on {record.top1_agreement:.1%} of "
            f"{record.images} images"
        )


def _top1_agreement(logits: Logits, expected: Logits) -> float:
    return float(np.mean(logits.argmax(axis=1) == expected.argmax(axis=1)))
