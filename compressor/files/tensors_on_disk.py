"""Tensors in a temporary file: what is read again and again, and would fill the memory."""

import tempfile
from dataclasses import dataclass

import torch
from torch import Tensor


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
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the last reference to it
        self._places: list[_Place] = []

    def append(self, tensor: Tensor) -> None:
        """Add a tensor.

        Raises:
            OSError: the disk is full.
        """
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        inner = tensor.detach().permute(order).contiguous()
        begin = self._file.seek(0, 2)
        self._file.write(inner.flatten().view(torch.uint8).numpy().data)
        self._file.flush()
        self._places.append(_Place(begin, order, inner.shape, tensor.dtype))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> Tensor:
        """The tensor as it was added, its axes in the same order in memory."""
        place = self._places[number]
        found = torch.empty(place.shape, dtype=place.dtype)
        self._file.seek(place.begin)
        self._file.readinto(found.flatten().view(torch.uint8).numpy().data)
        return found.permute([place.order.index(axis) for axis in range(len(place.order))])
