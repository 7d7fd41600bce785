"""Sets of images for networks.

Images from folders and synthetic ones are stored as bytes, in a quarter of the memory, and normalized batch by batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.errors import InputError
from compressor.process.memory import at_once

OnStep = Callable[[int, int], None]
"""Called with the number of images done and of all."""
Indices = slice | Tensor | Sequence[int]
Array = NDArray[np.float32]

VOID = 255  # in masks, a pixel without a class
MAX_IMAGES = 1500  # of a run, by default
MAX_BATCH_NUMBERS = 10**6  # of a batch's inputs; activations are several times as many


class Unread(Protocol):
    """Images that are not held in memory (see `compressor.data.further`)."""

    def __len__(self) -> int: ...

    def first(self, count: int) -> "Unread":
        """The first `count` of them."""

    def batches(self, like: "ImageSet") -> Iterator["ImageSet"]:
        """Yields those that can be read, labelled as `like` is."""


@dataclass(frozen=True)
class ImageSet:
    """Inputs of a network, with labels where they are known.

    Attributes:
        held: uint8 of shape (M, C, H, W), or clips (M, C, T, H, W), to be normalized by `mean` and `std`, or the
            network's inputs as float32 of shape (M, ...), with `mean` and `std` empty; shared by the sets that a set
            is divided into.
        source: one line on where the images come from.
        mean: per channel, of pixels scaled to [0, 1].
        std: likewise.
        labels: int64 of shape (N,), or None.
        class_names: the names of the labels 0, 1, ..., or None.
        unreadable: files that were skipped because they could not be decoded.
        synthetic: whether they are generated, and not images of the network's task.
        files: each image's path below the folder it comes from, or None where the images are not files.
        label_note: why there are no labels, in words; empty where there are, or where nothing is known of it.
        notes: what a person should know of the images, one sentence each.
        other_order: the label that each class has if classes are numbered in the other usual order, see
            `compressor.data.labels`; None where there is no other.
        further: images of the same folder that are not held in memory.
        masks: uint8 of shape (N, H, W), the class of every pixel or VOID; None where there are none.
        boxes: of each image rows (n, 6): left, top, right and bottom in pixels of the input, the label, and 1 where
            detections count neither as right nor as wrong, else 0; None where there are none.
        chosen: int64 of shape (N,), which of those held are the set's; None for all, in their order.
        channels_last: whether batches of images lie channels last in memory (see `compressor.network.acceleration`).
    """

    held: Tensor
    source: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    labels: Tensor | None = None
    class_names: list[str] | None = None
    unreadable: int = 0
    synthetic: bool = False
    files: list[str] | None = None
    label_note: str = ""
    notes: tuple[str, ...] = ()
    other_order: tuple[int, ...] | None = None
    further: "Unread | None" = None
    masks: Tensor | None = None
    boxes: tuple[Tensor, ...] | None = None
    chosen: Tensor | None = None
    channels_last: bool = False

    def __len__(self) -> int:
        return len(self.held if self.chosen is None else self.chosen)

    def __getstate__(self) -> dict[str, object]:
        """Other processes are sent the set's images alone."""
        return self.__dict__ | {"held": self.data, "chosen": None}

    @property
    def data(self) -> Tensor:
        """The set's images as they are held, (N, ...): a copy where they were chosen."""
        return self.held if self.chosen is None else self.held[self.chosen]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.held.shape[1:])

    def fitting(self, most: int) -> int:
        """How many images a forward pass takes at once: `most`, or fewer where they are large."""
        return max(1, min(most, at_once(MAX_BATCH_NUMBERS) // max(1, prod(self.input_shape))))

    def batch(self, indices: Indices) -> Tensor:
        """The inputs at `indices`: float32 of shape (n, *input_shape), normalized for the network."""
        places = self._places(indices)
        chosen = self.held[places]
        if self.channels_last:
            chosen = chosen.contiguous(memory_format=torch.channels_last)
        if not self.mean:
            return chosen.clone() if isinstance(places, slice) else chosen  # networks may work in place
        mean, std = (torch.tensor(values).view(-1, *[1] * (chosen.dim() - 2)) for values in (self.mean, self.std))
        return chosen.float().div_(255).sub_(mean).div_(std)

    def subset(self, indices: Indices) -> "ImageSet":
        """The set of the images at `indices`, in that order."""
        index = torch.arange(len(self))[as_index(indices)]
        chosen = index if self.chosen is None else self.chosen[index]
        labels = None if self.labels is None else self.labels[index]
        masks = None if self.masks is None else self.masks[index]
        files = None if self.files is None else [self.files[i] for i in index.tolist()]
        boxes = None if self.boxes is None else tuple(self.boxes[i] for i in index.tolist())
        return replace(self, chosen=chosen, labels=labels, files=files, masks=masks, boxes=boxes)

    def _places(self, indices: Indices) -> slice | Tensor:
        """Where the images at `indices` are held."""
        index = as_index(indices)
        return index if self.chosen is None else self.chosen[index]

    def without_labels(self, reason: str) -> "ImageSet":
        """The same images, with the reason why their labels, or masks, are not used."""
        return replace(self, labels=None, masks=None, boxes=None, class_names=None, label_note=reason, other_order=None)

    def renumbered(self) -> "ImageSet":
        """The same images with classes numbered in the other usual order.

        Raises:
            ValueError: there is none.
        """
        if self.labels is None or self.class_names is None or self.other_order is None:
            raise ValueError("there is no other order of the classes")
        order = torch.tensor(self.other_order)
        names = [self.class_names[label] for label in order.argsort().tolist()]
        back = tuple(order.argsort().tolist())
        return replace(self, labels=order[self.labels], class_names=names, other_order=back)

    def split(self, first: int, seed: int) -> tuple["ImageSet", "ImageSet"]:
        """A random partition into a set of `first` images and the rest.

        Raises:
            InputError: there are fewer than `first` images.
        """
        if not 0 <= first <= len(self):
            raise InputError(f"{first} images were asked for, but there are {len(self)} ({self.source})")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[:first]), self.subset(order[first:])


def as_index(indices: Indices) -> slice | Tensor:
    """`indices` as something that indexes tensors, also for an empty list."""
    if isinstance(indices, slice | Tensor):
        return indices
    return torch.tensor(list(indices), dtype=torch.int64)
