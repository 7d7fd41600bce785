"""The export check: an ONNX file against the torch network; and the comparison of two files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.errors import BocompressError, InputError, VerificationError
from compressor.files import scratch_folder
from compressor.schema import Pair
from exporters.divergence import find_divergence
from exporters.onnx import export_onnx, frozen_copy
from exporters.records import MAX_ERROR, Agreement, DifferenceRecord, ExportCheckRecord
from exporters.session import CPU, Logits, fixed_batch, gives_integers, open_session, run_batches

# Sixteen images in batches of 1 and of 6 (6 + 6 + 4): three sizes in two passes; ResNet-18 at 224 px takes seconds.
VERIFY_IMAGES = 16
DEFAULT_BATCH_SIZES = (1, 6)
TORCH_BATCH = 8
FILE_BATCH = 8


@dataclass(frozen=True)
class Labels:
    """Labels of images (N,), from 0 to below `num_classes`."""

    values: Tensor
    num_classes: int


def verify_onnx(
    path: Path,
    model: nn.Module,
    images: Tensor,
    batch_sizes: Sequence[int] = DEFAULT_BATCH_SIZES,
    tolerance: float = 1e-4,
    provider: str = CPU,
) -> ExportCheckRecord:
    """Compare ONNX Runtime with torch on the same images, in batches of every given size.

    Where a size does not divide the number of images, the rest is a smaller batch; in a file of one batch size it is
    filled up. Torch runs on a copy in eval mode on the CPU. The caller decides what to do with a file that fails.

    Args:
        path: the ONNX file.
        model: the network it was exported from.
        images: real inputs (N, ...), N at least 2; `VERIFY_IMAGES` suffice.
        batch_sizes: sizes to run; sizes above N become N, and 1 and one larger size are always among them, unless it is
            only the size at which the file is fixed.
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
    fixed = fixed_batch(session)
    if fixed is not None:
        if list(batch_sizes) != [fixed]:
            raise VerificationError(f"{path} does not run on batches of {sizes[0]}: its batch is fixed at {fixed}")
        sizes = [fixed]
    found = [run_batches(session, Path(path), images, size) for size in sizes]
    ran = [fixed] if fixed else _sizes_run(len(images), sizes)
    return _make_record(Path(path), expected, found, ran, tolerance)


def require_opset(model: nn.Module, images: Tensor, opset: int) -> None:
    """Write the network with this operator set, and check the file on the images (N, ...), N at least 2.

    Raises:
        InputError: it cannot be written, or not so that it computes the same.
    """
    with scratch_folder() as folder:
        path = Path(folder) / "original.onnx"
        try:
            export_onnx(model, images, path, {}, opset)
            verify_onnx(path, model, images)
        except BocompressError as error:
            reason = str(error).replace(str(path), "the network")
            raise InputError(f"--opset {opset}: {reason}") from error


def verify_files(
    first: Path,
    second: Path,
    images: Tensor,
    tolerance: float = 1e-4,
    provider: str = CPU,
    second_images: Tensor | None = None,
    labels: Labels | None = None,
) -> DifferenceRecord:
    """Compare the first outputs of two files, of any precision or format that ONNX Runtime loads, on the same images.

    Args:
        first: the reference.
        second: the file that is compared with it.
        images: real inputs (N, ...).
        tolerance: up to this absolute difference, as a share of the first file's largest output, outputs count as the
            same; likewise for inner tensors.
        provider: the ONNX Runtime execution provider.
        second_images: the same images (N, ...) where the second file takes them normalized otherwise.
        labels: of the images, for both files' top-1 accuracy where there are as many classes as outputs tell apart.

    Returns:
        The errors, and the first divergence where they exceed the tolerance.

    Raises:
        InputError: no images, a file that does not exist, a provider that cannot be used, or outputs of two shapes.
        VerificationError: a file does not load or run, or the first gives NaN or infinity.
    """
    if not len(images):
        raise InputError("the comparison needs at least one image")
    inputs = images, images if second_images is None else second_images
    sessions = [open_session(Path(path), provider) for path in (first, second)]
    expected, found = (
        run_batches(session, Path(path), given, FILE_BATCH)
        for session, path, given in zip(sessions, (first, second), inputs, strict=True)
    )
    if expected.shape != found.shape:
        raise InputError(f"{first} gives {expected.shape[1]} outputs for an image and {second} gives {found.shape[1]}")
    if not np.isfinite(expected).all():
        raise VerificationError(f"{first} itself gives NaN or infinity on the images")
    kind = _decided_by(sessions, expected.shape[1])
    difference = _measure_difference(expected, found, tolerance, kind)
    if not difference.same:
        worst = slice(difference.worst_image, difference.worst_image + 1)
        image = inputs[0][worst].numpy(), inputs[1][worst].numpy()
        divergence, compared = find_divergence(Path(first), Path(second), image, tolerance)
        difference = difference.model_copy(update={"divergence": divergence, "tensors_compared": compared})
    outputs = sessions[0].get_outputs()
    found_out = {"output": outputs[0].name, "outputs": len(outputs), "top1": _top1(expected, found, labels, kind)}
    return difference.model_copy(update=found_out)


def _decided_by(sessions: Sequence[ort.InferenceSession], num_outputs: int) -> Agreement:
    if any(map(gives_integers, sessions)):
        return "integers"
    return "sign" if num_outputs == 1 else "top-1 class"


def _measure_difference(expected: Logits, found: Logits, tolerance: float, kind: Agreement) -> DifferenceRecord:
    """The errors of outputs (N, outputs), without what only the files know."""
    differences = np.abs(found.astype(np.float64) - expected)
    per_image = np.nan_to_num(differences.max(1), nan=np.inf)
    worst, scale = int(per_image.argmax()), float(np.abs(expected).max()) or 1.0
    agreement = (
        float((found == expected).all(axis=1).mean()) if kind == "integers" else _top1_agreement(found, expected)
    )
    return DifferenceRecord(
        max_abs_error=min(float(per_image[worst]), MAX_ERROR),
        max_rel_error=min(float(per_image[worst]) / scale, MAX_ERROR),
        function_norm=min(float(np.nan_to_num(np.square(differences).sum(1), nan=np.inf).mean()), MAX_ERROR),
        top1_agreement=agreement,
        agreement_of=kind,
        not_finite=int(np.isinf(per_image).sum()),
        images=len(expected),
        worst_image=worst,
        tolerance=tolerance,
        same=bool(per_image[worst] / scale <= tolerance),
        divergence=None,
        tensors_compared=0,
    )


def _top1(expected: Logits, found: Logits, labels: Labels | None, kind: Agreement) -> Pair[float] | None:
    """Both files' top-1; where a file gives one integer it is the class."""
    if labels is None:
        return None
    if kind == "integers" and expected.shape[1] == 1:
        classes = expected[:, 0].astype(np.int64), found[:, 0].astype(np.int64)
        if max(each.max() for each in classes) >= labels.num_classes:
            return None
    elif labels.num_classes == max(expected.shape[1], 2):
        classes = _decisions(expected), _decisions(found)
    else:
        return None
    shares = [float(np.mean(each == labels.values.numpy())) for each in classes]
    return Pair[float](original=shares[0], compressed=shares[1])


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
    return float(np.mean(_decisions(logits) == _decisions(expected)))


def _decisions(logits: Logits) -> NDArray[np.int64]:
    """The class of each image (N,) by outputs (N, outputs): the largest; a single one decides by its sign."""
    return (logits[:, 0] > 0).astype(np.int64) if logits.shape[1] == 1 else logits.argmax(axis=1)
