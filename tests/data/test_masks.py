"""Masks beside photographs: which belong together, and the numbers they hold."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compressor.data.batches import from_batches
from compressor.data.further import FurtherImages
from compressor.data.images import VOID, ImageSet
from compressor.data.listing import scan
from compressor.data.masks import find_masks, load_with_masks
from compressor.data.transforms import Transform
from compressor.errors import ShortageError

TRANSFORM = Transform(16, 16)


def write(path: Path, values: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)


def photograph(path: Path, size: Sequence[int] = (20, 24)) -> None:
    write(path, np.full((*size, 3), 90, np.uint8))


def mask(path: Path, size: Sequence[int] = (20, 24), value: int = 2) -> None:
    values = np.zeros(size, np.uint8)
    values[:, size[1] // 2 :] = value
    write(path, values)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/{}.jpg", "masks/{}.png"),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
        ("data/images/train/{}.jpg", "data/annotations/train/{}.png"),
        ("train/images/{}.jpg", "train/labels/{}.png"),
        ("images/{}.jpg", "masks/{}_mask.png"),
        ("train/{}.png", "trainannot/{}.png"),
        ("{}.jpg", "{}_mask.png"),
    ],
)
def test_layouts(tmp_path: Path, image: str, label: str) -> None:
    for name in "abc":
        photograph(tmp_path / image.format(name))
        mask(tmp_path / label.format(name))
    photograph(tmp_path / image.format("without"))
    found = {a.stem: b for a, b in find_masks(scan(tmp_path)).items()}
    assert found == {name: tmp_path / label.format(name) for name in "abc"}


def load(folder: Path, num_classes: int = 3) -> ImageSet:
    return load_with_masks(folder, TRANSFORM, 100, 0, num_classes)


def pairs(folder: Path, count: int = 4, **options: object) -> None:
    for number in range(count):
        photograph(folder / "images" / f"{number}.jpg")
        mask(folder / "masks" / f"{number}.png", **options)  # type: ignore[arg-type]


def test_masks_are_cut_as_their_photographs_are(tmp_path: Path) -> None:
    for number in range(4):
        rng = np.random.default_rng(number)
        values = np.kron(rng.integers(0, 3, (5, 7)).astype(np.uint8), np.ones((8, 8), np.uint8))
        write(tmp_path / "images" / f"{number}.png", np.repeat(100 * values[..., None], 3, 2))
        write(tmp_path / "masks" / f"{number}.png", values)
    images = load(tmp_path)
    assert images.masks is not None
    assert images.masks.shape == (4, 16, 16)
    same = (images.data[:, 0].float() / 100).round() == images.masks
    assert float(same.double().mean()) > 0.85  # but for edges, which photographs mix


def test_palettes_hold_numbers_and_void(tmp_path: Path) -> None:
    pairs(tmp_path)
    picture = Image.fromarray(np.array([[0, 1], [VOID, 2]], np.uint8).repeat(10, 0).repeat(12, 1), mode="P")
    picture.putpalette(list(range(256)) * 3)
    picture.save(tmp_path / "masks" / "0.png")
    images = load(tmp_path)
    assert images.masks is not None
    assert images.masks.unique().tolist() == [0, 1, 2, VOID]
    part, rest = images.split(1, 0)
    assert part.masks is not None
    assert rest.masks is not None
    assert (len(part.masks), len(rest.masks)) == (1, 3)


def test_black_and_white_is_two_classes(tmp_path: Path) -> None:
    pairs(tmp_path, value=VOID)
    images = load(tmp_path, 1)
    assert images.masks is not None
    assert images.masks.unique().tolist() == [0, 1]
    assert any("white is class 1" in note for note in images.notes)


def test_photographs_without_masks_are_left_out(tmp_path: Path) -> None:
    pairs(tmp_path)
    photograph(tmp_path / "images" / "alone.jpg")
    mask(tmp_path / "masks" / "0.png", (50, 24))
    images = load(tmp_path)
    assert len(images) == 3
    assert any("1 image without a mask" in note for note in images.notes)
    assert any("0.png has 24 x 50 pixels" in note for note in images.notes)


def test_masks_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    pairs(tmp_path, value=7)
    images = load(tmp_path)
    assert images.masks is None
    assert "classes up to 7, and the network 3" in images.label_note
    for number in range(4):
        write(tmp_path / "masks" / f"{number}.png", np.random.default_rng(0).integers(0, 9, (20, 24, 3), np.uint8))
    assert "picture in colours" in load(tmp_path).label_note


def test_a_folder_without_masks_is_unlabelled(tmp_path: Path) -> None:
    for name in "abcd":
        photograph(tmp_path / "cats" / f"{name}.jpg")
    images = load(tmp_path)
    assert len(images) == 4
    assert (images.labels, images.masks) == (None, None)
    assert "no masks lie beside" in images.label_note


def test_images_beyond_those_held_have_masks_too(tmp_path: Path) -> None:
    pairs(tmp_path, 9)
    images = load_with_masks(tmp_path, TRANSFORM, 4, 0, 3)
    assert images.further is not None
    (batch,) = images.further.batches(images)
    assert batch.masks is not None
    assert batch.masks.unique().tolist() == [0, 2]
    assert len(batch.masks) == len(batch) == 5


@pytest.mark.parametrize(("value", "num_classes", "expected"), [(VOID, 1, [0, 1]), (7, 3, [VOID])])
def test_masks_beyond_are_numbered_as_those_held(
    tmp_path: Path, value: int, num_classes: int, expected: list[int]
) -> None:
    """White is class 1 there, too; a mask of other classes, all of it, says nothing."""
    pairs(tmp_path, 9, value=value)
    images = load_with_masks(tmp_path, TRANSFORM, 4, 0, max(num_classes, 8 if value == 7 else 0))
    assert images.masks is not None
    assert isinstance(images.further, FurtherImages)
    further = replace(images.further, num_classes=num_classes) if value == 7 else images.further
    (batch,) = further.batches(images)
    assert batch.masks is not None
    assert batch.masks.unique().tolist() == expected


def test_batches_from_python_may_hold_masks() -> None:
    given = torch.randint(0, 4, (6, 8, 8))
    given[0, 0, 0] = -1
    images = from_batches([(torch.zeros(6, 3, 8, 8), given)], 10)
    assert images.labels is None
    assert images.masks is not None
    assert int(images.masks[0, 0, 0]) == VOID
    assert torch.equal(images.masks[1:].long(), given[1:])


def test_short_memory_is_not_blamed_on_a_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> np.ndarray:
        raise MemoryError

    pairs(tmp_path)
    monkeypatch.setattr("compressor.data.masks._class_numbers", short)
    with pytest.raises(ShortageError):
        load(tmp_path)
