"""Everything that can be checked and divided before long work."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compressor.data.batches import from_batches
from compressor.data.images import MAX_IMAGES, ImageSet
from compressor.errors import InputError
from compressor.failures import blaming
from compressor.fidelity.accuracy_drop import DropCurve, Measurement
from compressor.fidelity.label_check import LabelCheck, check_labels
from compressor.fidelity.labels import require_labelled
from compressor.fidelity.structured.detection import detector_of
from compressor.fidelity.structured.outputs import give_rows
from compressor.fidelity.structured.precision import can_be_measured
from compressor.fidelity.structured.segmentation import class_map
from compressor.fidelity.structured.truth import check_boxes, check_masks, tells_accuracy
from compressor.files import check_folder
from compressor.network.acceleration.memory_format import in_faster_format
from compressor.network.attention import open_attention
from compressor.network.detection.proposals import with_proposals
from compressor.network.inputs import of_one_input
from compressor.network.layers import find_layers
from compressor.network.surgery import frozen_copy
from compressor.outputs.auxiliary import drop_auxiliary
from compressor.outputs.rows import view_of
from compressor.outputs.structure import find_outputs
from compressor.pipeline.context import Context, Source
from compressor.pipeline.delivery.interface import require_pixels
from compressor.pipeline.image_splits import (
    TrainingImages,
    divide_images,
    divide_training,
    join,
    require_trainable,
    split_validation,
)
from compressor.pipeline.outputs import OUTPUTS, prepare_resumption, remove_outputs, require_replaceable
from compressor.pipeline.settings import Settings, require_compatible
from compressor.progress import Progress
from compressor.report.verdict import at_least
from compressor.search.evaluation.parallel import Workers
from compressor.text import join_words, well_formed
from exporters.providers import explain_absence
from exporters.verify import require_opset

MAX_TRAIN_IMAGES = 50_000


def prepare(  # noqa: PLR0913
    model: nn.Module,
    images: ImageSet | Iterable[Any],
    out: str | Path,
    settings: Settings,
    source: Source | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    train_images: ImageSet | Iterable[Any] | None = None,
    overwrite: bool = False,
) -> Context:
    """What stages read, from the arguments of `compress` (which are as many as these; errors as there)."""
    began = time.perf_counter()
    image_set = _as_image_set(images, MAX_IMAGES)
    _require_usable(image_set, settings)
    _require_folder(Path(out), resume, overwrite)
    parts = divide_images(image_set, settings)
    device = usable_device(settings.device)
    original = _copied(model, device)
    progress = progress or Progress()
    original = _with_rows(_without_aux(original, settings, progress), parts[1], settings)
    laid_out = in_faster_format(parts, original, device)
    checked = _check_labels(original, join(*laid_out[:2]), settings, progress)
    calibration, search_images, outside = _check_truth(original, [checked.apply(part) for part in laid_out], progress)
    parts = calibration, search_images, outside
    training = _training_images(original, train_images, parts, settings, progress)
    validation, test_images = split_validation(outside, settings)
    _require_enough_images(settings, search_images, validation)
    source = source or Source(type(model).__name__, command="compressor.compress(...)")
    original = _opened(original, search_images, training, settings)
    example = search_images.batch([0]).to(settings.device)
    layers = find_layers(original, example, settings.method, settings.layers, settings.skip, source.arch)
    if overwrite:
        remove_outputs(Path(out))
    prepare_resumption(Path(out))
    return Context(
        original=original,
        layers=layers,
        calibration=calibration,
        search_images=search_images,
        test_images=test_images,
        folder=Path(out),
        settings=settings,
        source=source,
        progress=progress,
        began=began,
        validation=validation,
        training=training,
        resume=resume,
    )


def _training_images(
    original: nn.Module,
    given: ImageSet | Iterable[Any] | None,
    parts: tuple[ImageSet, ImageSet, ImageSet],
    settings: Settings,
    progress: Progress,
) -> TrainingImages | None:
    """What fine-tuning trains on: the images given for it, or the run's `parts`; None where nothing is tuned."""
    if not settings.tune.epochs:
        return None
    read = None if given is None else _training_set(original, given, settings, progress)
    return divide_training(read, *parts, settings.search.seed)


