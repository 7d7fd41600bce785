"""Tensors in a temporary file: what is read again and again, and would fill the memory."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BufferedRandom
from threading import Lock
from typing import cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor

LARGE_FILES = "/var/tmp"  # where there is one: /tmp is often in memory


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the file, and how: `order` are its axes from the outermost in memory to the innermost."""

    begin: int
    order: list[int]
    shape: torch.Size
    dtype: torch.dtype


class _File:
    """A temporary file, which is closed with the last reference to it; threads take turns."""

    def __init__(self) -> None:
        self.turn = Lock()

    @cached_property
    def handle(self) -> BufferedRandom:
        """Opened when it is first needed."""
        is_usual = "TMPDIR" in os.environ or not os.access(LARGE_FILES, os.W_OK)
        return cast(BufferedRandom, tempfile.TemporaryFile(dir=None if is_usual else LARGE_FILES))


_shared: WeakValueDictionary[str, _File] = WeakValueDictionary()


class TensorsOnDisk:
    """A list of tensors on the CPU, each of which is read anew whenever it is asked for.

    The file has no name where the system knows such files: nothing is left of it, however the process ends. The system
    keeps it in memory as long as there is room for it, so that it is hardly slower than that.
    """

    def __init__(self, file: _File | None = None) -> None:
        self._places: list[_Place] = []
        self._file = file or _File()

    def append(self, tensor: Tensor) -> None:
        """Add a tensor.

        Raises:
            OSError: the disk is full, or there is no place for temporary files.
        """
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        inner = tensor.detach().permute(order).contiguous()
        with self._file.turn:
            begin = self._file.handle.seek(0, os.SEEK_END)
            self._file.handle.write(inner.flatten().view(torch.uint8).numpy().data)
            self._file.handle.flush()
            self._places.append(_Place(begin, order, inner.shape, tensor.dtype))

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[number] for number in range(len(self)))

    def __reduce__(self) -> tuple[object, ...]:
        """Other processes are sent the tensors, and keep them in files of their own."""
        return on_disk, (list(self),)

    def __getitem__(self, number: int) -> Tensor:
        """The tensor as it was added, its axes in the same order in memory.

        Raises:
            IndexError: there is none.
            OSError: the file was cut off.
        """
        place = self._places[number]
        found = torch.empty(place.shape, dtype=place.dtype)
        into = found.flatten().view(torch.uint8).numpy().data
        with self._file.turn:
            self._file.handle.seek(place.begin)
            if self._file.handle.readinto(into) != into.nbytes:
                raise OSError("a temporary file is shorter than what was written to it")
        return found.permute([place.order.index(axis) for axis in range(len(place.order))])


def on_disk(tensors: list[Tensor]) -> TensorsOnDisk | list[Tensor]:
    """The tensors in a file, or as they are where that has no room, or they are an accelerator's.

    All lists share one file, as long as there are any: a process may not open many.
    """
    file = _shared.get("file") or _File()
    _shared["file"], kept = file, TensorsOnDisk(file)
    try:
        for tensor in tensors:
            if tensor.device.type != "cpu":
                return tensors
            kept.append(tensor)
    except OSError:
        return tensors
    return kept
