"""A folder of clips as the folder of images that it would be, had every clip been one file."""

from dataclasses import replace

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


def _inside(folder: Folder) -> Folder:
    clips = [inside.path for inside in folder.folders if _is_clip(inside)]
    others = [_inside(inside) for inside in folder.folders if not _is_clip(inside)]
    return replace(folder, images=clips, folders=others)


def _is_clip(folder: Folder) -> bool:
    """Whether images lie in the folder, and in none below it; images beside folders of frames are left out."""
    return bool(folder.images) and not any(inside.count for inside in folder.folders)
