"""Size of a file or a network: bytes as stored, bytes after gzip, parameters."""

import zlib
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from compressor.errors import InputError

CHUNK_BYTES = 1 << 20
GZIP_LEVEL = 6  # the default of the gzip command
GZIP_FORMAT = 31  # zlib's window bits for a gzip header, which then carries no time stamp and no file name


def list_parts(path: Path) -> list[Path]:
    """The file, and for an ONNX file those beside it that hold its weights (external data)."""
    from exporters.runtimes.strangers import external_files

    path, parts = Path(path), []
    if path.suffix == ".onnx":
        with suppress(InputError):  # not ONNX in spite of its name
            parts = external_files(path)
    return [path, *sorted(parts)]


def file_bytes(path: Path) -> int:
    """Size of the file in bytes, its external data included.

    Raises:
        OSError: the file cannot be read.
    """
    return sum(part.stat().st_size for part in list_parts(path))


def gzip_bytes(path: Path) -> int:
    """Size in bytes after gzip, external data included; it depends on the content alone.

    Zeroed weights show here and not in `file_bytes`. The file is read in pieces, and nothing is written.

    Raises:
        OSError: the file cannot be read.
    """
    return sum(map(_gzip_bytes, list_parts(path)))


def _gzip_bytes(path: Path) -> int:
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, GZIP_FORMAT)
    size = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            size += len(packer.compress(chunk))
    return size + len(packer.flush())


def count_params(model: nn.Module) -> int:
    """Number of parameters, without buffers such as running statistics; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_nonzero_params(model: nn.Module) -> int:
    """Number of parameters that are not exactly zero; a shared parameter counts once."""
    return sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())
