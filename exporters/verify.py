"""The export check: an ONNX file against the torch network; and the comparison of two files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.errors import BocompressError, InputError, VerificationError
from compressor.files import scratch_folder
from compressor.outputs.structure import named_tensors
from compressor.schema import Pair
from exporters.agreement import OutputDifference, decided_by, decisions, first_deciding
from exporters.divergence import find_divergence
from exporters.onnx import export_onnx, frozen_copy
from exporters.records import MAX_ERROR, Agreement, DifferenceRecord, ExportCheckRecord
from exporters.rounding import allow_for_rounding
from exporters.session import fixed_batch, is_numbers, iterate_outputs, open_session
from exporters.strangers import SECONDS_ALLOWED

# Sixteen images in batches of 1 and of 6 (6 + 6 + 4): three sizes in two passes; ResNet-18 at 224 px takes seconds.
VERIFY_IMAGES = 16
DEFAULT_BATCH_SIZES = (1, 6)
TORCH_BATCH = 8
FILE_BATCH = 8
MAX_INPUT_NUMBERS = 4 * 10**6  # of a batch
MAX_OUTPUT_NUMBERS = 6 * 10**7  # of torch's outputs that are held: 240 MB
MAX_SCORES = 10**6  # of an image, from which top-1 is counted
LARGER_BY = (32, 64)  # pixels in height and width, of images for files that take any size
Outputs = Mapping[str, NDArray[Any]]
AGREES: dict[Agreement, str] = {"top-1 class": "top-1", "class of a pixel": "the class of a pixel"}


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
        tolerance: the largest permitted absolute difference of two outputs, as a share of the largest magnitude among
            torch's outputs; more where torch's own rounding is larger, see `exporters.rounding`.

    Returns:
        The largest errors over all outputs and batch sizes, the smallest agreement of decisions, and the batch sizes
        that ran, remainders included. A file that takes images of any size runs on larger ones, too.

    Raises:
        InputError: fewer than two images, or a batch size below 1.
        VerificationError: the file does not load or run, gives NaN or infinity, or is off by more than is allowed.
    """
    _sizes_to_run(len(images), batch_sizes)  # raises where they are too few
    frozen = frozen_copy(model)
    images = images[: _count_held(frozen, images)]
    expected = _torch_outputs(frozen, images)
    session = open_session(Path(path))
    _require_outputs(Path(path), session, expected)
    fixed = fixed_batch(session)
    sizes = _sizes_to_run(len(images), batch_sizes) if fixed is None else [fixed]
    if fixed is not None and list(batch_sizes) != [fixed]:
        raise VerificationError(f"{path} does not run on batches of 1: its batch is fixed at {fixed}")
    runs = [(images, size, expected) for size in sizes]
    others = _other_images(session, images)
    if others is not None:
        runs.append((others, len(others), _torch_outputs(frozen, others)))
    record = _compare_runs(session, Path(path), runs, tolerance)
    shapes = [] if others is None else [tuple(each.shape[2:]) for each in (images, others)]
    ran = [fixed] if fixed else _sizes_run(len(images), sizes)
    record = record.model_copy(update={"batch_sizes": ran, "images": len(images), "image_sizes": shapes})
    return _require_within_tolerance(path, allow_for_rounding(record, frozen, images, expected))


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
    second_images: Tensor | None = None,
    labels: Labels | None = None,
) -> DifferenceRecord:
    """Compare two files, of any precision or format that ONNX Runtime loads, on the same images.

    Compared are the outputs that both name; of files that name them otherwise, the first.

    Args:
        first: the reference.
        second: the file that is compared with it.
        images: real inputs (N, ...).
        tolerance: up to this absolute difference, as a share of the first file's largest output, outputs count as the
            same; likewise for inner tensors.
        second_images: the same images (N, ...) where the second file takes them normalized otherwise.
        labels: of the images, for both files' top-1 accuracy where there are as many classes as outputs tell apart.

    Returns:
        The errors, and the first divergence where they exceed the tolerance.

    Raises:
        InputError: no images, a file that does not exist, or outputs of two shapes.
        VerificationError: a file does not load or run, or the first gives NaN or infinity.
    """
    if not len(images):
        raise InputError("the comparison needs at least one image")
    inputs = images, images if second_images is None else second_images
    sessions = [open_session(Path(path)) for path in (first, second)]
    pairs = _pair_outputs(sessions)
    differences, decided = _compare_images((first, second), sessions, inputs, pairs)
    difference = _describe(differences, tolerance)
    if not difference.same:
        worst = slice(difference.worst_image, difference.worst_image + 1)
        image = inputs[0][worst].numpy(), inputs[1][worst].numpy()
        divergence, compared = find_divergence(Path(first), Path(second), image, tolerance)
        difference = difference.model_copy(update={"divergence": divergence, "tensors_compared": compared})
    top1 = None
    if all(len({each.shape for each in values}) == 1 for values in decided):  # graphs may give as many as they see
        top1 = _top1(np.concatenate(decided[0]), np.concatenate(decided[1]), labels, difference.agreement_of)
    names = {"output": ", ".join(differences), "outputs": len(sessions[0].get_outputs()), "top1": top1}
    return difference.model_copy(update=names)


