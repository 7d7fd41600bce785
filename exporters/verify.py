"""Does the exported file compute what the torch network computes?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compressor.errors import InputError, VerificationError
from compressor.records import ParityRecord
from exporters.onnx import frozen_copy
from exporters.runtime import Logits, open_session, run_batches

# Sixteen images at 1 and at 6 (6 + 6 + 4): three batch sizes, two passes; ResNet-18 at 224 px takes seconds.
VERIFY_IMAGES = 16
DEFAULT_BATCH_SIZES = (1, 6)
TORCH_BATCH = 8


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
    session = open_session(Path(path), provider)
    found = [run_batches(session, Path(path), images, size) for size in sizes]
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
