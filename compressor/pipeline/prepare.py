"""TODO docstring."""

import copy
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.data.images import MAX_IMAGES, ImageSet, from_batches
from compressor.errors import InputError
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.labels import require_labelled
from compressor.files import check_folder
from compressor.network.attention import open_attention
from compressor.network.layers import find_layers
from compressor.pipeline.image_splits import divide_images, divide_training, require_trainable, split_validation
from compressor.pipeline.settings import Settings, require_compatible
from compressor.pipeline.stages.export import OUTPUTS
from compressor.pipeline.state import Job, Source
from compressor.progress import Progress
from compressor.text import first_line
from exporters.onnx import require_opset
from exporters.providers import explain_absence

MAX_TRAIN_IMAGES = 50_000


def prepare(
    model: nn.Module,
    images: ImageSet | Iterable[Any],
    out: str | Path,
    settings: Settings | None,
    source: Source | None,
    progress: Progress | None,
    resume: bool = False,
    train_images: ImageSet | Iterable[Any] | None = None,
) -> Job:
    """The job, with everything checked that can be before long work; arguments and errors as `compress`."""
    began = time.perf_counter()
    settings = settings or Settings()
    image_set = _as_image_set(images, MAX_IMAGES)
    if len(image_set) < 4:
        raise InputError(f"at least 4 images are needed, 2 to search with and 2 to judge, got {len(image_set)}")
    if settings.factors in ("refit", "activation") and not settings.calibration:
        raise InputError(f"{settings.factors} factors are fitted to images: --calibration must be above 0")
    require_labelled(image_set, settings.fidelity)
    require_compatible(settings)
    if absence := explain_absence([settings.provider]):
        raise InputError(f"--provider {settings.provider}: {absence}")
    check_folder(Path(out), keep=OUTPUTS if resume else ())
    calibration, search_images, test_images = divide_images(image_set, settings)
    training = None
    if settings.tune.epochs:
        given = None if train_images is None else _as_image_set(train_images, MAX_TRAIN_IMAGES)
        training = divide_training(given, calibration, search_images, test_images, settings.search.seed)
    validation, test_images = split_validation(test_images, settings)
    original = copy.deepcopy(model).eval().requires_grad_(False).to(_device(settings.device))
    example = search_images.batch([0]).to(settings.device)
    _require_input_fits(original, example)
    original = open_attention(original, example)
    if settings.opset is not None:
        require_opset(original, example, settings.opset)  # now, rather than after the search
    if training:
        require_trainable(training, settings.tune.by, original, example)
    layers = find_layers(
        original,
        example,
        settings.method,
        settings.layers,
        settings.skip,
        source.arch if source else "",
    )
    return Job(
        original=original,
        calibration=calibration,
        search_images=search_images,
        test_images=test_images,
        layers=layers,
        folder=Path(out),
        settings=settings,
        source=source or Source(type(model).__name__, command="compressor.compress(...)"),
        progress=progress or Progress(),
        began=began,
        validation=validation,
        training=training,
        resume=resume,
    )


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


def function_norm(job: Job) -> FunctionNorm:
    """The function norm on the images that search and choices of factors may see."""
    with job.progress.stage("outputs of the original"):
        return FunctionNorm(job.original, job.search_images, job.device)
