"""Tensors that a later run believes: safetensors whose metadata hold a checksum of all of it.

Safetensors rather than pickles: a file from elsewhere holds numbers and text, and no code that loading it would run.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from compressor.errors import InputError
from compressor.failures import blaming
from compressor.files.checksums import DIGITS, KEY
from compressor.files.reading import open_regular
from compressor.files.writing import replace_when_whole

SIZE_BYTES, METADATA = 8, "__metadata__"  # of the file's format: a size of so many bytes, a header of JSON, the tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, contiguous and on the CPU, and texts beside them to `path` atomically; equal ones as equal bytes.

    Raises:
        InputError: the file cannot be written.
    """
    content = memoryview(save(dict(tensors), {**metadata, KEY: _checksum(tensors, metadata)}))
    end = SIZE_BYTES + int.from_bytes(content[:SIZE_BYTES], "little")
    header = _in_order(bytes(content[SIZE_BYTES:end]))
    with replace_when_whole(path) as partial, partial.open("wb") as file:
        for part in (len(header).to_bytes(SIZE_BYTES, "little"), header, content[end:]):
            file.write(part)


def read_tensors(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and texts that `write_tensors` wrote.

    Raises:
        InputError: the file cannot be read, or was altered since.
    """
    open_regular(path, what).close()
    with (
        blaming(lambda reason: InputError(f"{path} is not a {what} ({reason}); choose another --out")),
        safe_open(path, framework="pt") as file,
    ):
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    if metadata.pop(KEY, None) != _checksum(tensors, metadata):
        raise InputError(f"{path} is not a {what} as it was written: it was altered, or is of another version")
    return tensors, metadata


def _in_order(header: bytes) -> bytes:
    """The file's header with the texts in the order of their names; safetensors has them in another each time."""
    parts = json.loads(header)
    parts[METADATA] = dict(sorted(parts[METADATA].items()))
    text = json.dumps(parts, separators=(",", ":")).encode()
    return text.ljust(-(-len(text) // SIZE_BYTES) * SIZE_BYTES)  # tensors begin at multiples of it


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    sha = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:DIGITS]
