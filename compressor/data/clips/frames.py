"""Which frames of a clip a network sees: as many as it takes, evenly over the whole clip, or in a row."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from compressor.data.listing import SUFFIXES

T = TypeVar("T")


def choose_frames(frames: Sequence[T], count: int) -> list[T]:
    """The middle frame of each of `count` equal parts of the clip; frames repeat where there are fewer."""
    return [frames[(2 * part + 1) * len(frames) // (2 * count)] for part in range(count)]


def frames_from(first: Path, count: int) -> list[Path]:
    """A frame of a clip and those that follow it, `count` in all."""
    frames = list_frames(first.parent)
    start = frames.index(first)
    return frames[start : start + count]


def list_frames(clip: Path) -> list[Path]:
    """A clip's image files in the order of their numbers: frame_9 before frame_10."""
    files = [file for file in clip.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    return sorted(files, key=lambda file: natural(file.name))


def natural(name: str) -> list[tuple[int, str]]:
    """A name in parts that sort numbers by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]
