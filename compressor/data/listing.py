"""What a folder holds: images, other files and folders, as a tree without what is hidden."""

import mimetypes
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from compressor.errors import InputError

JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
OTHERS = (".png", ".bmp", ".dib", ".gif", ".ppm", ".pgm", ".pnm", ".tif", ".tiff", ".webp", ".avif", ".jp2", ".tga")
SUFFIXES = frozenset({*JPEG, *OTHERS})
# Entries to ignore: hidden ones, the resource forks in archives from macOS, and what Windows leaves in folders.
HIDDEN = (".", "__MACOSX")
IGNORED = frozenset({"thumbs.db", "desktop.ini"})
TEXTS = frozenset({"application/json", "application/xml", "application/pdf"})  # nobody takes them for images


@dataclass(frozen=True)
class Folder:
    """A folder and all below it.

    Attributes:
        path: of the folder.
        images: image files that lie directly in it, sorted.
        folders: those in it, sorted by name; hidden ones are left out.
        others: files that lie directly in it and are no images by their suffix, texts aside; by that suffix.
    """

    path: Path
    images: list[Path]
    folders: list["Folder"]
    others: Counter[str]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    @cached_property
    def count(self) -> int:
        """Image files in it and below."""
        return len(self.images) + sum(folder.count for folder in self.folders)

    def walk(self) -> Iterator[Path]:
        """Yields image files in it and below."""
        yield from self.images
        for folder in self.folders:
            yield from folder.walk()

    def count_others(self) -> Counter[str]:
        """Files in it and below that are no images by their suffix, by that suffix."""
        return sum((folder.count_others() for folder in self.folders), Counter(self.others))


def scan(path: Path) -> Folder:
    """The tree of a folder; links are followed unless they lead back to a folder above.

    Raises:
        InputError: not a folder, or one that cannot be read.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder" if path.exists() else f"{path} does not exist")
    try:
        return _scan(path, frozenset())
    except OSError as error:
        raise InputError(f"cannot read {error.filename or path}: {error.strerror or error}") from error


def _scan(path: Path, above: frozenset[tuple[int, int]]) -> Folder:
    identity = _identify(path)
    if identity in above:
        return Folder(path, [], [], Counter())
    images, folders, others = [], [], Counter[str]()
    with os.scandir(path) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(HIDDEN)]
    for entry in sorted(visible, key=lambda entry: entry.name):
        inside = path / entry.name
        if entry.is_dir():
            folders.append(_scan(inside, above | {identity}))
        elif entry.is_file() and inside.suffix.lower() in SUFFIXES:
            images.append(inside)
        elif entry.is_file() and not _is_text(entry.name):
            others[inside.suffix.lower() or "no suffix"] += 1
    return Folder(path, images, folders, others)


def _is_text(name: str) -> bool:
    kind = mimetypes.guess_type(name)[0] or ""
    return kind.startswith("text/") or kind in TEXTS or name.lower() in IGNORED


def _identify(folder: Path) -> tuple[int, int]:
    """Device and inode, equal for two paths to the same folder."""
    status = folder.stat()
    return status.st_dev, status.st_ino