def _compare_images(
    files: tuple[Path, Path],
    sessions: Sequence[ort.InferenceSession],
    inputs: tuple[Tensor, Tensor],
    pairs: Sequence[tuple[str, str]],
) -> tuple[dict[str, OutputDifference], tuple[list[NDArray[Any]], list[NDArray[Any]]]]:
    """Differences of outputs by the first file's names, and what both files give as their first one, if it is short."""
    both = [
        _by_image(session, Path(path), given, [pair[side] for pair in pairs])
        for side, (session, path, given) in enumerate(zip(sessions, files, inputs, strict=True))
    ]
    differences: dict[str, OutputDifference] = {}
    decided: tuple[list[NDArray[Any]], list[NDArray[Any]]] = ([], [])
    for expected, found in zip(*both, strict=True):
        _compare_image(files, pairs, expected, found, differences)
        for values, each in zip(decided, (expected[pairs[0][0]], found[pairs[0][1]]), strict=True):
            values += [each] if each.size <= MAX_SCORES else []
    return differences, decided


def _pair_outputs(sessions: Sequence[ort.InferenceSession]) -> list[tuple[str, str]]:
    """Names in the first and in the second file of the outputs to compare: those that both name, else the first."""
    shapes = [
        {output.name: len(output.shape) for output in session.get_outputs() if is_numbers(output.type)}
        for session in sessions
    ]
    shared = [name for name, axes in shapes[0].items() if shapes[1].get(name) == axes]
    if not all(shapes):
        raise InputError("one of the files gives no tensor of numbers, which alone can be compared")
    first = next(iter(shapes[0])), next(iter(shapes[1]))
    return [(name, name) for name in shared] if first[0] in shared and first[0] == first[1] else [first]


