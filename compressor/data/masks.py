"""Masks beside photographs: images that hold the class of every pixel, as labels of a network that tells these.

Masks lie in a folder beside that of the photographs, under equal names, or next to each photograph with a word added to
its name. `VOID` marks pixels without a class, as in PASCAL VOC.
"""

import random
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from compressor.data.folders import Listing, as_set, further_images, load_folder, read_sample
from compressor.data.further import FurtherImages
from compressor.data.images import VOID, ImageSet, OnStep
from compressor.data.listing import Folder, scan
from compressor.data.pixels import DECODING_THREADS, UnreadableError, open_image, require_channels, upright_size
from compressor.data.resizing import resized_size
from compressor.data.transforms import Transform
from compressor.errors import InputError
from compressor.failures import explain_shortage
from compressor.files import open_regular
from compressor.text import count_of, first_line

PHOTOGRAPHS = ("jpegimages", "images", "image", "imgs", "img", "photos", "pictures", "inputs", "input", "rgb")
MASKS = (
    *("segmentationclass", "segmentationclassraw", "masks", "mask", "annotations", "annotation", "labels", "label"),
    *("segmentations", "segmentation", "ground_truth", "groundtruth", "gt", "targets", "target"),
)
WORDS = ("_mask", "-mask", "_masks", "_label", "_labels", "_gt", "_seg", "_segmentation", "_annot", "annot")
MAX_STRETCH = 0.02  # by which the aspect of a mask may differ from its photograph's
NONE_FOUND = (
    "no masks lie beside the photographs: folders images/ and masks/ with equal names, VOC's JPEGImages/ and "
    "SegmentationClass/, or photo.jpg and photo_mask.png are known"
)


def find_masks(folder: Folder) -> dict[Path, Path]:
    """The mask of every photograph that has one."""
    pairs: dict[Path, Path] = {}
    for node in _walk(folder):
        by_name = {inside.name.lower(): inside for inside in node.folders}
        photographs = [by_name[name] for name in PHOTOGRAPHS if name in by_name]
        masks = [by_name[name] for name in MASKS if name in by_name]
        options = [(first, second) for first in photographs for second in masks]
        options += [(inside, by_name[f"{name}{word}"]) for name, inside in by_name.items() for word in WORDS
                    if f"{name}{word}" in by_name]  # fmt: skip
        found = [_pair_images(node.images, node.images)]
        found += [_pair_folders(first, second) for first, second in options]
        best: dict[Path, Path] = max(found, key=len)
        pairs |= best
    return pairs


def _walk(folder: Folder) -> list[Folder]:
    return [folder, *(one for inside in folder.folders for one in _walk(inside))]


def _pair_folders(photographs: Folder, masks: Folder) -> dict[Path, Path]:
    """Files of equal names below two folders."""
    by_name = {_key(mask, masks.path): mask for mask in masks.walk()}
    shortened = {_without_word(name): mask for name, mask in by_name.items()}
    known = shortened | by_name
    return {file: known[key] for file in photographs.walk() if (key := _key(file, photographs.path)) in known}


def _pair_images(photographs: Sequence[Path], masks: Sequence[Path]) -> dict[Path, Path]:
    """Files of one folder whose names differ by a word."""
    by_stem = {mask.stem: mask for mask in masks}
    return {
        file: by_stem[f"{file.stem}{word}"] for file in photographs for word in WORDS if f"{file.stem}{word}" in by_stem
    }


