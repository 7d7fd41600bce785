"""Reads a checkpoint file by its content: safetensors, or torch.save's formats without running code of theirs."""

import argparse
import pickle
import struct
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from compressor.errors import BocompressError, InputError
from compressor.failures import blaming, explain_shortage
from compressor.files import read_head
from compressor.network.checkpoints.inert import read_tensors_only
from compressor.text import first_line

# torch.save packs nothing; of files packed later, those that unpack to more than this and so many times their size are
# made to fill the memory.
MAX_UNPACKED_BYTES = 1_000_000_000
MAX_PACKING = 20


def read_checkpoint(path: Path, trust_pickle: bool = False) -> object:
    """The content of a checkpoint file; the first bytes decide on the format, not the suffix.

    Raises:
        InputError: the file does not exist, is damaged or of another format, or needs `trust_pickle`.
    """
    head, size_bytes = read_head(path)
    if is_safetensors(head, size_bytes):
        return read_safetensors(path)
    if head.startswith(b"PK\x03\x04"):
        check_archive(path)
    elif not head.startswith(b"\x80"):
        raise InputError(f"{path} is {describe_foreign(head)}, not a checkpoint of torch.save or safetensors")
    return read_pickle(path, trust_pickle)


def is_safetensors(head: bytes, size_bytes: int) -> bool:
    """Whether a file begins with the length of a JSON header and the header."""
    if len(head) < 9 or head[8:9] != b"{":
        return False
    (header_bytes,) = struct.unpack("<Q", head[:8])
    # A file cut short has a header longer than itself; the format limits headers to 100 MB.
    return header_bytes <= max(size_bytes, 100_000_000)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        InputError: the file is damaged.
    """
    from safetensors.torch import load_file

    with blaming(lambda reason: InputError(f"{path} is a damaged safetensors file ({reason})")):
        return load_file(path)


def check_archive(path: Path) -> None:
    """Refuse zip files that are cut short or not from torch.save.

    Raises:
        InputError: it is such a file.
    """
    damage = f"{path} is damaged or cut short: its zip archive cannot be read"
    with blaming(lambda reason: InputError(f"{damage} ({reason})")), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    unpacked, size_bytes = sum(entry.file_size for entry in entries), path.stat().st_size
    if unpacked > max(MAX_UNPACKED_BYTES, MAX_PACKING * size_bytes):
        raise InputError(f"{path} has {size_bytes:,} bytes, and would be unpacked to {unpacked:,}: save it anew")
    if any(name.endswith("/constants.pkl") for name in names):
        raise InputError(f"{path} is a TorchScript archive: save the model's state_dict() instead")
    if not any(name.endswith("data.pkl") for name in names):
        raise InputError(f"{path} is a zip archive that torch.save did not write: save a state_dict()")


def describe_foreign(head: bytes) -> str:
    """The kind of a file that is no checkpoint, as far as its first bytes show."""
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (git lfs pull fetches the file)"
    if head.lstrip()[:1] == b"<":
        return "a web page or XML"
    text = all(byte in (9, 10, 13) or byte >= 32 for byte in head)
    return "a text file" if text else "a file of another kind"


def read_pickle(path: Path, trust_pickle: bool) -> object:
    """Load a file of torch.save, without running code from it unless it is trusted.

    Raises:
        InputError: it cannot be read.
    """
    try:
        # torchvision's training scripts save their arguments as a Namespace, a class without behaviour.
        # The file is opened here because torch.load would infer the format from a path's suffix.
        with torch.serialization.safe_globals([argparse.Namespace]), open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=not trust_pickle)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        if trust_pickle:
            raise explain_unpickling(error, _describe_trusted(path, error)) from error
    try:
        return read_tensors_only(path)
    except Exception as error:
        raise explain_unpickling(error, _describe_damage(path, error)) from error


def explain_unpickling(error: Exception, sentence: str) -> BocompressError:
    """Why a file could not be read: for want of memory, or as the sentence says."""
    return explain_shortage(error) or InputError(sentence)


def _describe_trusted(path: Path, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError | AttributeError):
        return (
            f"{path} was pickled with code that cannot be found here ({first_line(error)}): "
            "leave out --trust-pickle to read its tensors alone, or save the model's state_dict() instead"
        )
    if "magic number" in str(error):
        return f"{path} is a plain pickle, not a file of torch.save: leave out --trust-pickle to read its tensors alone"
    return _describe_damage(path, error)


def _describe_damage(path: Path, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch's message advises to turn off the safety
        return f"{path} is damaged, or not a file of torch.save"
    return f"{path} is damaged, or not a file of torch.save ({first_line(error)})"
