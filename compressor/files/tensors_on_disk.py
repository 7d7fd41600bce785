"""Tensors in a temporary file: what is read again and again, and would fill the memory."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BufferedRandom
from threading import Lock
from typing import cast

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


class TensorsOnDisk:
    """A list of tensors on the CPU, each of which is read anew whenever it is asked for.

    The file has no name where the system knows such files: nothing is left of it, however the process ends. The system
    keeps it in memory as long as there is room for it, so that it is hardly slower than that.
    """

    def __init__(self) -> None:
        self._places: list[_Place] = []
        self._turn = Lock()  # threads share the place in the file

    @cached_property
    def _file(self) -> BufferedRandom:
        """Closed with the last reference to it."""
        is_usual = "TMPDIR" in os.environ or not os.access(LARGE_FILES, os.W_OK)
        return cast(BufferedRandom, tempfile.TemporaryFile(dir=None if is_usual else LARGE_FILES))

    def append(self, tensor: Tensor) -> None:
        """Add a tensor.

        Raises:
            OSError: the disk is full, or there is no place for temporary files.
        """
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        inner = tensor.detach().permute(order).contiguous()
        with self._turn:
            begin = self._file.seek(0, os.SEEK_END)
            self._file.write(inner.flatten().view(torch.uint8).numpy().data)
            self._file.flush()
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
        """
        place = self._places[number]
        found = torch.empty(place.shape, dtype=place.dtype)
        with self._turn:
            self._file.seek(place.begin)
            self._file.readinto(found.flatten().view(torch.uint8).numpy().data)
        return found.permute([place.order.index(axis) for axis in range(len(place.order))])


def on_disk(tensors: list[Tensor]) -> TensorsOnDisk | list[Tensor]:
    """The tensors in a file, or as they are where that has no room, or they are an accelerator's."""
    kept = TensorsOnDisk()
    try:
        for tensor in tensors:
            if tensor.device.type != "cpu":
                return tensors
            kept.append(tensor)
    except OSError:
        return tensors
    return kept