def _by_image(
    session: ort.InferenceSession, path: Path, images: Tensor, names: Sequence[str]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yields outputs (1, ...) of one image after the other, which files of different batch sizes have in common."""
    size = max(1, min(FILE_BATCH, MAX_INPUT_NUMBERS // max(1, images[:1].numel())))
    for outputs in iterate_outputs(session, path, images, size, list(dict.fromkeys(names)), SECONDS_ALLOWED):
        for number in range(len(next(iter(outputs.values())))):
            yield {name: value[number : number + 1] for name, value in outputs.items()}


def _compare_image(
    files: tuple[Path, Path],
    pairs: Sequence[tuple[str, str]],
    expected: Mapping[str, NDArray[Any]],
    found: Mapping[str, NDArray[Any]],
    differences: dict[str, OutputDifference],
) -> None:
    """Add what two files give for an image to the differences of their outputs, by the first one's names."""
    for number, (name, other) in enumerate(pairs):
        one, two = expected[name], found[other]
        if one.size != two.size or (one.shape != two.shape and number):
            if number:  # outputs beside the first may mean different things in files of different kinds
                continue
            raise InputError(f"{files[0]} gives {one.size} outputs for an image and {files[1]} gives {two.size}")
        if not np.isfinite(one).all():
            raise VerificationError(f"{files[0]} itself gives NaN or infinity on the images")
        if one.shape != two.shape:
            one, two = one.reshape(1, -1), two.reshape(1, -1)
        kinds = {decided_by(one), decided_by(two)}
        kind = "integers" if "integers" in kinds else decided_by(one)
        differences.setdefault(name, OutputDifference(kind)).add(two, one)


def _describe(differences: Mapping[str, OutputDifference], tolerance: float) -> DifferenceRecord:
    """The errors of outputs, without what only the files know."""
    images = max(len(each.errors) for each in differences.values())
    every = [each for each in differences.values() if len(each.errors) == images]  # others were not always alike
    worst_output = max(every, key=lambda each: each.relative)
    per_image = np.max([np.array(each.errors) / (each.scale or 1.0) for each in every], axis=0)
    deciding = first_deciding(every)
    return DifferenceRecord(
        max_abs_error=min(max(worst_output.errors), MAX_ERROR),
        max_rel_error=min(worst_output.relative, MAX_ERROR),
        function_norm=min(sum(float(np.mean(each.squares)) for each in every), MAX_ERROR),
        top1_agreement=deciding.agreement,
        agreement_of=deciding.kind,
        not_finite=int(np.isinf(per_image).sum()),
        images=len(per_image),
        worst_image=int(per_image.argmax()),
        tolerance=tolerance,
        same=bool(worst_output.relative <= tolerance),
        divergence=None,
        tensors_compared=0,
    )


def _top1(expected: NDArray[Any], found: NDArray[Any], labels: Labels | None, kind: Agreement) -> Pair[float] | None:
    """Both files' top-1; where a file gives one integer it is the class."""
    if labels is None or expected.ndim > 2:
        return None
    expected, found = (each.reshape(len(each), -1) for each in (expected, found))
    if kind == "integers" and expected.shape[1] == 1:
        classes = expected[:, 0].astype(np.int64), found[:, 0].astype(np.int64)
        if max(each.max() for each in classes) >= labels.num_classes:
            return None
    elif labels.num_classes == max(expected.shape[1], 2):
        classes = decisions(expected), decisions(found)
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


def _count_held(model: nn.Module, images: Tensor) -> int:
    """How many of the images to compare: all, or as many as their outputs find room for, at least two."""
    outputs = _torch_outputs(model, images[:1])
    numbers = sum(value.size for value in outputs.values())
    return max(2, min(len(images), MAX_OUTPUT_NUMBERS // max(1, numbers)))


def _torch_outputs(model: nn.Module, images: Tensor) -> dict[str, NDArray[Any]]:
    """All outputs (N, ...) by name."""
    size = max(1, min(TORCH_BATCH, MAX_INPUT_NUMBERS // max(1, images[:1].numel())))
    with torch.no_grad():
        parts = [named_tensors(model(batch)) for batch in images.detach().cpu().split(size)]
    outputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if not all(bool(torch.isfinite(value).all()) for value in outputs.values()):
        raise VerificationError("the torch network itself gives NaN or infinity on the images")
    return {name: value.numpy() for name, value in outputs.items()}


def _require_outputs(path: Path, session: ort.InferenceSession, expected: Mapping[str, NDArray[Any]]) -> None:
    names = [output.name for output in session.get_outputs()]
    if set(names) != set(expected):
        given, required = (", ".join(each) for each in (names, expected))
        raise VerificationError(f"{path} gives the outputs {given} where torch gives {required}")


def _other_images(session: ort.InferenceSession, images: Tensor) -> Tensor | None:
    """Two of the images, higher and wider, where the file takes any size; else None."""
    sides = session.get_inputs()[0].shape[2:]
    if images.ndim != 4 or any(isinstance(side, int) for side in sides):
        return None
    size = [side + more for side, more in zip(images.shape[2:], LARGER_BY, strict=True)]
    return nn.functional.interpolate(images[:2].detach().cpu(), size=size, mode="bilinear")


def _compare_runs(
    session: ort.InferenceSession, path: Path, runs: Sequence[tuple[Tensor, int, Outputs]], tolerance: float
) -> ExportCheckRecord:
    """The record of runs, each of images in batches of a size, with torch's outputs; without what they were run on."""
    _, _, first = runs[0]
    totals = {name: OutputDifference(decided_by(value)) for name, value in first.items()}
    shares = []
    for images, size, expected in runs:
        own = {name: OutputDifference(total.kind) for name, total in totals.items()}
        done = 0
        for outputs in iterate_outputs(session, path, images, size, list(expected)):
            count = len(next(iter(outputs.values())))
            for name, found in outputs.items():
                wanted = expected[name][done : done + count]
                _require_finite_and_same_shape(path, wanted, found)
                totals[name].add(found, wanted)
                own[name].add(found, wanted)
            done += count
        shares.append(first_deciding(own.values()).agreement)
    worst = max(totals.values(), key=lambda each: each.relative)
    return ExportCheckRecord(
        max_abs_error=max(worst.errors),
        max_rel_error=worst.relative,
        top1_agreement=min((share for share in shares if share is not None), default=None),
        agreement_of=first_deciding(totals.values()).kind,
        images=0,
        batch_sizes=[],
        tolerance=tolerance,
        outputs=list(totals),
    )


def _require_finite_and_same_shape(path: Path, expected: NDArray[Any], found: NDArray[Any]) -> None:
    if found.shape != expected.shape:
        given, required = list(found.shape), list(expected.shape)
        raise VerificationError(f"{path} gives outputs of shape {given} where torch gives {required}")
    if not np.isfinite(found).all():
        raise VerificationError(f"{path} gives NaN or infinity where torch gives finite outputs")


def _require_within_tolerance(path: Path, record: ExportCheckRecord) -> ExportCheckRecord:
    if record.max_rel_error > record.tolerance:
        agreement = (
            ""
            if record.top1_agreement is None
            else f"; {AGREES.get(record.agreement_of, 'the decision')} agrees on {record.top1_agreement:.1%}"
        )
        raise VerificationError(
            f"{path} does not compute what the torch network computes: outputs differ by up to "
            f"{record.max_abs_error:.3g}, which is {record.max_rel_error:.3g} of the largest output where "
            f"{record.tolerance:.3g} is allowed{agreement} of {record.images} images"
        )
    return record
