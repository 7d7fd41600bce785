"""Masks and boxes that fit what the original says of its images, by which accuracies and drops are measured."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from compressor.data.images import VOID, ImageSet
from compressor.fidelity.decisions import decide
from compressor.fidelity.structured.detection import detect_all
from compressor.fidelity.structured.outputs import run_whole
from compressor.fidelity.structured.precision import MatchedDetections, can_be_measured
from compressor.fidelity.structured.segmentation import Confusion
from compressor.network.detection.raw import RawDetector
from compressor.outputs.rows import whole
from compressor.outputs.structure import Output

CHECKED_IMAGES = 64


def tells_accuracy(images: ImageSet) -> bool:
    """Whether an accuracy can be measured on the images: by labels, masks, or boxes and pycocotools."""
    return images.labels is not None or images.masks is not None or (images.boxes is not None and can_be_measured())


def check_boxes(original: RawDetector, images: ImageSet, device: torch.device) -> ImageSet:
    """The images, without their boxes where these are not of what the network detects.

    The original's detections in a few images are held against their boxes, and against those of other images: where
    their own fit no better, categories are in another order, or the images prepared otherwise.

    Args:
        original: the detector, on the device.
        images: with boxes.
        device: where it runs.
    """
    assert images.boxes is not None
    some = images.subset(range(min(CHECKED_IMAGES, len(images))))
    boxes: Sequence[Tensor] = some.boxes or ()
    if not any(len(each) for each in boxes):
        return _dropped(images, "boxes", "there are none in these images")
    found = list(detect_all(original, some, device))
    own, others = (MatchedDetections(each, found) for each in (boxes, [*boxes[1:], boxes[0]]))
    if own.average_precision_50 > others.average_precision_50 or len(some) < 2:
        return images
    return _dropped(
        images,
        "boxes",
        f"the original's average precision at an IoU of 0.5 is {own.average_precision_50:.1%} by them, and "
        f"{others.average_precision_50:.1%} by those of other images: their categories may be in another order than "
        "its classes",
    )


def check_masks(original: nn.Module, output: Output | None, images: ImageSet, device: torch.device) -> ImageSet:
    """The images, without their masks where these are not of the network's pixels.

    Each of a few images' masks is held against the original's classes, and so is that of another image: where its own
    fits no better, the classes are in another order, or the images prepared otherwise.

    Args:
        original: the network, on the device.
        output: that gives classes to pixels; None where none does.
        images: with masks.
        device: where it runs.
    """
    assert images.masks is not None
    if output is None:
        return _dropped(images, "masks", "the network gives no map of classes as large as its input")
    highest = int(images.masks[images.masks != VOID].max()) if bool((images.masks != VOID).any()) else 0
    if highest >= max(2, output.shape[0]):
        return _dropped(
            images, "masks", f"they have classes up to {highest}, and the network {output.shape[0]}, from 0 on"
        )
    some = images.subset(range(min(CHECKED_IMAGES, len(images))))
    assert some.masks is not None
    own, others = Confusion(), Confusion()
    shifted = some.masks.roll(1, 0)
    for indices, tensors in run_whole(whole(original), some, device):
        decided = decide(tensors[output.name])
        own.add(decided, some.masks[indices], max(2, output.shape[0]))
        others.add(decided, shifted[indices], max(2, output.shape[0]))
    if not own.has_classes:
        return _dropped(images, "masks", "all their pixels are void")
    if own.accuracy > others.accuracy or torch.equal(shifted, some.masks):
        return images
    return _dropped(
        images,
        "masks",
        f"the original is right at {own.accuracy:.1%} of their pixels, and at {others.accuracy:.1%} with each image's "
        "mask exchanged for another's: their classes may be in another order than its outputs",
    )


def _dropped(images: ImageSet, what: str, reason: str) -> ImageSet:
    return replace(images, notes=(*images.notes, f"{what} are not used: {reason}")).without_labels(reason)
