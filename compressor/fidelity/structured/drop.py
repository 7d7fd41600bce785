"""The drop in mean IoU of a compressed network, and masks that fit what the original says of the pixels."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from compressor.data.images import VOID, ImageSet
from compressor.fidelity.accuracy_drop import DropEstimator, Measurement
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.losses import MIN_LOSS
from compressor.fidelity.records import DropUnit
from compressor.fidelity.structured.outputs import run_whole
from compressor.fidelity.structured.segmentation import Confusion, changes, decide_pixels
from compressor.outputs.rows import whole
from compressor.outputs.structure import Output

CHECKED_IMAGES = 64


class MeanIoUDrop(DropEstimator):
    """The drop in points of mean IoU, on images with masks that neither factors nor weights were fitted to.

    Args:
        norms: function norms on one or more sets of these images.
        original: the network before, on `device`.
        output: that gives classes to pixels.
        device: where networks run.
    """

    of: DropUnit = "mean IoU"

    def __init__(
        self, norms: Sequence[FunctionNorm], original: nn.Module, output: Output, device: torch.device
    ) -> None:
        super().__init__(norms)
        self.is_labelled = True
        self._output, self._device = output, device
        self._before = self._run(original)

    def importance_sampled(self, loss: float, seed: int) -> "MeanIoUDrop":
        """This estimator: classes change on every image."""
        return self

    def measure(self, network: nn.Module) -> Measurement:
        """Function norm and drop of a network on these images."""
        losses = [norm.losses(network, np.arange(len(norm.images))).values for norm in self._norms]
        loss = float(np.concatenate(losses).mean())
        return Measurement(max(loss, MIN_LOSS), -100.0 * changes(self._before, self._run(network)))

    def _run(self, network: nn.Module) -> Confusion:
        confusion = Confusion()
        for norm in self._norms:
            assert norm.images.masks is not None
            for indices, tensors in run_whole(whole(network), norm.images, self._device):
                decided = decide_pixels(tensors[self._output.name])
                confusion.add(decided, norm.images.masks[indices], max(2, self._output.shape[0]))
        return confusion


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
        return _dropped(images, "the network gives no map of classes as large as its input")
    highest = int(images.masks[images.masks != VOID].max()) if bool((images.masks != VOID).any()) else 0
    if highest >= max(2, output.shape[0]):
        return _dropped(images, f"they have classes up to {highest}, and the network {output.shape[0]}, from 0 on")
    some = images.subset(range(min(CHECKED_IMAGES, len(images))))
    assert some.masks is not None
    own, others = Confusion(), Confusion()
    shifted = some.masks.roll(1, 0)
    for indices, tensors in run_whole(whole(original), some, device):
        decided = decide_pixels(tensors[output.name])
        own.add(decided, some.masks[indices], max(2, output.shape[0]))
        others.add(decided, shifted[indices], max(2, output.shape[0]))
    if not own.has_classes:
        return _dropped(images, "all their pixels are void")
    if own.accuracy > others.accuracy or torch.equal(shifted, some.masks):
        return images
    return _dropped(
        images,
        f"the original is right at {own.accuracy:.1%} of their pixels, and at {others.accuracy:.1%} with each image's "
        "mask exchanged for another's: their classes may be in another order than its outputs",
    )


def _dropped(images: ImageSet, reason: str) -> ImageSet:
    return replace(images, notes=(*images.notes, f"masks are not used: {reason}")).without_labels(reason)
