"""Photographs with boxes: JSON files as COCO has them (Lin et al. 2014), anywhere in the folder of the photographs."""

import json
import os
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from compressor.data.folders import Listing, as_set, load_folder, read_sample
from compressor.data.images import ImageSet, OnStep
from compressor.data.listing import Folder, scan
from compressor.data.masks import MASKS
from compressor.data.pixels import open_image, require_channels, upright_size
from compressor.data.resizing import resized_size
from compressor.data.transforms import Transform
from compressor.errors import InputError
from compressor.failures import blaming
from compressor.files import open_regular

MAX_BYTES = 2**30  # of an annotation file
MAX_NUMBER = 2**31  # of a category
MIN_VISIBLE = 0.5  # of a box's area; of what is cut off by more, detections count neither as right nor as wrong
NONE_FOUND = "no COCO annotations (JSON with images, annotations and categories) lie among the photographs"


class Named(NamedTuple):
    """A photograph as a file of annotations names it.

    Attributes:
        place: of that file, below the folder of the photographs; files of one place mean the same photographs.
        name: of the photograph, perhaps with folders.
    """

    place: PurePosixPath
    name: str


@dataclass
class Annotations:
    """What annotation files say.

    Attributes:
        boxes: of every photograph rows x, y, width, height, category, and 1 for crowds, else 0.
        sizes: width and height that the boxes are of.
        categories: names by number.
    """

    boxes: dict[Named, list[list[float]]] = field(default_factory=dict)
    sizes: dict[Named, tuple[int, int]] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)


def read_annotations(folder: Path) -> Annotations:
    """All COCO files in a folder and below; files named instances* alone, where there are some.

    Raises:
        InputError: a file that has COCO's parts cannot be understood.
    """
    files = list_json(folder)
    named = [file for file in files if file.name.startswith("instances")]
    found = Annotations()
    for file in named or files:
        content = _read(file)
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            _add_of(file, content, found, PurePosixPath(file.parent.relative_to(folder).as_posix()))
    return found


def _add_of(file: Path, content: Mapping[str, Any], found: Annotations, place: PurePosixPath) -> None:
    with blaming(lambda reason: InputError(f"{file} is no COCO annotation file ({reason})")):
        _add(content, found, place)


def list_json(folder: Path) -> list[Path]:
    """JSON files in a folder and below, sorted; links to folders are not followed."""
    files = (Path(parent) / name for parent, _, names in os.walk(folder) for name in names)
    return sorted(file for file in files if file.suffix == ".json" and file.name[0] != "." and file.is_file())


def _read(file: Path) -> Any:
    """What a JSON file holds; None for one that cannot be read, which is no annotation file."""
    try:
        with open_regular(file) as opened:
            return json.loads(opened.read(MAX_BYTES))
    except InputError:
        return None
    except (ValueError, RecursionError):
        return None


def _add(content: Mapping[str, Any], found: Annotations, place: PurePosixPath) -> None:
    names = {}
    for image in content["images"]:
        name = names[image["id"]] = Named(place, str(image["file_name"]))
        found.boxes.setdefault(name, [])
        if "width" in image and "height" in image:
            found.sizes[name] = size = int(image["width"]), int(image["height"])
            if min(size) < 1:
                raise ValueError(f"{name.name} is said to have {size[0]} x {size[1]} pixels")
    for category in content["categories"]:
        number = int(category["id"])
        if abs(number) > MAX_NUMBER:
            raise ValueError(f"a category has the number {number:g}")
        found.categories[number] = str(category["name"])
    for one in content["annotations"]:
        if int(one["category_id"]) not in found.categories:
            raise ValueError(f"an annotation has the category {one['category_id']}, which is not among the categories")
        row = [*map(float, (*one["bbox"], int(one["category_id"]), int(one.get("iscrowd", 0))))]
        if len(row) == 6 and row[2] > 0 and row[3] > 0:
            found.boxes[names[one["image_id"]]].append(row)


