"""Images for networks: sets of them, from folders with or without labels or from batches in Python.

Images from folders and synthetic ones are stored as bytes, in a quarter of the memory, and normalized batch by batch.
"""

import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from compressor.data.transforms import Transform
from compressor.errors import InputError

OnStep = Callable[[int, int], None]
"""Called with the number of images done and of all."""
Indices = slice | Tensor | Sequence[int]
Array = NDArray[np.float32]

MAX_IMAGES = 1500  # of a run, by default
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".pnm", ".tif", ".tiff", ".webp", ".avif"}
)
# Entries to ignore: hidden ones, and the resource forks in archives from macOS.
HIDDEN = (".", "__MACOSX")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
DECODING_THREADS = 4


@dataclass(frozen=True)
class ImageSet:
    """Inputs of a network, with labels where they are known.

    Attributes:
        data: uint8 of shape (N, C, H, W) to be normalized by `mean` and `std`, or the network's inputs as float32 of
            shape (N, ...), with `mean` and `std` empty.
        source: one line on where the images come from.
        mean: per channel, of pixels scaled to [0, 1].
        std: likewise.
        labels: int64 of shape (N,), or None.
        class_names: the names of the labels 0, 1, ..., or None.
        unreadable: files that were skipped because they could not be decoded.
        synthetic: whether they are generated, and not images of the network's task.
        files: each image's path below the folder it comes from, or None where the images are not files.
    """

    data: Tensor
    source: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    labels: Tensor | None = None
    class_names: list[str] | None = field(default=None)
    unreadable: int = 0
    synthetic: bool = False
    files: list[str] | None = None

    def __len__(self) -> int:
        return len(self.data)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.data.shape[1:])

    def batch(self, indices: Indices) -> Tensor:
        """The inputs at `indices`: float32 of shape (n, *input_shape), normalized for the network."""
        chosen = self.data[as_index(indices)]
        if not self.mean:
            return chosen
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return chosen.float().div_(255).sub_(mean).div_(std)

    def subset(self, indices: Indices) -> "ImageSet":
        """The set of the images at `indices`, in that order."""
        index = as_index(indices)
        labels = None if self.labels is None else self.labels[index]
        files = None if self.files is None else [self.files[i] for i in torch.arange(len(self))[index].tolist()]
        return replace(self, data=self.data[index], labels=labels, files=files)

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


# --- Folders -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listing:
    """Image files of a folder; `labels` and `class_names` are None where it has no folder per class."""

    files: list[Path]
    labels: list[int] | None
    class_names: list[str] | None


def load_folder(path: Path, transform: Transform, limit: int, seed: int, on_step: OnStep | None = None) -> ImageSet:
    """A random sample of at most `limit` images from a folder.

    Subfolders are classes, labelled in the alphabetical order of their names, if every image lies directly in one of
    at least two subfolders. Otherwise (images at the top, deeper, or at several depths) images at any depth are taken
    without labels. Folders that contain nothing but one folder are skipped. Files that cannot be decoded are left out
    and counted.

    Args:
        path: the folder.
        transform: how images are prepared.
        limit: maximum number of images.
        seed: of the sample.
        on_step: called as images are read.

    Raises:
        InputError: no such folder, no image in it that can be read, or `limit` is less than one.
    """
    if limit < 1:
        raise InputError(f"{limit} images were asked for: at least one is needed")
    path = Path(path)
    listing = list_images(path)
    order = list(range(len(listing.files)))
    random.Random(seed).shuffle(order)
    kept, pixels = read_sample(listing.files, order, transform, limit, on_step)
    if not kept:
        raise InputError(f"none of the {len(order)} image files in {path} can be read")
    labels = None if listing.labels is None else torch.tensor([listing.labels[i] for i in kept])
    tried = order.index(kept[-1]) + 1 if len(kept) == limit else len(order)
    return ImageSet(
        data=torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(),
        source=describe_folder(path, len(kept), listing),
        mean=transform.mean,
        std=transform.std,
        labels=labels,
        class_names=listing.class_names,
        unreadable=tried - len(kept),
        files=[str(listing.files[i].relative_to(path)) for i in kept],
    )


def list_images(path: Path) -> Listing:
    """The image files in a folder, sorted, and their classes if there is a folder for each.

    Raises:
        InputError: not a folder that can be read, or no image files in it.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder" if path.exists() else f"{path} does not exist")
    try:
        root = skip_wrapping_folders(path)
        files = sorted(walk(root, frozenset()))
        folders = sorted(entry.name for entry in visible(root) if entry.is_dir())
    except OSError as error:
        raise InputError(f"cannot read {error.filename or path}: {error.strerror or error}") from error
    if not files:
        raise InputError(f"no image files in {path} ({', '.join(sorted(SUFFIXES))})")
    if len(folders) < 2 or any(file.parent.parent != root for file in files):
        return Listing(files, None, None)
    return Listing(files, [folders.index(file.parent.name) for file in files], folders)


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(HIDDEN)]


def skip_wrapping_folders(folder: Path) -> Path:
    """The first folder on the way down that contains more than a single folder; archives often have such wrappers."""
    seen = set()
    while (identity := identify(folder)) not in seen:
        seen.add(identity)
        entries = visible(folder)
        if len(entries) != 1 or not entries[0].is_dir():
            break
        folder = Path(entries[0].path)
    return folder


def walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Yields image files in a folder and below; links are followed unless they lead back to a folder above."""
    identity = identify(folder)
    if identity in above:
        return
    for entry in visible(folder):
        if entry.is_dir():
            yield from walk(Path(entry.path), above | {identity})
        elif entry.is_file() and Path(entry.name).suffix.lower() in SUFFIXES:
            yield Path(entry.path)


