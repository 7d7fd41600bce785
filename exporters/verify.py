"""The export check: an ONNX file against the torch network; and the comparison of two files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compressor.errors import InputError, VerificationError
from exporters.divergence import find_divergence
from exporters.onnx import frozen_copy
from exporters.records import DifferenceRecord, ExportCheckRecord
from exporters.session import CPU, Logits, open_session, run_batches, split_batches

# Sixteen images in batches of 1 and of 6 (6 + 6 + 4): three sizes in two passes; ResNet-18 at 224 px takes seconds.
VERIFY_IMAGES = 16
DEFAULT_BATCH_SIZES = (1, 6)
TORCH_BATCH = 8
FILE_BATCH = 8
MAX_ERROR = 1e30  # records hold no infinity


def verify_onnx(
    path: Path,
    model: nn.Module,
    images: Tensor,
    batch_sizes: Sequence[int] = DEFAULT_BATCH_SIZES,
    tolerance: float = 1e-4,
    provider: str = CPU,
) -> ExportCheckRecord:
    """Compare ONNX Runtime with torch on the same images, in batches of every given size.

    Where a size does not divide the number of images, the rest is a smaller batch. Torch runs on a copy in eval mode on
    the CPU. The caller decides what to do with a file that fails.

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
        InputError: fewer than two images, a batch size below 1, or a provider that cannot be used.
        VerificationError: the file does not load or run, gives NaN or infinity, or its error exceeds `tolerance`.
    """
    sizes = _sizes_to_run(len(images), batch_sizes)
    expected = _torch_logits(model, images)
    session = open_session(Path(path), provider)
    found = [run_batches(session, Path(path), images, size) for size in sizes]
    return _make_record(Path(path), expected, found, _sizes_run(len(images), sizes), tolerance)


def verify_files(
    first: Path, second: Path, images: Tensor, tolerance: float = 1e-4, provider: str = CPU
) -> DifferenceRecord:
    """Compare two files, of any precision or format that ONNX Runtime loads, on the same images.

    Args:
        first: the reference.
        second: the file that is compared with it.
        images: real inputs (N, ...).
        tolerance: up to this absolute difference, as a share of the first file's largest output, outputs count as the
            same; likewise for inner tensors.
        provider: the ONNX Runtime execution provider.

    Returns:
        The errors, and the first divergence where they exceed the tolerance.

    Raises:
        InputError: no images, a file that does not exist, a provider that cannot be used, or outputs of two shapes.
        VerificationError: a file does not load or run, or the first gives NaN or infinity.
    """
    if not len(images):
        raise InputError("the comparison needs at least one image")
    expected, found = (
        run_batches(open_session(Path(path), provider), Path(path), images, FILE_BATCH) for path in (first, second)
    )
    if expected.shape != found.shape:
        shapes = list(expected.shape[1:]), list(found.shape[1:])
        raise InputError(f"{first} gives outputs of shape {shapes[0]} and {second} of {shapes[1]}")
    if not np.isfinite(expected).all():
        raise VerificationError(f"{first} itself gives NaN or infinity on the images")
    differences = np.abs(found.astype(np.float64) - expected)
    per_image = np.nan_to_num(differences.reshape(len(images), -1).max(1), nan=np.inf)
    worst, scale = int(per_image.argmax()), float(np.abs(expected).max()) or 1.0
    same = bool(per_image[worst] / scale <= tolerance)
    image = next(split_batches(images[worst : worst + 1], 1))
    divergence, compared = (None, 0) if same else find_divergence(Path(first), Path(second), image, tolerance)
    return DifferenceRecord(
        max_abs_error=min(float(per_image[worst]), MAX_ERROR),
        max_rel_error=min(float(per_image[worst]) / scale, MAX_ERROR),
        function_norm=min(float(np.nan_to_num(np.square(differences).sum(1), nan=np.inf).mean()), MAX_ERROR),
        top1_agreement=_top1_agreement(found, expected),
        images=len(images),
        worst_image=worst,
        tolerance=tolerance,
        same=same,
        divergence=divergence,
        tensors_compared=compared,
    )


def _sizes_to_run(images: int, batch_sizes: Sequence[int]) -> list[int]:
    if images < 2:
        raise InputError(f"the comparison with torch needs at least 2 images, not {images}")
    if min(batch_sizes, default=1) < 1:
        raise InputError(f"a batch holds at least one image, not {min(batch_sizes)}")
    sizes = {min(size, images) for size in batch_sizes}
    return sorted({1} | (sizes if sizes - {1} else {2}))


def _sizes_run(images: int, sizes: Sequence[int]) -> list[int]:
    return sorted({*sizes, *(images % size for size in sizes if images % size)})


def _torch_logits(model: nn.Module, images: Tensor) -> Logits:
    frozen = frozen_copy(model)
    with torch.no_grad():
        logits = torch.cat([frozen(batch) for batch in images.detach().cpu().split(TORCH_BATCH)])
    if not torch.isfinite(logits).all():
        raise VerificationError("the torch network itself gives NaN or infinity on the images")
    return logits.numpy()


def _make_record(
    path: Path, expected: Logits, found: Sequence[Logits], batch_sizes: list[int], tolerance: float
) -> ExportCheckRecord:
    _require_finite_and_same_shape(path, expected, found)
    scale = float(np.abs(expected).max()) or 1.0  # a network of zeros has no scale of its own
    max_abs = max(float(np.abs(logits - expected).max()) for logits in found)
    record = ExportCheckRecord(
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
            given, required = list(logits.shape), list(expected.shape)
            raise VerificationError(f"{path} gives outputs of shape {given} where torch gives {required}")
        if not np.isfinite(logits).all():
            raise VerificationError(f"{path} gives NaN or infinity where torch gives finite outputs")


def _require_within_tolerance(path: Path, record: ExportCheckRecord) -> None:
    if record.max_rel_error > record.tolerance:
        raise VerificationError(
            f"{path} does not compute what the torch network computes: outputs differ by up to "
            f"{record.max_abs_error:.3g}, which is {record.max_rel_error:.3g} of the largest output where "
            f"{record.tolerance:.3g} is allowed; top-1 agrees on {record.top1_agreement:.1%} of "
            f"{record.images} images"
        )


def _top1_agreement(logits: Logits, expected: Logits) -> float:
    return float(np.mean(logits.argmax(axis=1) == expected.argmax(axis=1)))
