"""Clips as folders of frames: which frames are seen, in which order, with which labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compressor.data.clips.frames import choose_frames, list_frames
from compressor.data.folders import load_folder
from compressor.data.further import FurtherImages
from compressor.data.synthetic import synthetic_images
from compressor.data.transforms import Transform
from compressor.errors import InputError

TRANSFORM = Transform(input_size=8, resize_size=8, mean=(0.5,) * 3, std=(0.25,) * 3, frames=4)


def write_clip(folder: Path, count: int, shift: int = 0) -> None:
    """Frames whose grey level is their number."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (10, 8), (number + shift,) * 3).save(folder / f"frame_{number}.png")


@pytest.mark.parametrize(
    ("frames", "count", "chosen"),
    [(8, 4, [1, 3, 5, 7]), (4, 4, [0, 1, 2, 3]), (2, 4, [0, 0, 1, 1]), (9, 1, [4]), (1, 3, [0, 0, 0])],
)
def test_frames_are_spread_over_the_clip(frames: int, count: int, chosen: list[int]) -> None:
    assert choose_frames(range(frames), count) == chosen


def test_frames_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip", 12)
    (tmp_path / "clip" / "notes.txt").write_text("no frame")
    assert [file.name for file in list_frames(tmp_path / "clip")] == [f"frame_{number}.png" for number in range(12)]


def test_clips_of_classes(tmp_path: Path) -> None:
    for label, name in enumerate(["run", "walk"]):
        for number in range(3):
            write_clip(tmp_path / name / f"clip{number}", 12, 100 * label)
    Image.new("RGB", (10, 8)).save(tmp_path / "run" / "preview.png")
    found = load_folder(tmp_path, TRANSFORM, 6, seed=0)
    assert (found.class_names, found.input_shape, len(found)) == (["run", "walk"], (3, 4, 8, 8), 6)
    assert found.source == f"6 of 6 clips in {tmp_path}, in 2 classes"
    labels = found.labels
    assert labels is not None
    expected = torch.tensor([1, 4, 7, 10])[None] + 100 * labels[:, None]
    assert torch.equal(found.data[:, 0, :, 4, 4].long(), expected)
    assert found.files is not None
    assert found.files[0].split("/")[0] == ["run", "walk"][labels[0]]
    batch = found.batch([0])
    torch.testing.assert_close(batch[0, :, :, 4, 4], ((expected[0] / 255 - 0.5) / 0.25).expand(3, 4))


def test_clips_without_classes_and_those_that_are_too_short(tmp_path: Path) -> None:
    for number in range(5):
        write_clip(tmp_path / f"clip{number}", 3 if number else 9)
    found = load_folder(tmp_path, TRANSFORM, 5, seed=0)
    assert found.labels is None
    (note,) = (note for note in found.notes if "frames" in note)
    assert note.startswith("4 clips have fewer than 4 frames, which are repeated: ")


def test_clips_beyond_those_held_are_read_for_the_test(tmp_path: Path) -> None:
    for number in range(9):
        write_clip(tmp_path / "ab"[number % 2] / f"clip{number}", 6, number)
    found = load_folder(tmp_path, TRANSFORM, 4, seed=0)
    assert isinstance(found.further, FurtherImages)
    (further,) = found.further.batches(found)
    assert (further.input_shape, len(further)) == ((3, 4, 8, 8), 5)
    assert further.labels is not None


def test_broken_clips_are_left_out(tmp_path: Path) -> None:
    for number in range(4):
        write_clip(tmp_path / f"clip{number}", 6)
    (tmp_path / "clip0" / "frame_2.png").write_bytes(b"no image")
    Image.fromarray(np.full((8, 10), 3000, np.uint16)).save(tmp_path / "clip1" / "frame_0.png")
    found = load_folder(tmp_path, TRANSFORM, 4, seed=0)
    assert (len(found), found.unreadable) == (2, 2)


@pytest.mark.parametrize("clip", ["", "clip/"])
def test_images_where_clips_are_expected(tmp_path: Path, clip: str) -> None:
    write_clip(tmp_path / clip / "inside" if clip else tmp_path / "inside", 3)
    with pytest.raises(InputError, match="holds images, and the network takes clips: clips are folders of frames"):
        load_folder(tmp_path / clip / "inside", TRANSFORM, 3, seed=0)


def test_videos_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=r"there are 1 \.mp4, of which `ffmpeg -i clip\.mp4 clip/%05d\.jpg` makes"):
        load_folder(tmp_path, TRANSFORM, 3, seed=0)


def test_pairs_are_frames_that_follow_one_another(tmp_path: Path) -> None:
    write_clip(tmp_path / "left" / "day", 11)
    write_clip(tmp_path / "night", 3, 100)
    write_clip(tmp_path / "single", 1)
    transform = replace(TRANSFORM, frames=2, adjacent=True)
    found = load_folder(tmp_path, transform, 20, seed=0, num_classes=2)
    assert (found.source, found.labels, found.input_shape) == (
        f"12 of 12 pairs of frames in {tmp_path}, unlabelled",
        None,
        (3, 2, 8, 8),
    )
    assert not any("frames" in note for note in found.notes)
    first, second = found.data[:, 0, :, 4, 4].long().T.tolist()
    assert sorted(first) == [*range(10), 100, 101]
    assert second == [each + 1 for each in first]
    assert found.files is not None
    assert found.files[first.index(9)] == "left/day/frame_9.png"
    inside = load_folder(tmp_path / "night", transform, 20, seed=0)  # a clip by itself
    assert len(inside) == 2
    with pytest.raises(InputError, match="has 2 frames, and the network takes 2 that follow one another"):
        load_folder(tmp_path / "single", transform, 20, seed=0)


def test_synthetic_clips_move() -> None:
    found = synthetic_images(2, TRANSFORM, seed=3)
    assert (found.input_shape, found.source) == ((3, 4, 8, 8), "2 synthetic clips")
    changes = found.data[:, :, 1:].float() - found.data[:, :, :-1].float()
    assert bool((changes.abs().amax((1, 3, 4)) > 0).any(1).all())
    assert torch.equal(found.data[1], synthetic_images(2, TRANSFORM, seed=3).data[1])
