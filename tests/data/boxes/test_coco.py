"""COCO's annotations: boxes move and are cut with their photographs, and categories become the network's labels."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from compressor.data.boxes.coco import load_with_boxes, number_categories
from compressor.data.images import ImageSet
from compressor.data.transforms import Transform
from compressor.errors import InputError

TRANSFORM = Transform(input_size=50, resize_size=50)


def write(folder: Path, boxes: list[list[float]], name: str = "instances.json", **changes: Any) -> None:
    """Two photographs of 200 x 100 pixels, the first with boxes of category 7."""
    folder.mkdir(exist_ok=True)
    for file in ("a.jpg", "b.jpg"):
        Image.new("RGB", (200, 100), (90, 120, 30)).save(folder / file)
    content = {
        "images": [{"id": number, "file_name": file} for number, file in enumerate(("a.jpg", "b.jpg", "gone.jpg"))],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [{"id": i, "image_id": 0, "category_id": 7, "bbox": box} for i, box in enumerate(boxes)],
    }
    (folder / name).write_text(json.dumps({**content, **changes}))


def load(folder: Path, num_classes: int = 3) -> ImageSet:
    return load_with_boxes(folder, TRANSFORM, 10, 0, num_classes)


def test_boxes_lie_where_the_network_sees_them(tmp_path: Path) -> None:
    """Half the size, and of the 100 x 50 pixels the middle 50."""
    write(tmp_path / "data", [[80, 20, 40, 60], [0, 0, 40, 40], [10, 0, 60, 100], [50, 0, 100, 100]])
    found = load(tmp_path / "data")
    assert found.source == f"2 of 2 images in {tmp_path / 'data'}, with boxes"
    assert found.boxes is not None
    assert found.files is not None
    boxes = dict(zip(found.files, found.boxes, strict=True))
    expected = [[15, 10, 35, 40, 1, 0], [0, 0, 10, 50, 1, 1], [0, 0, 50, 50, 1, 0]]
    torch.testing.assert_close(boxes["a.jpg"], torch.tensor(expected, dtype=torch.float32))
    assert boxes["b.jpg"].shape == (0, 6)
    part = found.subset([1, 0])
    assert part.boxes is not None
    assert [len(each) for each in part.boxes] == [len(found.boxes[1]), len(found.boxes[0])]
    assert found.without_labels("because").boxes is None


def test_sizes_in_the_file_count(tmp_path: Path) -> None:
    images = [{"id": 0, "file_name": "sub/a.jpg", "width": 400, "height": 200}]
    write(tmp_path / "data", [[160, 40, 80, 120]], images=images)
    found = load(tmp_path / "data")
    assert found.boxes is not None
    assert found.boxes[0].tolist() == [[15, 10, 35, 40, 1, 0]]


def test_crowds_and_boxes_without_size(tmp_path: Path) -> None:
    rows = [
        {"id": 0, "image_id": 0, "category_id": 9, "bbox": [80, 20, 40, 60], "iscrowd": 1},
        {"id": 1, "image_id": 0, "category_id": 9, "bbox": [80, 20, 0, 60]},
    ]
    write(tmp_path / "data", [], annotations=rows)
    found = load(tmp_path / "data")
    assert found.boxes is not None
    assert [each.tolist() for each in found.boxes if len(each)] == [[[15, 10, 35, 40, 2, 1]]]


@pytest.mark.parametrize(
    ("count", "labels"),
    [(10, {7: 7, 9: 9}), (9, {7: 1, 9: 2}), (3, {7: 1, 9: 2}), (2, "2 categories, and the network 1 beside")],
)
def test_categories_are_labels(count: int, labels: dict[int, int] | str) -> None:
    found = number_categories({7: "cat", 9: "dog"}, count)
    assert found == labels if isinstance(labels, dict) else labels in found


def test_without_annotations_images_are_unlabelled(tmp_path: Path) -> None:
    write(tmp_path / "data", [])
    (tmp_path / "data" / "instances.json").write_text('{"something": "else"}')
    found = load(tmp_path / "data")
    assert found.boxes is None
    assert "no COCO annotations" in found.label_note


BOX = {"image_id": 0, "bbox": [0, 0, 9, 9]}


@pytest.mark.parametrize(
    "changes",
    [
        {"annotations": [{"image_id": 5}]},
        {"annotations": [{"image_id": 0, "bbox": "no", "category_id": 7}]},
        {"annotations": 3},
        {"annotations": [{**BOX, "category_id": 8}]},
        {"annotations": [{**BOX, "category_id": 10**30}]},
        {"annotations": [{**BOX, "category_id": 7, "bbox": [10**400, 0, 9, 9]}]},
        {"annotations": [{**BOX, "category_id": 7, "iscrowd": []}]},
        {"categories": [{"id": 10**30, "name": "cat"}]},
        {"images": [{"id": 0, "file_name": "a.jpg", "width": 0, "height": 100}]},
        {"images": [{"id": 0, "file_name": "a.jpg", "width": 200, "height": -1}]},
        {"images": [{"id": [], "file_name": "a.jpg"}]},
    ],
)
def test_broken_annotations_are_one_sentence(tmp_path: Path, changes: dict[str, object]) -> None:
    write(tmp_path / "data", [], **changes)
    with pytest.raises(InputError, match=r"instances\.json is no COCO annotation file"):
        load(tmp_path / "data")


def test_what_is_named_like_annotations_and_is_no_file_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "data", [[80, 20, 40, 60]])
    (tmp_path / "data" / "a.json").mkdir()
    os.mkfifo(tmp_path / "data" / "instances_pipe.json")
    (tmp_path / "data" / "instances_deep.json").write_text("[" * 100_000)
    found = load(tmp_path / "data")
    assert found.boxes is not None
    assert sum(map(len, found.boxes)) == 1


def picture(path: Path, size: tuple[int, int] = (200, 100), orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, (90, 120, 30)).save(path, exif=exif)


def annotate(file: Path, boxes: dict[str, list[float]]) -> None:
    """One box for each photograph, by the name that the file gives it."""
    names = list(boxes)
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1, "bbox": boxes[name]}
            for number, name in enumerate(names)
        ],
    }
    file.write_text(json.dumps(content))


def boxes_by_file(folder: Path) -> dict[str, list[list[float]]]:
    found = load(folder)
    assert found.boxes is not None
    assert found.files is not None
    return {file: rows[:, :4].tolist() for file, rows in zip(found.files, found.boxes, strict=True)}


LEFT, MIDDLE = [50.0, 0.0, 40.0, 40.0], [80.0, 20.0, 40.0, 60.0]
LEFT_SEEN, MIDDLE_SEEN = [[0.0, 0.0, 20.0, 20.0]], [[15.0, 10.0, 35.0, 40.0]]


def test_photographs_of_one_name_in_several_folders_keep_their_own_boxes(tmp_path: Path) -> None:
    for name in ("a/0001.jpg", "b/0001.jpg"):
        picture(tmp_path / name)
    annotate(tmp_path / "all.json", {"a/0001.jpg": LEFT, "b/0001.jpg": MIDDLE})
    assert boxes_by_file(tmp_path) == {"a/0001.jpg": LEFT_SEEN, "b/0001.jpg": MIDDLE_SEEN}


def test_each_folders_annotations_are_of_its_own_photographs(tmp_path: Path) -> None:
    for folder, box in (("train", LEFT), ("val", MIDDLE)):
        picture(tmp_path / folder / "0001.jpg")
        annotate(tmp_path / folder / "_annotations.coco.json", {"0001.jpg": box})
    assert boxes_by_file(tmp_path) == {"train/0001.jpg": LEFT_SEEN, "val/0001.jpg": MIDDLE_SEEN}


def test_a_name_that_several_photographs_have_is_none_of_them(tmp_path: Path) -> None:
    for name in ("images/a/0001.jpg", "images/b/0001.jpg", "images/a/0002.jpg", "Masks/0002.jpg"):
        picture(tmp_path / name)
    (tmp_path / "annotations").mkdir()
    annotate(tmp_path / "annotations" / "instances.json", {"0001.jpg": LEFT, "0002.jpg": MIDDLE})
    assert boxes_by_file(tmp_path) == {"images/a/0002.jpg": MIDDLE_SEEN}


def test_boxes_are_of_the_photograph_as_it_is_seen(tmp_path: Path) -> None:
    """Turned by the camera, it is 100 wide and 200 high."""
    picture(tmp_path / "a.jpg", (200, 100), orientation=6)
    annotate(tmp_path / "all.json", {"a.jpg": [20.0, 80.0, 60.0, 40.0]})
    assert boxes_by_file(tmp_path) == {"a.jpg": [[10.0, 15.0, 40.0, 35.0]]}


def test_categories_from_zero_on_are_no_background() -> None:
    """Unless no box has that category, as where it stands for all others, or the network has no more classes."""
    assert number_categories({0: "cat", 1: "dog"}, 3, {0, 1}) == {0: 1, 1: 2}
    assert number_categories({0: "animals", 1: "cat", 2: "dog"}, 4, {1, 2}) == {0: 0, 1: 1, 2: 2}
    assert number_categories({0: "background", 1: "cat"}, 2, {1}) == {0: 0, 1: 1}