def _key(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


def _without_word(name: str) -> str:
    return next((name.removesuffix(word) for word in WORDS if name.endswith(word)), name)


def load_with_masks(
    path: Path, transform: Transform, limit: int, seed: int, num_classes: int, on_step: OnStep | None = None
) -> ImageSet:
    """A random sample of at most `limit` photographs with their masks; without any masks, of all images.

    Photographs without a mask are left out where others have one.

    Args:
        path: the folder.
        transform: how photographs are prepared; masks are resized and cropped alike, without mixing classes.
        limit: maximum number of images.
        seed: of the sample.
        num_classes: that the network tells apart at every pixel.
        on_step: called as images are read.

    Raises:
        InputError: as of `load_folder`.
    """
    folder = scan(Path(path))
    pairs = find_masks(folder)
    if not pairs:
        return load_folder(path, transform, limit, seed, on_step).without_labels(NONE_FOUND)
    require_channels(transform)
    files = sorted(pairs)
    listing = Listing(Path(path), files, notes=_note_on_others(folder, pairs))
    order = list(range(len(files)))
    random.Random(seed).shuffle(order)
    sample = read_sample(files, order, transform, limit, on_step)
    if not sample.kept:
        raise InputError(f"none of the {len(files)} photographs with a mask in {path} can be read")
    further = further_images(listing, order, sample, transform)
    images = as_set(listing, sample, transform)
    masks = read_masks([pairs[files[index]] for index in sample.kept], [files[i] for i in sample.kept], transform)
    if further is not None:
        further = replace(further, masks=tuple(pairs[file] for file in further.files))
    images = replace(images, further=further, source=images.source.replace("unlabelled", "with masks"))
    return with_masks(images, masks, num_classes)


def _note_on_others(folder: Folder, pairs: dict[Path, Path]) -> tuple[str, ...]:
    others = folder.count - len(set(pairs) | set(pairs.values()))
    return (f"{count_of(others, 'image')} without a mask left out",) if others else ()


def with_masks(images: ImageSet, masks: Sequence[Tensor | UnreadableError], num_classes: int) -> ImageSet:
    """The images whose masks can be used, with them; all without masks, where these are not of the network's classes.

    Args:
        images: n of them.
        masks: of each, uint8 (H, W), or why it cannot be read.
        num_classes: that the network tells apart at every pixel.
    """
    kept = [index for index, mask in enumerate(masks) if isinstance(mask, Tensor)]
    failed = [str(mask) for mask in masks if isinstance(mask, UnreadableError)]
    if not kept:
        return images.without_labels(f"no mask can be used ({failed[0]})")
    if failed:
        note = f"{count_of(len(failed), 'image')} left out, for want of a mask that can be used ({failed[0]})"
        images = replace(images.subset(kept), notes=(*images.notes, note))
    stacked = torch.stack([mask for mask in masks if isinstance(mask, Tensor)])
    values = stacked.unique().tolist()
    classes = max(2, num_classes)  # a single map tells two apart by its sign
    notes, is_white = images.notes, values == [0, VOID] and classes == 2
    if is_white:
        stacked = stacked.clamp_max(1)
        notes = (*notes, "masks of black and white: white is class 1")
    highest = max((value for value in values if value != VOID), default=0)
    if highest >= classes:
        return images.without_labels(f"masks have classes up to {highest}, and the network {classes}, from 0 on")
    further = images.further
    if isinstance(further, FurtherImages):
        further = replace(further, num_classes=classes, has_white_masks=is_white)
    return replace(images, masks=stacked, notes=notes, further=further)


def read_masks(
    files: Sequence[Path], photographs: Sequence[Path], transform: Transform
) -> list[Tensor | UnreadableError]:
    """The masks, uint8 (H, W) each, resized and cropped as their photographs are; the error in place of others."""

    def read(pair: tuple[Path, Path]) -> Tensor | UnreadableError:
        try:
            return torch.from_numpy(_read_mask(*pair, transform))
        except UnreadableError as error:
            return error
        except Exception as error:  # decoders raise any error on broken files
            if shortage := explain_shortage(error):
                raise shortage from error
            unknown = isinstance(error, UnidentifiedImageError)
            reason = "not an image that can be decoded" if unknown else first_line(error)
            return UnreadableError(f"{pair[0].name}: {reason}")

    with ThreadPoolExecutor(DECODING_THREADS) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(pool.map(read, zip(files, photographs, strict=True)))


def _read_mask(file: Path, photograph: Path, transform: Transform) -> np.ndarray:
    with open_regular(photograph) as opened, open_image(opened) as image:
        size = upright_size(image)
    with open_regular(file) as opened, open_image(opened) as image:
        values = _class_numbers(image, file.name)
    aspect = values.shape[1] / values.shape[0] * size[1] / size[0]
    if abs(aspect - 1) > MAX_STRETCH:
        raise UnreadableError(f"{file.name} has {values.shape[1]} x {values.shape[0]} pixels, its photograph {size}")
    resized, (left, top) = resized_size(size, transform)
    rows, columns = (
        ((start + np.arange(count) + 0.5) * length / whole).astype(np.int64).clip(0, length - 1)
        for start, count, whole, length in (
            (top, transform.height, resized[1], values.shape[0]),
            (left, transform.width, resized[0], values.shape[1]),
        )
    )
    return values[rows[:, None], columns[None, :]]


def _class_numbers(image: Image.Image, name: str) -> np.ndarray:
    """The numbers of a mask, uint8 (H, W): a palette's indices, or levels of grey."""
    values = np.asarray(image)
    if values.ndim == 3:
        if image.mode.startswith("RGB") and not (values[..., :3] == values[..., :1]).all():
            raise UnreadableError(f"{name} is a picture in colours, where numbers of classes are expected")
        values = values[..., 0]
    if values.min() < 0 or values.max() > VOID or values.dtype.kind == "f":
        raise UnreadableError(
            f"{name} has values from {values.min()} to {values.max()}, and classes go up to {VOID - 1}"
        )
    return values.astype(np.uint8)
