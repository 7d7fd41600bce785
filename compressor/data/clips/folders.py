"""A folder of clips as the folder of images that it would be, had every clip, or part of one, been one file."""

from dataclasses import replace

from compressor.data.clips.frames import natural
from compressor.data.listing import Folder
from compressor.errors import InputError

HOW = "clips are folders of frames, DATA/CLASS/CLIP/00001.jpg or DATA/CLIP/00001.jpg"
FFMPEG = "`ffmpeg -i clip.mp4 clip/%05d.jpg` makes folders of frames, as networks for clips take them"
VIDEOS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v", ".wmv", ".flv"})


def clips_as_files(folder: Folder) -> Folder:
    """The tree in which each folder that holds frames is a file.

    Raises:
        InputError: the folder itself is a clip.
    """
    if _is_clip(folder):
        raise InputError(f"{folder.path} holds images, and the network takes clips: {HOW}")
    return _inside(folder)


def starts_as_files(folder: Folder, count: int) -> Folder:
    """The tree of those frames alone that `count` - 1 others follow.

    Raises:
        InputError: there are none.
    """
    starts = _starts(folder, count)
    if folder.count and not starts.count:
        raise InputError(
            f"no folder in {folder.path} has {count} frames, and the network takes {count} that follow one another: "
            "frames are the images of a folder in the order of their names, DATA/CLIP/00001.jpg"
        )
    return starts


def _starts(folder: Folder, count: int) -> Folder:
    frames = sorted(folder.images, key=lambda file: natural(file.name))
    starts = frames[: max(0, len(frames) - count + 1)]
    return replace(folder, images=starts, folders=[_starts(inside, count) for inside in folder.folders])


def _inside(folder: Folder) -> Folder:
    clips = [inside.path for inside in folder.folders if _is_clip(inside)]
    others = [_inside(inside) for inside in folder.folders if not _is_clip(inside)]
    return replace(folder, images=clips, folders=others)


def _is_clip(folder: Folder) -> bool:
    """Whether images lie in the folder, and in none below it; images beside folders of frames are left out."""
    return bool(folder.images) and not any(inside.count for inside in folder.folders)
