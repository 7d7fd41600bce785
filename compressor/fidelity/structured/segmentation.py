"""Classes of pixels: mean IoU and pixel accuracy of two networks, with the interval of the change.

Mean IoU is the mean over the classes that the masks show, of all images' intersections over all their unions. It is no
mean over images, but to first order it changes with every image by a sum over its pixels (the delta method), which
gives the interval of a change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.fidelity.decisions import decide
from compressor.fidelity.records import ChangeRecord, ClassRecord, SegmentationRecord
from compressor.outputs.rows import RowView
from compressor.outputs.structure import Output
from compressor.schema import Pair

DEVIATIONS = 1.96  # of a normal distribution: 95 % lie within

Counts = NDArray[np.float64]


def class_map(view: RowView | None, size: Sequence[int], has_masks: bool) -> Output | None:
    """The output that gives a class to every pixel of images (height, width); None where there is none.

    That is the map named "out", as torchvision's networks have it, or where masks are given the first map as large as
    the images.
    """
    maps = [] if view is None else [each for each in view.outputs if each.is_float and len(each.shape) == 3]
    full = [each for each in maps if each.shape[1:] == tuple(size)]
    named = [each for each in full if each.name == "out"]
    return next(iter(named or (full if has_masks else [])), None)


@dataclass
class Confusion:
    """Intersections and unions (n, classes) of a network's classes with the masks', image by image."""

    intersections: list[Counts] = field(default_factory=list)
    unions: list[Counts] = field(default_factory=list)
    shown: list[Counts] = field(default_factory=list)

    def add(self, decided: Tensor, masks: Tensor, num_classes: int) -> None:
        """Add images: classes (n, H, W) by the network, and by the masks, where others than 0, 1, ... are void."""
        for mine, mask in zip(decided.flatten(1), masks.long().to(decided.device).flatten(1), strict=True):
            valid = mask < num_classes
            cells = torch.bincount(mask[valid] * num_classes + mine[valid], minlength=num_classes**2)
            table = cells.reshape(num_classes, num_classes).double().cpu().numpy()
            self.intersections.append(np.diagonal(table).copy())
            self.shown.append(table.sum(1))
            self.unions.append(table.sum(0) + table.sum(1) - np.diagonal(table))

    @property
    def ious(self) -> Counts:
        """Intersection over union of each class (classes,), over all images; not a number where it is not shown."""
        shown, unions = np.sum(self.shown, axis=0), np.sum(self.unions, axis=0)
        return np.where(shown > 0, np.sum(self.intersections, axis=0) / np.maximum(unions, 1), np.nan)

    @property
    def mean_iou(self) -> float:
        """Over the classes that the masks show."""
        return float(np.nanmean(self.ious))

    @property
    def accuracy(self) -> float:
        """The share of pixels, void ones aside, whose class is right."""
        return float(np.sum(self.intersections) / np.sum(self.shown))

    @property
    def has_classes(self) -> bool:
        """Whether any pixel has a class."""
        return bool(np.sum(self.shown) > 0)

    def influences(self) -> Counts:
        """By how much every image (n,) moves mean IoU: n times its share in a first-order change; the mean is zero."""
        ious, unions = self.ious, np.maximum(np.sum(self.unions, axis=0), 1)
        moves = (np.array(self.intersections) - np.nan_to_num(ious) * np.array(self.unions)) / unions
        return np.asarray(len(moves) * moves[:, ~np.isnan(ious)].mean(1))


def changes(before: Confusion, after: Confusion) -> Counts:
    """A number for each image (n,), whose mean is the change of mean IoU and whose scatter gives its error."""
    return after.mean_iou - before.mean_iou + after.influences() - before.influences()


class PixelEvaluation:
    """Classes of pixels by two networks, added up batch by batch.

    Args:
        output: that gives them.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._num_classes = max(2, output.shape[0])
        self._before, self._after = Confusion(), Confusion()
        self._same = self._pixels = self._images = 0

    def add(self, targets: Mapping[str, Tensor], outputs: Mapping[str, Tensor], masks: Tensor | None) -> None:
        """Add the original's outputs (n, ...) by name, the network's, and masks (n, H, W) where there are any."""
        before, after = (decide(each[self._output.name]) for each in (targets, outputs))
        self._same += int((before == after).sum())
        self._pixels += before.numel()
        self._images += len(before)
        if masks is not None:
            self._before.add(before, masks, self._num_classes)
            self._after.add(after, masks, self._num_classes)

    def record(self, class_names: Sequence[str] | None) -> SegmentationRecord:
        """The record; names of the classes are their numbers where they are not known."""
        record = SegmentationRecord(
            output=self._output.name, images=self._images, pixel_agreement=self._same / max(1, self._pixels)
        )
        if not self._before.has_classes:
            return record
        each = changes(self._before, self._after)
        change, error = float(each.mean()), DEVIATIONS * float(each.std(ddof=1)) / len(each) ** 0.5
        names = class_names if class_names and len(class_names) == self._num_classes else range(self._num_classes)
        ious = zip(names, self._before.ious, self._after.ious, strict=True)
        found = {
            "mean_iou": _pair(self._before.mean_iou, self._after.mean_iou),
            "pixel_accuracy": _pair(self._before.accuracy, self._after.accuracy),
            "change": ChangeRecord(change=change, low=change - error, high=change + error),
            "classes": [
                ClassRecord(name=str(name), iou=_pair(one, two)) for name, one, two in ious if not np.isnan(one)
            ],
        }
        return record.model_copy(update=found)


def _pair(before: float, after: float) -> Pair[float]:
    return Pair[float](original=float(before), compressed=float(after))
