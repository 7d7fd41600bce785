"""Folders as people bring them: which subfolders are classes, how they are numbered, and what is left out."""

import numpy as np
import pytest
from PIL import Image

from compressor.data.folders import list_images, load_folder
from compressor.data.transforms import Transform
from compressor.errors import InputError

SMALL = Transform(16, 16)
NOISE = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)


def fill(root, *paths):
    """Files below a folder: pictures, or text where the suffix says so; a path that ends in / is an empty folder."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            file.mkdir(parents=True, exist_ok=True)
        elif file.suffix in (".png", ".jpg"):
            Image.fromarray(NOISE).save(file)
        else:
            file.write_text("0 .5 .5 .2 .2")
    return root


def pictures(folder, count=6, prefix=""):
    return [f"{folder}/{prefix}{number:03}.png" for number in range(count)]


def labelled(root, **options):
    """Labels by folder of the listing, and the listing."""
    listing = list_images(root, **options)
    assert listing.labels is not None, listing.label_note
    return {
        file.parent.relative_to(root).as_posix(): label
        for file, label in zip(listing.files, listing.labels, strict=True)
    }, listing


# --- Which folders are classes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        ([*pictures("images"), *[f"labels/{n:03}.txt" for n in range(6)]], "all images lie in one folder"),
        ([*pictures("images"), *pictures("masks")], "all images lie in one folder"),
        ([*pictures("JPEGImages"), *pictures("SegmentationClass"), "Annotations/a.xml"], "one folder, JPEGImages"),
        ([*pictures("train"), *pictures("val")], "train and val are splits of a data set without class folders"),
        ([*pictures("train/images"), "train/labels/000.txt", *pictures("valid/images")], "train and valid are splits"),
        ([*pictures("images/train2017"), *pictures("images/val2017"), "annotations/a.json"], "splits of a data set"),
        ([f"{side}/{name}.png" for side in ("left", "right") for name in "qwertz"], "hold files of the same names"),
        ([*pictures("images"), *pictures("extra")], "images is no name of a class"),
        ([*pictures("cat"), ".hidden/a.png", "dog/"], "all images lie in one folder, cat"),
        ([*pictures("cat", 2), *pictures("dog", 2), "a.png", "b.png", "c.png"], "3 of 7 images lie beside the folders"),
    ],
)  # fmt: skip
def test_folders_that_are_no_classes(tmp_path, paths, reason):
    images = load_folder(fill(tmp_path, *paths), SMALL, limit=99, seed=0)
    assert (images.labels, images.class_names) == (None, None)
    assert reason in images.label_note
    assert "unlabelled" in images.source


def test_masks_are_not_taken_for_images(tmp_path):
    listing = list_images(fill(tmp_path, *pictures("images"), *pictures("masks")))
    assert {file.parent.name for file in listing.files} == {"images"}
    assert listing.notes == ("6 images in masks left out: they describe other images",)


def test_splits_are_looked_through(tmp_path):
    fill(
        tmp_path,
        *(path for split in ("train", "val") for name in ("cat", "dog") for path in pictures(f"{split}/{name}")),
    )
    labels, listing = labelled(tmp_path)
    assert labels == {"train/cat": 0, "train/dog": 1, "val/cat": 0, "val/dog": 1}
    assert listing.class_names == ["cat", "dog"]
    assert "24 of 24 images" in (source := load_folder(tmp_path, SMALL, limit=99, seed=0).source)
    assert source.endswith("in 2 classes of train and val together")


def test_a_split_may_lack_classes_and_the_test_images_labels(tmp_path):
    fill(tmp_path, *pictures("train/cat"), *pictures("train/dog"), *pictures("val/dog"), *pictures("test"), "cover.png")
    labels, listing = labelled(tmp_path)
    assert labels == {"train/cat": 0, "train/dog": 1, "val/dog": 1}
    assert listing.notes[0].startswith("7 images outside the labelled splits left out: cover.png, 000.png")


@pytest.mark.parametrize(("names", "known"), [(("car", "train", "tree"), None), (("train", "test"), ["test", "train"])])
def test_a_train_among_vehicles_is_a_class(tmp_path, names, known):
    labels, _ = labelled(fill(tmp_path, *(path for name in names for path in pictures(name))), class_names=known)
    assert set(labels) == set(names)


def test_a_stray_cover_is_left_out_and_said(tmp_path):
    fill(tmp_path, *pictures("cat"), *pictures("dog"), "cover.png", "readme.txt", ".DS_Store")
    images = load_folder(tmp_path, SMALL, limit=99, seed=0)
    assert (len(images), images.class_names) == (12, ["cat", "dog"])
    assert images.notes == ("1 image beside the class folders left out: cover.png",)


def test_parts_of_a_class_are_that_class(tmp_path):
    fill(tmp_path, *pictures("cat/indoors"), *pictures("cat/outdoors/day"), *pictures("dog"))
    labels, listing = labelled(tmp_path)
    assert labels == {"cat/indoors": 0, "cat/outdoors/day": 0, "dog": 1}
    assert listing.class_names == ["cat", "dog"]


def test_the_number_of_classes_chooses_between_two_levels(tmp_path):
    fill(
        tmp_path,
        *(path for site in ("north", "south") for name in ("a", "b", "c") for path in pictures(f"{site}/{name}")),
    )
    assert labelled(tmp_path, num_classes=3)[1].class_names == ["a", "b", "c"]
    assert labelled(tmp_path, num_classes=2)[1].class_names == ["north", "south"]
    assert labelled(tmp_path, class_names=["c", "b", "a"], num_classes=3)[0]["north/c"] == 0


@pytest.mark.parametrize(
    "names", [("raw", "cooked"), ("original", "fake"), ("photos", "paintings"), ("images", "cat", "dog")]
)
def test_as_many_folders_as_classes_are_classes_whatever_their_names(tmp_path, names):
    fill(tmp_path, *(path for name in names for path in pictures(name, prefix=name)))
    assert labelled(tmp_path, num_classes=len(names))[1].class_names == sorted(names)
    assert "no name of a class" in list_images(tmp_path, num_classes=9).label_note


def test_masks_are_no_class_of_two(tmp_path):
    fill(tmp_path, *pictures("images"), *pictures("masks"))
    assert list_images(tmp_path, num_classes=2).labels is None
    fill(tmp_path / "splits", *pictures("train"), *pictures("val"))
    assert list_images(tmp_path / "splits", num_classes=2).labels is None


# --- How classes are numbered --------------------------------------------------------------------------------


def test_numbers_sort_as_numbers_and_empty_folders_keep_their_place(tmp_path):
    fill(tmp_path, *(path for number in (0, 1, 2, 10, 11) for path in pictures(str(number))), "3/", "9/")
    fill(tmp_path, *(f"{number}/" for number in (4, 5, 6, 7, 8)))
    labels, listing = labelled(tmp_path)
    assert labels == {"0": 0, "1": 1, "2": 2, "10": 10, "11": 11}
    assert listing.class_names == [str(number) for number in range(12)]
    assert listing.other_order == (0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3)


@pytest.mark.parametrize(
    ("names", "num_classes", "expected"),
    [
        ((0, 1, 5), 10, [0, 1, 5]),  # as they are
        (("00", "02"), 3, [0, 2]),
        ((1, 2, 12), 12, [0, 1, 11]),  # from one
        ((1, 2, 3), 3, [0, 1, 2]),
        ((1, 2, 3), 10, [1, 2, 3]),
        ((10, 9, 100), 3, [1, 0, 2]),  # in their order
        ((0, 7, 19), None, [0, 1, 2]),
    ],
)
def test_numbers_that_are_not_all_there(tmp_path, names, num_classes, expected):
    fill(tmp_path, *(path for name in names for path in pictures(str(name))))
    labels, listing = labelled(tmp_path, num_classes=num_classes)
    assert [labels[str(name)] for name in names] == expected
    if num_classes:
        assert len(listing.class_names) == num_classes
        assert all(listing.class_names[label] == str(name) for name, label in zip(names, expected, strict=True))


def test_other_names_are_alphabetical_and_their_natural_order_is_known(tmp_path):
    fill(tmp_path, *(path for number in (1, 2, 10) for path in pictures(f"class{number}")), "class3/")
    labels, listing = labelled(tmp_path)
    assert labels == {"class1": 0, "class10": 1, "class2": 2}
    assert listing.other_order == (0, 2, 1)
    assert labelled(tmp_path, num_classes=4)[0] == {"class1": 0, "class10": 1, "class2": 2}


def test_names_of_the_network_win(tmp_path):
    fill(tmp_path, *pictures("Golden_Retriever"), *pictures("cat"), *pictures("unicorn", 2))
    labels, listing = labelled(tmp_path, class_names=["zebra", "cat", "golden retriever"], num_classes=3)
    assert labels == {"Golden_Retriever": 2, "cat": 1}
    assert listing.class_names == ["zebra", "cat", "golden retriever"]
    assert listing.notes == ("2 images in unicorn left out: not among the network's classes",)
    unknown = list_images(tmp_path, class_names=["apple", "pear", "plum"], num_classes=3)
    assert unknown.labels is None
    assert "none of the network's classes (apple, pear and plum)" in unknown.label_note
    assert len(unknown.files) == 14
    # A list that is not one of the outputs says nothing.
    assert labelled(tmp_path, class_names=["apple"], num_classes=3)[1].class_names[0] == "Golden_Retriever"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("cats", "dogs"), [1, 0]),
        (("0_dog", "1_cat"), [0, 1]),
        (("01.Cats", "02.Dogs"), [1, 0]),
        (("cat", "cats", "dog"), [1, None, 0]),
    ],
)
def test_names_with_a_number_or_a_plural_are_those_of_the_network(tmp_path, names, expected):
    fill(tmp_path, *(path for name in names for path in pictures(name)))
    labels, _ = labelled(tmp_path, class_names=["dog", "cat"], num_classes=2)
    assert [labels.get(name) for name in names] == expected


def test_stems_of_two_classes_say_nothing(tmp_path):
    fill(tmp_path, *pictures("2_dogs"), *pictures("cow"))
    labels, _ = labelled(tmp_path, class_names=["1_dog", "2_dog", "cow"], num_classes=3)
    assert labels == {"cow": 2}


def test_numbers_without_0_and_the_last_may_count_from_1(tmp_path):
    fill(tmp_path, *(path for number in (1, 2, 3) for path in pictures(str(number))))
    labels, listing = labelled(tmp_path, num_classes=4)
    assert (labels, listing.other_order) == ({"1": 1, "2": 2, "3": 3}, (3, 0, 1, 2))
    other = load_folder(tmp_path, SMALL, 99, 0, num_classes=4).renumbered()
    assert other.class_names[:3] == ["1", "2", "3"]
    assert sorted(set(other.labels.tolist())) == [0, 1, 2]


def test_numbered_folders_of_a_network_with_names(tmp_path):
    fill(tmp_path, *pictures("0"), *pictures("2"))
    labels, listing = labelled(tmp_path, class_names=["ant", "bee", "cow"], num_classes=3)
    assert (labels, listing.class_names) == ({"0": 0, "2": 2}, ["ant", "bee", "cow"])


# --- What is left out ----------------------------------------------------------------------------------------


def test_files_left_out_by_suffix_are_counted(tmp_path):
    fill(tmp_path, "a.png", "x.npy", "y.npy", "z.heic", "notes.txt", "meta.json", "Thumbs.db")
    Image.fromarray(NOISE).save(tmp_path / "photo.jfif", "JPEG")
    Image.fromarray(NOISE).save(tmp_path / "photo.JPE", "JPEG")
    images = load_folder(tmp_path, SMALL, limit=9, seed=0)
    assert len(images) == 3
    assert images.notes == ("3 files were left out by suffix: 2 .npy and 1 .heic",)


def test_a_folder_of_other_files_says_what_is_there(tmp_path):
    with pytest.raises(InputError, match=r"no image files in .*; there are 2 \.dcm"):
        list_images(fill(tmp_path, "a.dcm", "b.dcm"))