def load_with_boxes(
    path: Path, transform: Transform, limit: int, seed: int, num_classes: int, on_step: OnStep | None = None
) -> ImageSet:
    """A random sample of at most `limit` annotated photographs with their boxes; without annotations, of all images.

    Args:
        path: the folder.
        transform: how photographs are prepared; boxes are moved and cut with them.
        limit: maximum number of images.
        seed: of the sample.
        num_classes: that the network tells apart, with the background.
        on_step: called as images are read.

    Raises:
        InputError: as of `load_folder`, or annotations cannot be understood.
    """
    tree = scan(Path(path))
    known = read_annotations(tree.path)
    files = _find_files(tree, known)
    if not files:
        return load_folder(path, transform, limit, seed, on_step).without_labels(NONE_FOUND)
    used = {int(row[4]) for rows in known.boxes.values() for row in rows}
    labels = number_categories(known.categories, num_classes, used)
    if isinstance(labels, str):
        return load_folder(path, transform, limit, seed, on_step).without_labels(labels)
    require_channels(transform)
    every = sorted(files)
    listing = Listing(Path(path), every)
    order = list(range(len(every)))
    random.Random(seed).shuffle(order)
    sample = read_sample(every, order, transform, limit, on_step)
    if not sample.kept:
        raise InputError(f"none of the {len(every)} photographs with annotations in {path} can be read")
    kept = [every[index] for index in sample.kept]
    boxes = tuple(_boxes_of(file, files[file], known, labels, transform) for file in kept)
    images, names = as_set(listing, sample, transform), name_labels(known.categories, labels)
    return replace(images, boxes=boxes, class_names=names, source=images.source.replace("unlabelled", "with boxes"))


def _find_files(folder: Folder, known: Annotations) -> dict[Path, Named]:
    """The annotated photographs that are there, as they are named.

    By their path below the annotation file's folder, else below the whole one, else by their own name, where only one
    has it; masks of the same names do not count.
    """
    by_path = {PurePosixPath(file.relative_to(folder.path).as_posix()): file for file in folder.walk()}
    by_name: dict[str, list[Path]] = {}
    for below, file in by_path.items():
        if not {part.lower() for part in below.parts[:-1]} & set(MASKS):
            by_name.setdefault(file.name, []).append(file)
    found: dict[Path, Named] = {}
    for named in known.boxes:
        path = by_path.get(named.place / named.name) or by_path.get(PurePosixPath(named.name))
        namesakes = by_name.get(PurePosixPath(named.name).name, [])
        if path is not None or len(namesakes) == 1:
            found[path or namesakes[0]] = named
    return found


def number_categories(
    categories: Mapping[int, str], num_classes: int, used: Collection[int] = ()
) -> dict[int, int] | str:
    """The network's label of each category, or why there is none.

    The categories' own numbers where the network has as many classes, as torchvision's detectors of COCO; else 1, 2,
    ... in the order of the numbers, since 0 is the background, unless a category 0 has no boxes.

    Args:
        categories: names by number.
        num_classes: of the network, with the background.
        used: numbers of the categories that boxes have.
    """
    is_from_one = 0 not in used or len(categories) >= num_classes
    if categories and max(categories) < num_classes and min(categories) >= 0 and is_from_one:
        return {number: number for number in categories}
    if len(categories) < num_classes:
        return {number: label for label, number in enumerate(sorted(categories), 1)}
    return f"the annotations have {len(categories)} categories, and the network {num_classes - 1} beside the background"


def name_labels(categories: Mapping[int, str], labels: Mapping[int, int]) -> list[str]:
    """Names of the labels 0, 1, ...: the categories'; 0 is the background where it is none of them, others numbers.

    Args:
        categories: names by number.
        labels: of each category, by number.
    """
    named = {0: "background"} | {label: categories[number] for number, label in labels.items()}
    return [named.get(label, str(label)) for label in range(max(named) + 1)]


def _boxes_of(file: Path, name: Named, known: Annotations, labels: Mapping[int, int], transform: Transform) -> Tensor:
    """Boxes of a photograph as they lie in the network's input; see `ImageSet.boxes`."""
    with open_regular(file) as opened, open_image(opened) as image:
        size = upright_size(image)
    rows = torch.tensor(known.boxes[name], dtype=torch.float64).reshape(-1, 6)
    corners = torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:4]], dim=1)
    annotated = known.sizes.get(name, size)
    resized, (left, top) = resized_size(size, transform)
    scale = torch.tensor([resized[0] / annotated[0], resized[1] / annotated[1]] * 2, dtype=torch.float64)
    moved = corners * scale - torch.tensor([left, top] * 2, dtype=torch.float64)
    cut = moved.clamp(min=0).minimum(torch.tensor([transform.width, transform.height] * 2))
    visible = _area(cut) / _area(moved).clamp_min(1e-9)
    ignored = ((rows[:, 5] > 0) | (visible < MIN_VISIBLE)).double()
    numbers = torch.tensor([labels[int(number)] for number in rows[:, 4]], dtype=torch.float64)
    return torch.cat([cut, numbers[:, None], ignored[:, None]], dim=1)[visible > 0].float()


def _area(corners: Tensor) -> Tensor:
    sides: Sequence[Tensor] = (corners[:, 2:] - corners[:, :2]).clamp_min(0).unbind(1)
    return sides[0] * sides[1]