def identify(folder: Path) -> tuple[int, int]:
    """Device and inode, equal for two paths to the same folder."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def read_sample(
    files: list[Path], order: list[int], transform: Transform, limit: int, on_step: OnStep | None
) -> tuple[list[int], list[NDArray[np.uint8]]]:
    """The first `limit` readable files in the given order: their indices, and pixels of shape (H, W, 3)."""
    total = min(limit, len(order))
    kept: list[int] = []
    pixels: list[NDArray[np.uint8]] = []
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        start = 0
        # The next files replace broken ones.
        while len(kept) < total and start < len(order):
            chunk = order[start : start + total - len(kept)]
            start += len(chunk)
            decoded = pool.map(lambda index: read_image(files[index], transform), chunk)
            for index, image in zip(chunk, decoded, strict=True):
                if image is None:
                    continue
                kept.append(index)
                pixels.append(image)
                if on_step:
                    on_step(len(kept), total)
    return kept, pixels


def read_image(file: Path, transform: Transform) -> NDArray[np.uint8] | None:
    """An image file resized and cropped, uint8 of shape (H, W, 3); None if it cannot be decoded."""
    try:
        with Image.open(file) as image:
            return fit_image(as_rgb(ImageOps.exif_transpose(image)), transform)
    except Exception:  # decoders raise any error on broken files
        return None


def as_rgb(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB, 16-bit grey values scaled where Pillow would clip them at 255."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def fit_image(image: Image.Image, transform: Transform) -> NDArray[np.uint8]:
    """The image with its short side resized and its middle cut out, to the pixel as by torchvision's presets.

    Returns:
        uint8 of shape (input_size, input_size, 3).
    """
    size = transform.input_size
    width, height = image.size
    resize = max(transform.resize_size, size)
    # torchvision truncates the long side and rounds the corner.
    long_side = int(resize * max(width, height) / min(width, height))
    width, height = (resize, long_side) if width <= height else (long_side, resize)
    image = image.resize((width, height), FILTERS[transform.interpolation])
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def describe_folder(path: Path, count: int, listing: Listing) -> str:
    """One line on a folder's images."""
    kind = "unlabelled" if listing.class_names is None else f"in {len(listing.class_names)} classes"
    return f"{count} of {len(listing.files)} images in {path}, {kind}"


# --- Batches from Python -----------------------------------------------------------------------------------


def from_batches(batches: Iterable[object], limit: int) -> ImageSet:
    """The first `limit` inputs of batches that are prepared for the network.

    Args:
        batches: tensors of shape (n, ...), or tuples or lists that begin with one, followed by labels if there is a
            one-dimensional tensor of n integers. A single tensor is one batch.
        limit: maximum number of inputs; batches beyond are not iterated.

    Raises:
        InputError: no inputs, something that is not a floating-point tensor, shapes that differ from batch to
            batch, or values that are not finite.
    """
    inputs: list[Tensor] = []
    labels: list[Tensor | None] = []
    taken = 0
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        x, y = split_batch(batch)
        if inputs and x.shape[1:] != inputs[0].shape[1:]:
            raise InputError(
                f"batches disagree on the shape of an input: {tuple(inputs[0].shape[1:])} and then {tuple(x.shape[1:])}"
            )
        inputs.append(x[: limit - taken])
        labels.append(None if y is None else y[: limit - taken])
        taken += len(inputs[-1])
        if taken >= limit:
            break
    if not taken:
        raise InputError("the batches hold no inputs")
    known = [y for y in labels if y is not None]
    return ImageSet(
        data=torch.cat(inputs),
        source=f"{taken} inputs given from Python",
        labels=torch.cat(known) if len(known) == len(labels) else None,
    )


def split_batch(batch: object) -> tuple[Tensor, Tensor | None]:
    """Inputs (float32, on the CPU) and labels (int64, or None) of one batch.

    Raises:
        InputError: it does not begin with a floating-point tensor of finite values and at least two dimensions.
    """
    first, *others = batch if isinstance(batch, tuple | list) and batch else [batch]
    if not isinstance(first, Tensor):
        raise InputError(f"batches must be tensors, or begin with one, not {type(first).__name__}")
    if not first.is_floating_point() or first.dim() < 2:
        kind = str(first.dtype).removeprefix("torch.")
        raise InputError(
            "batches must be floating-point tensors of shape (n, ...) as the network takes them, "
            f"not {kind} of shape {tuple(first.shape)}"
        )
    if not bool(first.isfinite().all()):
        raise InputError("a batch has NaN or infinite values")
    return first.detach().to("cpu", torch.float32), labels_of(others, len(first))


def labels_of(others: Sequence[object], count: int) -> Tensor | None:
    """The labels of a batch of `count` inputs, int64; None for other kinds of targets."""
    if not others or not isinstance(others[0], Tensor) or others[0].shape != (count,):
        return None
    labels = others[0]
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        return None
    return labels.detach().to("cpu", torch.int64)