def _copied(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of the network that is ready for inference, on the device; where that is the CPU, with the same numbers.

    Raises:
        InputError: it cannot be copied, as scripted and half-made ones, or has names that no file can hold.
    """
    with blaming(lambda reason: InputError(f"the network cannot be copied to {device} ({reason})")):
        if isinstance(model, torch.jit.ScriptModule):
            raise TypeError("it is scripted, give the module that it was scripted from")
        strange = [name for name in model.state_dict() if well_formed(name) != name]
        original = with_proposals(of_one_input(frozen_copy(model)).eval()).to(device)
    if strange:
        raise InputError(f"the network's parameter {strange[0]!r} has a name that is not Unicode")
    return original


def _without_aux(original: nn.Module, settings: Settings, progress: Progress) -> nn.Module:
    names = [] if settings.keep_aux else drop_auxiliary(original)
    if names:
        progress.log(f"note: {join_words(names)} was for training alone and is left out: --keep-aux keeps it")
    return original


def _with_rows(original: nn.Module, images: ImageSet, settings: Settings) -> nn.Module:
    """The original, returning rows of numbers where its outputs are of another structure than one matrix."""
    device = torch.device(settings.device)
    outputs = find_outputs(original, images.batch([0]).to(device))
    return give_rows(original, outputs, images, device, dict(settings.output_weights), settings.search.seed)


def _require_usable(images: ImageSet, settings: Settings) -> None:
    if len(images) < 4:
        raise InputError(f"at least 4 images are needed, 2 to search with and 2 to test on, got {len(images)}")
    require_labelled(images, settings.fidelity)
    if settings.normalize == "in-graph":
        require_pixels(images)
    require_compatible(settings)
    Workers(settings.workers, settings.backend, cluster=settings.cluster)  # raises where there is no such backend
    if absence := explain_absence([settings.provider]):
        raise InputError(f"--provider {settings.provider}: {absence}")


def _require_folder(out: Path, resume: bool, overwrite: bool) -> None:
    if overwrite:
        require_replaceable(out)
    else:
        check_folder(out, keep=OUTPUTS if resume else ())


def _require_enough_images(settings: Settings, search_images: ImageSet, validation: ImageSet | None) -> None:
    """Refuse a drop that labelled images are too few to tell from none, before minutes of search."""
    if settings.target is None or validation is None or not tells_accuracy(search_images):
        return
    count = len(search_images) + len(validation)
    unchanged = Measurement(1.0, np.zeros(count))
    smallest = DropCurve([unchanged], labelled=True).at_most(unchanged.loss)
    if settings.target.value < smallest:
        raise InputError(
            f"--max-drop {settings.target.value:g} needs more labelled images: with the {count} for search and "
            f"validation, even a network that changes no decision is only known to lose at most {smallest:.2g} points; "
            f"give more, or allow --max-drop {at_least(smallest)}"
        )


def _training_set(
    original: nn.Module, images: ImageSet | Iterable[Any], settings: Settings, progress: Progress
) -> ImageSet:
    """Images given for training alone, with their labels checked, too."""
    given = _as_image_set(images, MAX_TRAIN_IMAGES)
    return _check_labels(original, given, settings, progress).apply(given)


def _check_labels(original: nn.Module, images: ImageSet, settings: Settings, progress: Progress) -> LabelCheck:
    """What to do with these images' labels, said at once.

    Raises:
        InputError: they cannot be used, and something needs them.
    """
    if images.labels is None:
        return LabelCheck()
    with progress.stage("checking labels"):
        checked = check_labels(original, images, torch.device(settings.device))
    if checked.note:
        progress.log(f"note: {checked.note}")
    if checked.finding:
        progress.log(checked.finding)
    if checked.reason and settings.fidelity != "norm":
        raise InputError(f"--fidelity {settings.fidelity} needs labels: {checked.reason}; --fidelity norm needs none")
    if checked.reason and settings.tune.epochs and settings.tune.by == "labels":
        raise InputError(f"--finetune-by labels: {checked.reason}; --finetune-by teacher needs no labels")
    return checked


def _check_truth(original: nn.Module, parts: Sequence[ImageSet], progress: Progress) -> list[ImageSet]:
    """The parts, without masks or boxes where these are not of what the network says; said at once."""
    fitted, device, detector = join(*parts[:2]), next(original.parameters()).device, detector_of(original)
    if fitted.masks is not None:
        output = class_map(view_of(original), fitted.input_shape[1:], has_masks=True)
        checked = check_masks(original, output, fitted, device)
    elif fitted.boxes is not None and detector is not None and can_be_measured():
        with progress.stage("checking boxes"):
            checked = check_boxes(detector, fitted, device)
    else:
        return list(parts)
    if checked.masks is not None or checked.boxes is not None:
        return list(parts)
    progress.log(f"note: {checked.notes[-1]}")
    return [replace(part, notes=checked.notes).without_labels(checked.label_note) for part in parts]


def _opened(original: nn.Module, images: ImageSet, training: TrainingImages | None, settings: Settings) -> nn.Module:
    """The original with its attention opened to compression; it takes the images, and can be exported and trained."""
    example = images.batch([0]).to(settings.device)
    original = open_attention(original, example)
    if settings.opset is not None:
        require_opset(original, images.batch(slice(0, 2)), settings.opset)  # now, rather than after the search
    if training:
        require_trainable(training, settings.tune.by, original, example)
    return original


def _as_image_set(images: ImageSet | Iterable[Any], limit: int) -> ImageSet:
    return images if isinstance(images, ImageSet) else from_batches(images, limit)


def usable_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        InputError: torch cannot use it here.
    """
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        gpu = "a GPU is there" if torch.cuda.is_available() else "torch sees no GPU"
        raise InputError(f"the device {name!r} cannot be used here ({gpu}): use cpu, cuda or cuda:1") from error
    return device
