"""Everything that can be checked and divided before long work."""

import copy
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.data.batches import from_batches
from compressor.data.images import MAX_IMAGES, ImageSet
from compressor.errors import InputError
from compressor.fidelity.labels import require_labelled
from compressor.files import check_folder
from compressor.network.attention import open_attention
from compressor.network.layers import find_layers
from compressor.pipeline.context import Context, Source
from compressor.pipeline.image_splits import (
    TrainingImages,
    divide_images,
    divide_training,
    require_trainable,
    split_validation,
)
from compressor.pipeline.outputs import OUTPUTS, remove_outputs, require_replaceable
from compressor.pipeline.settings import Settings, require_compatible
from compressor.progress import Progress
from compressor.search.evaluation.parallel import Workers
from compressor.text import first_line
from exporters.onnx import require_opset
from exporters.providers import explain_absence

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
    if overwrite:
        require_replaceable(Path(out))
    else:
        check_folder(Path(out), keep=OUTPUTS if resume else ())
    calibration, search_images, outside = divide_images(image_set, settings)
    training = None
    if settings.tune.epochs:
        given = None if train_images is None else _as_image_set(train_images, MAX_TRAIN_IMAGES)
        training = divide_training(given, calibration, search_images, outside, settings.search.seed)
    validation, test_images = split_validation(outside, settings)
    source = source or Source(type(model).__name__, command="compressor.compress(...)")
    original = copy.deepcopy(model).eval().requires_grad_(False).to(_device(settings.device))
    original = _opened(original, search_images, training, settings)
    example = search_images.batch([0]).to(settings.device)
    layers = find_layers(original, example, settings.method, settings.layers, settings.skip, source.arch)
    if overwrite:
        remove_outputs(Path(out))
    return Context(
        original=original,
        layers=layers,
        calibration=calibration,
        search_images=search_images,
        test_images=test_images,
        folder=Path(out),
        settings=settings,
        source=source,
        progress=progress or Progress(),
        began=began,
        validation=validation,
        training=training,
        resume=resume,
    )


def _require_usable(images: ImageSet, settings: Settings) -> None:
    if len(images) < 4:
        raise InputError(f"at least 4 images are needed, 2 to search with and 2 to test on, got {len(images)}")
    if settings.factors in ("refit", "activation") and not settings.calibration:
        raise InputError(f"{settings.factors} factors are fitted to images: --calibration must be above 0")
    require_labelled(images, settings.fidelity)
    require_compatible(settings)
    Workers(settings.workers, settings.backend)  # raises where joblib has no such backend
    if absence := explain_absence([settings.provider]):
        raise InputError(f"--provider {settings.provider}: {absence}")


def _opened(original: nn.Module, images: ImageSet, training: TrainingImages | None, settings: Settings) -> nn.Module:
    """The original with its attention opened to compression; it takes the images, and can be exported and trained."""
    example = images.batch([0]).to(settings.device)
    _require_input_fits(original, example)
    original = open_attention(original, example)
    if settings.opset is not None:
        require_opset(original, example, settings.opset)  # now, rather than after the search
    if training:
        require_trainable(training, settings.tune.by, original, example)
    return original


def _as_image_set(images: ImageSet | Iterable[Any], limit: int) -> ImageSet:
    return images if isinstance(images, ImageSet) else from_batches(images, limit)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        gpu = "a GPU is there" if torch.cuda.is_available() else "torch sees no GPU"
        raise InputError(f"the device {name!r} cannot be used here ({gpu}): use cpu, cuda or cuda:1") from error
    return device


def _require_input_fits(model: nn.Module, example: Tensor) -> None:
    try:
        with torch.inference_mode():
            model(example)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        shape = " x ".join(map(str, example.shape))
        reason = first_line(error)
        raise InputError(f"the network cannot take inputs of shape {shape} ({reason}): see --input-size") from error
