"""What a folder holds: images, other files and folders, as a tree without what is hidden."""

import mimetypes
import os
import stat
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
MAX_DEPTH = 100
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
    """The tree of a folder. Links are followed; what several lead to is there once, where it lies if that is inside.

    Raises:
        InputError: not a folder, one that cannot be read, or folders more than MAX_DEPTH levels deep.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder" if path.exists() else f"{path} does not exist")
    try:
        scanner = _Scanner(path)
        tree = scanner.scan(path, 0)
        scanner.follow_links()
        return tree
    except OSError as error:
        raise InputError(f"cannot read {error.filename or path}: {error.strerror or error}") from error


class _Scanner:
    """Scans folders and files that are no links first, then what links lead to, each once."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._seen: set[tuple[int, int]] = set()  # device and inode, equal for two paths to the same
        self._links: list[tuple[Folder, Path, int]] = []

    def scan(self, path: Path, depth: int) -> Folder:
        """The folder and all below it, without links, which are kept for later; empty if it was seen before."""
        if depth > MAX_DEPTH:
            raise InputError(f"{self._top} has folders more than {MAX_DEPTH} levels deep: give one further inside")
        folder, status = Folder(path, [], [], Counter()), path.stat()
        if not self._is_first(status.st_dev, status.st_ino):
            return folder
        with os.scandir(path) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(HIDDEN)]
        for entry in sorted(visible, key=lambda entry: entry.name):
            inside = path / entry.name
            if entry.is_symlink():
                self._links.append((folder, inside, depth))
            elif entry.is_dir():
                folder.folders.append(self.scan(inside, depth + 1))
            elif entry.is_file() and self._is_first(status.st_dev, entry.inode()):
                _add_file(folder, inside)
        return folder

    def follow_links(self) -> None:
        """Add what the links lead to and was not seen; those that lead nowhere, or in a circle, are left out."""
        changed: dict[int, Folder] = {}
        while self._links:
            folder, inside, depth = self._links.pop(0)
            try:
                status = inside.stat()
            except OSError:
                continue
            identity = status.st_dev, status.st_ino
            if stat.S_ISDIR(status.st_mode) and identity not in self._seen:
                folder.folders.append(self.scan(inside, depth + 1))
            elif stat.S_ISREG(status.st_mode) and self._is_first(*identity):
                _add_file(folder, inside)
            changed[id(folder)] = folder
        for folder in changed.values():
            folder.folders.sort(key=lambda one: one.name)
            folder.images.sort()

    def _is_first(self, device: int, inode: int) -> bool:
        before = len(self._seen)
        self._seen.add((device, inode))
        return len(self._seen) > before


def _is_text(name: str) -> bool:
    kind = mimetypes.guess_type(name)[0] or ""
    return kind.startswith("text/") or kind in TEXTS or name.lower() in IGNORED


def _add_file(folder: Folder, file: Path) -> None:
    if file.suffix.lower() in SUFFIXES:
        folder.images.append(file)
    elif not _is_text(file.name):
        folder.others[file.suffix.lower() or "no suffix"] += 1
