"""Images of a folder beyond those that are held in memory: read for the final test alone, a batch at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from compressor.data.images import VOID, ImageSet
from compressor.data.pixels import Bytes, Deep, UnreadableError, read_images, stack_images, to_bytes
from compressor.data.transforms import Transform

BATCH_SIZE = 64
MIN_BATCH = 2  # fewer have no variance


@dataclass(frozen=True)
class FurtherImages:
    """Files that were not read with the others of their folder.

    Attributes:
        files: in random order.
        classes: the name of each file's class, or None where there are no classes.
        transform: how images are prepared.
        whites: what white is in deep images of the folder, see `to_bytes`.
        masks: of each file, or None where there are none.
        num_classes: that masks may show.
        has_white_masks: whether masks are black and white, white being class 1.
    """

    files: tuple[Path, ...]
    classes: tuple[str, ...] | None
    transform: Transform
    whites: Mapping[str, float]
    masks: tuple[Path, ...] | None = None
    num_classes: int = VOID
    has_white_masks: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def first(self, count: int) -> "FurtherImages":
        """The first `count` of them."""
        classes = None if self.classes is None else self.classes[:count]
        masks = None if self.masks is None else self.masks[:count]
        return replace(self, files=self.files[:count], classes=classes, masks=masks)

    def batches(self, like: ImageSet) -> Iterator[ImageSet]:
        """Yields those that can be read, at least two at a time, labelled as `like`, the images held, is.

        A single image that is left at the end is left out.
        """
        kept: list[int] = []
        pixels: list[Bytes] = []
        for index, image in self._read():
            kept.append(index)
            pixels += to_bytes([image], self.transform.channels, self.whites)
            if len(kept) >= BATCH_SIZE + MIN_BATCH:
                yield self._as_set(kept[:BATCH_SIZE], pixels[:BATCH_SIZE], like)
                kept, pixels = kept[BATCH_SIZE:], pixels[BATCH_SIZE:]
        if len(kept) >= MIN_BATCH:
            yield self._as_set(kept, pixels, like)

    def _read(self) -> Iterator[tuple[int, Bytes | Deep]]:
        """Yields the readable files' indices and pixels."""
        for start in range(0, len(self.files), BATCH_SIZE):
            chunk = self.files[start : start + BATCH_SIZE]
            for index, image in enumerate(read_images(chunk, self.transform), start):
                if not isinstance(image, UnreadableError):
                    yield index, image

    def _as_set(self, kept: list[int], pixels: list[Bytes], like: ImageSet) -> ImageSet:
        labels = None
        if like.labels is not None and like.class_names is not None and self.classes is not None:
            numbers = {name: number for number, name in enumerate(like.class_names)}
            labels = torch.tensor([numbers[self.classes[index]] for index in kept])
        masks = None if like.masks is None else self._masks_of(kept, like.masks)
        return replace(
            like, held=stack_images(pixels), chosen=None, labels=labels, files=None, further=None, masks=masks
        )

    def _masks_of(self, kept: list[int], like: torch.Tensor) -> torch.Tensor:
        """Masks (n, H, W) of the files; of those that cannot be read, or show other classes, all pixels are void."""
        from compressor.data.masks import read_masks  # which reads folders, and these hold what is further

        assert self.masks is not None
        files, masks = ([each[index] for index in kept] for each in (self.files, self.masks))
        read = read_masks(masks, files, self.transform)
        void = torch.full_like(like[0], VOID)
        usable = (self._as_held(mask) if isinstance(mask, torch.Tensor) else None for mask in read)
        return torch.stack([void if mask is None else mask for mask in usable])

    def _as_held(self, mask: torch.Tensor) -> torch.Tensor | None:
        """A mask numbered as those of the images held are; None where it shows other classes."""
        mask = mask.clamp_max(1) if self.has_white_masks else mask
        return None if ((mask >= self.num_classes) & (mask != VOID)).any() else mask
