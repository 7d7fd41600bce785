"""How the images are divided: for calibration, the search, validation, training, and tests, which see nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256

import torch
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.fidelity.labels import misfit
from compressor.pipeline.settings import Settings
from compressor.recovery.records import TuneTarget

MAX_CALIBRATION_SHARE = 0.3  # of all images
MIN_CALIBRATION_IMAGES = 8
MAX_SEARCH_IMAGES = 500
MAX_SEARCH_IMAGES_OF_RISK = 2000  # a risk varies more from image to image than the function norm
VALIDATION_SHARE = 2 / 3  # of the images outside the search, where a drop is asked for; the others are the test images

CHECK_SHARE = 0.2  # of the images, where none are given for training alone
MAX_CHECK_IMAGES = 500
MIN_TRAIN_IMAGES = 8


@dataclass(frozen=True)
class TrainingImages:
    """Images to train on, and others that say which epoch is kept; `excluded` were given but are among these."""

    train: ImageSet
    check: ImageSet
    excluded: int = 0


def divide_training(
    given: ImageSet | None, calibration: ImageSet, search: ImageSet, test_images: ImageSet, seed: int
) -> TrainingImages:
    """What to tune on: the images `given` for it, checked on the search's, or all but the test images.

    An image that is given for training and is a test or check image, too, is left out of the training.

    Args:
        given: images to train on; None for those of the run.
        calibration: images that factors are fitted to.
        search: images that the search evaluates on.
        test_images: those of the report.
        seed: of the random division.

    Raises:
        InputError: there are no images of a task, or too few.
    """
    if given is None:
        if search.synthetic:
            raise InputError(
                "--finetune needs images of the task: give --data or --train-data (synthetic images teach nothing)"
            )
        images = join(calibration, search) if len(calibration) else search
        check, train = images.split(min(MAX_CHECK_IMAGES, int(CHECK_SHARE * len(images))), seed)
    elif search.synthetic:
        check, train = given.split(min(MAX_CHECK_IMAGES, int(CHECK_SHARE * len(given))), seed)
    else:
        check, train = search, without(given, join(search, test_images))
    if len(train) < MIN_TRAIN_IMAGES or len(check) < 2:
        raise InputError(f"{len(train)} images are left to train on, of {MIN_TRAIN_IMAGES} at least: give more images")
    excluded = 0 if given is None or search.synthetic else len(given) - len(train)
    return TrainingImages(train, check, excluded)


def require_trainable(images: TrainingImages, by: TuneTarget, model: nn.Module, example: Tensor) -> None:
    """Check that a network can be trained on the images.

    Args:
        images: to train on.
        by: what is to be learnt, the labels or the original's outputs.
        model: the network.
        example: one input (1, ...) of it.

    Raises:
        InputError: the network does not take the images, or they lack the labels that are to be learnt.
    """
    if images.train.input_shape != tuple(example.shape[1:]):
        shapes = (" x ".join(map(str, shape)) for shape in (images.train.input_shape, example.shape[1:]))
        raise InputError("the images to train on are {}, the others {}".format(*shapes))
    if by == "labels":
        with torch.inference_mode():
            num_outputs = model(example).reshape(len(example), -1).shape[1]
        _require_labels(images, num_outputs)


def _require_labels(images: TrainingImages, num_outputs: int) -> None:
    for part in (images.train, images.check):
        if part.masks is not None or part.boxes is not None:
            what = "boxes" if part.masks is None else "masks"
            raise InputError(
                f"--finetune-by labels learns one class for each image, and these have {what}: --finetune-by teacher "
                "learns the original's outputs instead"
            )
        if part.labels is None:
            raise InputError(f"--finetune-by labels: no labels ({part.source}): --finetune-by teacher needs none")
        why = misfit(part, num_outputs)
        if why:
            raise InputError(f"--finetune-by labels: {why} ({part.source}): --finetune-by teacher needs no labels")
    if images.train.class_names != images.check.class_names:
        raise InputError("--finetune-by labels: the class folders of --train-data and --data have different names")


def join(first: ImageSet, second: ImageSet) -> ImageSet:
    """Both sets, one after the other; with labels where both have them."""
    labels = None
    if first.labels is not None and second.labels is not None:
        labels = torch.cat([first.labels, second.labels])
    masks = None
    if first.masks is not None and second.masks is not None:
        masks = torch.cat([first.masks, second.masks])
    files = None if first.files is None or second.files is None else [*first.files, *second.files]
    boxes = None if first.boxes is None or second.boxes is None else (*first.boxes, *second.boxes)
    found = replace(first, labels=labels, files=files, masks=masks, boxes=boxes)
    if first.held is second.held and first.chosen is not None and second.chosen is not None:
        return replace(found, chosen=torch.cat([first.chosen, second.chosen]))
    return replace(found, held=torch.cat([first.data, second.data]), chosen=None)


def without(images: ImageSet, others: ImageSet) -> ImageSet:
    """The images that are not, to the pixel, among `others`."""
    known = set(_contents(others))
    return images.subset([index for index, content in enumerate(_contents(images)) if content not in known])


def _contents(images: ImageSet) -> Iterator[bytes]:
    """Yields every image's digest."""
    places = range(len(images)) if images.chosen is None else images.chosen.tolist()
    return (sha256(images.held[place].numpy().tobytes()).digest() for place in places)


def divide_images(images: ImageSet, settings: Settings) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Images to fit factors on, to search with, and outside both, which keep those not held in memory."""
    num_calibration = min(settings.num_calibration, int(MAX_CALIBRATION_SHARE * len(images)))
    if num_calibration < MIN_CALIBRATION_IMAGES:
        num_calibration = 0
    calibration, others = images.split(num_calibration, settings.search.seed)
    limit = MAX_SEARCH_IMAGES if settings.fidelity == "norm" else MAX_SEARCH_IMAGES_OF_RISK
    search_images, test_images = others.split(min(limit, len(others) // 2), settings.search.seed)
    return replace(calibration, further=None), replace(search_images, further=None), test_images


def split_validation(test_images: ImageSet, settings: Settings) -> tuple[ImageSet | None, ImageSet]:
    """Validation images, where a drop is asked for, and test images.

    Args:
        test_images: all outside the search.
        settings: target and seed.

    Raises:
        InputError: a drop is asked for, and there are too few images to divide.
    """
    if settings.target is None or settings.target.kind != "drop":
        return None, test_images
    if len(test_images) < 4:
        raise InputError("--max-drop needs more images: to search, to validate and to test")
    validation, test_images = test_images.split(int(VALIDATION_SHARE * len(test_images)), settings.search.seed)
    return replace(validation, further=None), test_images
