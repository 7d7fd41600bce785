"""Images that are read for the test alone: the others of the folder, each once, labelled and scaled alike."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compressor.data import further
from compressor.data.folders import load_folder
from compressor.data.images import ImageSet
from compressor.data.transforms import Transform

TRANSFORM = Transform(8, 8)


def write(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(30):
        write(tmp_path / "images" / ("ant", "bee")[number % 2] / f"{number}.png", 8 * number)
    return tmp_path / "images"


def values(images: ImageSet) -> list[int]:
    return images.data[:, 0, 0, 0].tolist()


def test_every_image_is_read_once_with_its_label(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(further, "BATCH_SIZE", 4)
    held = load_folder(folder, TRANSFORM, 10, seed=0)
    assert held.further is not None
    assert len(held.further) == 20
    batches = list(held.further.batches(held))
    assert all(2 <= len(batch) <= 5 for batch in batches)
    found = [value for batch in batches for value in values(batch)]
    assert sorted([*found, *values(held)]) == [8 * number for number in range(30)]
    for batch in batches:
        assert batch.labels is not None
        assert [value // 8 % 2 for value in values(batch)] == batch.labels.tolist()


def test_labels_follow_those_of_the_images_held(folder: Path) -> None:
    held = load_folder(folder, TRANSFORM, 10, seed=0)
    assert held.further is not None
    assert held.class_names == ["ant", "bee"]
    swapped = ImageSet(held.data, "", held.mean, held.std, labels=held.labels, class_names=["bee", "ant"])
    (batch,) = held.further.batches(swapped)
    assert batch.labels is not None
    assert [1 - value // 8 % 2 for value in values(batch)] == batch.labels.tolist()
    (batch,) = held.further.batches(held.without_labels("as a test"))
    assert batch.labels is None


def test_what_cannot_be_read_and_a_single_last_image_are_left_out(folder: Path) -> None:
    for path in sorted(folder.rglob("*.png"))[3:]:
        path.write_bytes(b"no image")
    held = load_folder(folder, TRANSFORM, 1, seed=0)
    assert held.further is not None
    assert sum(len(batch) for batch in held.further.batches(held)) == 2
    held = load_folder(folder, TRANSFORM, 2, seed=0)
    assert held.further is None or list(held.further.batches(held)) == []


def test_deep_images_are_scaled_as_those_held(tmp_path: Path) -> None:
    for number in range(6):
        Image.fromarray(np.full((8, 8), 600 * (number + 1), np.uint16)).save(tmp_path / f"{number}.png")
    every = load_folder(tmp_path, TRANSFORM, 6, seed=0)
    held = load_folder(tmp_path, TRANSFORM, 3, seed=0)
    assert held.further is not None
    (batch,) = held.further.batches(held)
    if max(values(held)) == max(values(every)):
        assert torch.equal(torch.cat([held.data, batch.data]), every.data)


def test_nothing_is_left_of_a_folder_that_is_held_whole(folder: Path) -> None:
    assert load_folder(folder, TRANSFORM, 30, seed=0).further is None


def test_warnings_are_filtered_while_files_are_read_and_not_between_batches(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(further, "BATCH_SIZE", 4)
    held = load_folder(folder, TRANSFORM, 10, seed=0)
    assert held.further is not None
    before = list(warnings.filters)
    filters = [list(warnings.filters) for _ in held.further.batches(held)]
    assert filters == [before] * len(filters)
