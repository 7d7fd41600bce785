"""Image sets of folders: a random sample of their images, with labels where subfolders are classes."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from compressor.data.classes import Classes, find_classes, name_some
from compressor.data.clips.folders import FFMPEG, VIDEOS, clips_as_files, starts_as_files
from compressor.data.clips.frames import list_frames
from compressor.data.further import FurtherImages
from compressor.data.images import ImageSet, OnStep
from compressor.data.labels import Numbering, number_classes
from compressor.data.listing import SUFFIXES, Folder, scan
from compressor.data.pixels import (
    Bytes,
    Deep,
    UnreadableError,
    find_peaks,
    find_whites,
    is_black,
    is_constant,
    read_images,
    require_channels,
    stack_images,
    to_bytes,
)
from compressor.data.transforms import Transform
from compressor.errors import InputError
from compressor.text import count_of, join_words

CHUNK = 64  # files decoded between two steps of progress
PAIRS = "pairs of frames"


@dataclass(frozen=True)
class Listing:
    """Image files of a folder.

    Attributes:
        folder: what was listed.
        files: that may be read.
        labels: of the files, or None where there are no classes.
        class_names: of the labels, or None.
        label_note: why there are no labels, in words.
        other_order: see `ImageSet`.
        splits: the splits of a data set that hold the classes.
        notes: what was left out, one sentence each.
        noun: what is read for each file: "images"; "clips" for folders of frames, "pairs of frames" for first ones.
    """

    folder: Path
    files: list[Path]
    labels: list[int] | None = None
    class_names: list[str] | None = None
    label_note: str = ""
    other_order: tuple[int, ...] | None = None
    splits: Sequence[str] = ()
    notes: tuple[str, ...] = ()
    noun: str = "images"


@dataclass
class Sample:
    """Files that could be read, as indices of a listing, their pixels, and why others could not."""

    kept: list[int] = field(default_factory=list)
    pixels: list[Bytes | Deep] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)


def load_folder(
    path: Path,
    transform: Transform,
    limit: int,
    seed: int,
    on_step: OnStep | None = None,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> ImageSet:
    """A random sample of at most `limit` images from a folder.

    Subfolders are classes where they look like it, see `compressor.data.classes`, and numbered as in
    `compressor.data.labels`; else images at any depth are taken without labels, and `label_note` says why. Files that
    cannot be decoded are left out and counted.

    Args:
        path: the folder.
        transform: how images are prepared.
        limit: maximum number of images.
        seed: of the sample.
        on_step: called as images are read.
        class_names: the network's, in the order of its outputs; None where they are not known. They are not used
            where they are not `num_classes`.
        num_classes: that the network tells apart; None where it is not known.

    Raises:
        InputError: no such folder, no image in it that can be read, `limit` is less than one, or the network takes
            other than 1, 3 or 4 channels.
    """
    if limit < 1:
        raise InputError(f"{limit} images were asked for: at least one is needed")
    require_channels(transform)
    listing = list_images(path, class_names, num_classes, transform)
    order = list(range(len(listing.files)))
    random.Random(seed).shuffle(order)
    sample = read_sample(listing.files, order, transform, limit, on_step)
    if not sample.kept:
        why = _name_failure(listing, sample)
        raise InputError(f"none of the {len(order)} image files in {path} can be read ({why})")
    further = further_images(listing, order, sample, transform)
    images = as_set(listing, sample, transform)
    return replace(images, further=further, notes=(*images.notes, *_notes_on_clips(listing, sample, transform)))


def as_set(listing: Listing, sample: Sample, transform: Transform) -> ImageSet:
    """The images of a sample, whose pixels leave it."""
    pixels = to_bytes(sample.pixels, transform.channels)
    notes = (*listing.notes, *_notes_on_pixels(listing, sample, pixels))
    sample.pixels.clear()
    return ImageSet(
        held=stack_images(pixels),
        source=_describe(listing, len(sample.kept)),
        mean=transform.mean,
        std=transform.std,
        labels=None if listing.labels is None else torch.tensor([listing.labels[i] for i in sample.kept]),
        class_names=listing.class_names,
        unreadable=len(sample.failures),
        files=[_relative(listing, i) for i in sample.kept],
        label_note=listing.label_note,
        notes=notes,
        other_order=listing.other_order,
    )


def further_images(
    listing: Listing, order: Sequence[int], sample: Sample, transform: Transform
) -> FurtherImages | None:
    """What comes in the order after all that was tried, of a sample that still has its pixels; None where nothing does.

    Args:
        listing: all files.
        order: indices into them, in which they were tried.
        sample: what was read of them.
        transform: how images are prepared.
    """
    left = order[len(sample.kept) + len(sample.failures) :]
    if not left:
        return None
    names, labels = listing.class_names, listing.labels
    return FurtherImages(
        files=tuple(listing.files[index] for index in left),
        classes=None if names is None or labels is None else tuple(names[labels[index]] for index in left),
        transform=transform,
        whites=find_whites(sample.pixels),
    )


def list_images(
    path: Path,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    transform: Transform | None = None,
) -> Listing:
    """The image files in a folder, and their classes if it has any; adjacent frames have none.

    Args:
        path: as of `load_folder`.
        class_names: as of `load_folder`.
        num_classes: as of `load_folder`.
        transform: says whether folders of frames are sought in place of files, or frames that others follow; None for
            images.

    Raises:
        InputError: not a folder that can be read, no image files in it, or images where clips are expected.
    """
    if num_classes is not None and len(class_names or ()) != num_classes:
        class_names = None
    folder, noun = _scan_for(Path(path), transform or Transform())
    others = folder.count_others()
    left = [f"{count} {suffix}" for suffix, count in others.most_common()]
    if not folder.count:
        instead = f"; there are {name_some(left)}" if left else ""
        instead += f", of which {FFMPEG}" if VIDEOS & set(others) else ""
        raise InputError(f"no image files in {path} ({', '.join(sorted(SUFFIXES))}){instead}")
    note = f"{count_of(others.total(), 'file', 'was')} left out by suffix: {name_some(left)}" if left else ""
    if noun == PAIRS:
        return Listing(Path(path), sorted(folder.walk()), noun=noun, notes=(note,) if note else ())
    classes = find_classes(folder, class_names or (), num_classes)
    listing = _labelled(Path(path), classes, class_names or (), num_classes)
    return replace(listing, noun=noun, notes=(*listing.notes, *classes.notes, *([note] if note else [])))


def _scan_for(path: Path, transform: Transform) -> tuple[Folder, str]:
    """The tree of what the network takes for one input, and what that is called."""
    folder = scan(path)
    if transform.frames is None:
        return folder, "images"
    if transform.adjacent:
        return starts_as_files(folder, transform.frames), PAIRS
    return clips_as_files(folder), "clips"


def _labelled(path: Path, classes: Classes, known: Sequence[str], num_classes: int | None) -> Listing:
    """The listing of classes with their labels, or of unlabelled images."""
    if classes.reason:
        return Listing(path, sorted(classes.images), label_note=classes.reason)
    counts = {name: len(files) for name, files in classes.groups.items()}
    numbering = number_classes(counts, known, num_classes)
    if numbering.reason:
        every = sorted(file for files in classes.groups.values() for file in files)
        return Listing(path, every, label_note=numbering.reason)
    rows = sorted((file, numbering.labels[name]) for name, files in classes.groups.items() for file in files
                  if name in numbering.labels)  # fmt: skip
    return Listing(
        path,
        [file for file, _ in rows],
        [label for _, label in rows],
        list(numbering.class_names),
        other_order=None if numbering.other_order is None else tuple(numbering.other_order),
        splits=classes.splits,
        notes=tuple(_notes_on_classes(counts, numbering)),
    )


def _notes_on_classes(counts: dict[str, int], numbering: Numbering) -> Iterator[str]:
    unknown = [name for name, count in counts.items() if count and name not in numbering.labels]
    if unknown:
        count = sum(counts[name] for name in unknown)
        yield f"{count_of(count, 'image')} in {name_some(unknown)} left out: not among the network's classes"


def read_sample(
    files: list[Path], order: list[int], transform: Transform, limit: int, on_step: OnStep | None
) -> Sample:
    """The first `limit` readable files in the given order.

    Args:
        files: all images.
        order: indices into them, those to be read first in front.
        transform: how images are prepared.
        limit: on the images that can be read.
        on_step: called with the number read and of all; None for nobody.
    """
    total, start, sample = min(limit, len(order)), 0, Sample()
    # The next files replace broken ones.
    while len(sample.kept) < total and start < len(order):
        chunk = order[start : start + min(CHUNK, total - len(sample.kept))]
        start += len(chunk)
        for index, image in zip(chunk, read_images([files[index] for index in chunk], transform), strict=True):
            if isinstance(image, UnreadableError):
                sample.failures.append((index, str(image)))
                continue
            sample.kept.append(index)
            sample.pixels.append(image)
            if on_step:
                on_step(len(sample.kept), total)
    return sample


def _notes_on_pixels(listing: Listing, sample: Sample, pixels: Sequence[Bytes]) -> Iterator[str]:
    """What could not be read, what white was taken to be, and what shows nothing."""
    if sample.failures:
        yield f"{count_of(len(sample.failures), 'image')} could not be read: {_name_failure(listing, sample)}"
    whites = find_whites(sample.pixels)
    for kind, peak in find_peaks(sample.pixels).items():
        if peak > 0:
            yield f"white is {whites[kind]:g} in files of {kind}: their brightest pixels are at {peak:g}"
    for finding, what in ((is_constant, "of one colour throughout"), (is_black, "nearly black")):
        names = [_relative(listing, index) for index, image in zip(sample.kept, pixels, strict=True) if finding(image)]
        if names:
            yield f"{count_of(len(names), 'image', 'is')} {what}: {name_some(names)}"


def _notes_on_clips(listing: Listing, sample: Sample, transform: Transform) -> Iterator[str]:
    """That clips have fewer frames than the network takes."""
    count = None if transform.adjacent else transform.frames
    short = [index for index in sample.kept if count and len(list_frames(listing.files[index])) < count]
    if short:
        names = name_some([_relative(listing, index) for index in short])
        yield f"{count_of(len(short), 'clip', 'has')} fewer than {count} frames, which are repeated: {names}"


def _name_failure(listing: Listing, sample: Sample) -> str:
    index, reason = sample.failures[0]
    others = ", ..." if len(sample.failures) > 1 else ""
    return f"{_relative(listing, index)}: {reason}{others}"


def _relative(listing: Listing, index: int) -> str:
    return listing.files[index].relative_to(listing.folder).as_posix()


def _describe(listing: Listing, count: int) -> str:
    """One line on a folder's images."""
    kind = "unlabelled" if listing.class_names is None else f"in {len(listing.class_names)} classes"
    together = f" of {join_words(list(listing.splits))} together" if listing.splits else ""
    return f"{count} of {len(listing.files)} {listing.noun} in {listing.folder}, {kind}{together}"
