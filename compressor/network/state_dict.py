"""Reads the state_dict in a checkpoint file without running code from it (`weights_only=True`)."""

import argparse
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import InputError
from compressor.text import first_line, join_words

AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")

# Keys under which training scripts store the weights, the most likely first.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
)

# Names of torchvision's own older files (DenseNet until 0.2, vision transformers until 0.13).
OLD_NAMES = (
    (re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)


# --- Reading the file --------------------------------------------------------------------------------------


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


def read_head(path: Path) -> tuple[bytes, int]:
    """The first 64 bytes of a file, and its size in bytes.

    Raises:
        InputError: it is no file, empty, or cannot be read.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a checkpoint file")
    try:
        with open(path, "rb") as file:
            head = file.read(64)
        size_bytes = path.stat().st_size
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if not head:
        raise InputError(f"{path} is empty")
    return head, size_bytes


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
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is a damaged safetensors file ({first_line(error)})") from error


def check_archive(path: Path) -> None:
    """Refuse zip files that are cut short or not from torch.save.

    Raises:
        InputError: it is such a file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path} is damaged or cut short: the end of its zip archive is missing") from error
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
        InputError: torch refuses it.
    """
    try:
        # torchvision's training scripts save their arguments as a Namespace, a class without behaviour.
        # The file is opened here because torch.load would infer the format from a path's suffix.
        with torch.serialization.safe_globals([argparse.Namespace]), open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=not trust_pickle)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise InputError(explain_unpickling(path, error, trust_pickle)) from error


def explain_unpickling(path: Path, error: Exception, trust_pickle: bool) -> str:
    """One sentence on why torch.load refused the file."""
    if not trust_pickle:
        refused = re.search(r"(?:Unsupported global: )?GLOBAL (\S+)|Unsupported class (\S+)", str(error))
        if refused:
            return (
                f"{path} holds pickled code ({refused[1] or refused[2]}), which runs when it is loaded: "
                "save the model's state_dict() instead, or pass --trust-pickle only if you trust where the "
                "file came from"
            )
    if isinstance(error, ModuleNotFoundError | AttributeError):
        return (
            f"{path} was pickled with code that cannot be found here ({first_line(error)}): "
            "save the model's state_dict() instead"
        )
    if isinstance(error, pickle.UnpicklingError):  # torch's message advises to turn off the safety
        return f"{path} is damaged, or not a file of torch.save"
    return f"{path} is damaged, or not a file of torch.save ({first_line(error)})"


# --- Finding the weights in it -----------------------------------------------------------------------------


def find_weights(content: object, path: Path, notes: list[str]) -> dict[str, Tensor] | nn.Module:
    """The state_dict, or trusted module, in the content of a checkpoint.

    Args:
        content: as read from the file.
        path: the file, for messages.
        notes: gets a remark where the file contains more than one set of weights.

    Raises:
        InputError: there are no weights.
    """
    if isinstance(content, nn.Module):
        return unwrap_module(content)
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state_dict")
    inner = [key for key in WRAPPERS if holds_weights(content.get(key))] or other_wrappers(content)
    if inner:
        if len(inner) > 1:
            notes.append(f"weights taken from {inner[0]!r}; the file also holds {join_words(inner[1:])}")
        return find_weights(content[inner[0]], path, notes)
    weights = named_tensors(content)
    if not weights:
        raise InputError(f"{path} holds {describe_weightless(content)} and no network weights")
    return weights


def holds_weights(content: object) -> bool:
    """Whether this is a module, or a dict with named tensors somewhere inside."""
    if isinstance(content, nn.Module):
        return True
    if not isinstance(content, Mapping) or is_optimizer(content):
        return False
    return bool(named_tensors(content)) or any(holds_weights(content.get(key)) for key in WRAPPERS)


def other_wrappers(content: Mapping[Any, Any]) -> list[str]:
    """Keys not in WRAPPERS whose values are dicts of named tensors alone."""
    return [
        key
        for key, value in content.items()
        if isinstance(value, Mapping) and value and len(named_tensors(value)) == len(value)
    ]


def named_tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a dict by their names, detached."""
    return {key: value.detach() for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def is_optimizer(content: Mapping[Any, Any]) -> bool:
    """Whether this is an optimizer's state_dict."""
    return "param_groups" in content


def describe_weightless(content: Mapping[Any, Any]) -> str:
    """What a dict without weights contains, for a message."""
    if is_optimizer(content) or any(isinstance(v, Mapping) and is_optimizer(v) for v in content.values()):
        return "an optimizer's state"
    if not content:
        return "an empty dict"
    return f"the entries {join_words([str(key) for key in list(content)[:4]])}"


def unwrap_module(module: nn.Module) -> nn.Module:
    """The network inside the wrappers of parallel training and of torch.compile."""
    for name in ("module", "_orig_mod"):
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module) and len(list(module.children())) == 1:
            return unwrap_module(inner)
    return module


def tidy_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under torchvision's present names: no wrapper's prefix, no auxiliary heads, no old spellings."""
    # `n_averaged` is a counter of torch's AveragedModel.
    tidy = {name: tensor for name, tensor in weights.items() if name != "n_averaged"}
    # Every classifier of torchvision has at least two parts at its top level, so one common first word
    # (module, _orig_mod, model, backbone ...) comes from a wrapper.
    while len({name.partition(".")[0] for name in tidy}) == 1 and all("." in name for name in tidy):
        tidy = {name.partition(".")[2]: tensor for name, tensor in tidy.items()}
    return {modern_name(name): tensor for name, tensor in tidy.items() if not name.startswith(AUXILIARY_HEADS)}


def modern_name(name: str) -> str:
    """The present name of a tensor in one of torchvision's older files."""
    for pattern, replacement in OLD_NAMES:
        name = pattern.sub(replacement, name)
    return name
