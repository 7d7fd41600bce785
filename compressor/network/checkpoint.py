"""Safe loading of a trained network: what does this file hold, and which torchvision architecture is it?

A checkpoint is read without running any code in it (`weights_only=True`).
"""

import argparse
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.data.transforms import Transform
from compressor.errors import InputError
from compressor.network.architectures import (
    CLASSES,
    build_model,
    first_difference,
    identify,
    image_size_of,
    known_architecture,
    published_transform,
    registry_fingerprints,
    shapes_of,
)
from compressor.text import first_line, join_words

IMAGENET_CLASSES = 1000
AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")

# Where training scripts put the weights inside a checkpoint, the likeliest place first.
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


@dataclass(frozen=True)
class LoadedModel:
    """A network ready for inference: eval mode, float32, on the CPU, no gradients.

    `arch` is torchvision's name of it, `transform` what its published weights expect of an image, and `notes`
    are one-line remarks for the user.
    """

    arch: str
    num_classes: int
    model: nn.Module
    transform: Transform
    notes: list[str]


def load_model(path: Path, arch: str | None = None, trust_pickle: bool = False) -> LoadedModel:
    """Load a torchvision classifier from a `.pt`, `.pth` or `.safetensors` file.

    Args:
        path: a state_dict, a dict holding one, or with `trust_pickle` a whole pickled module.
        arch: torchvision's name of the architecture; recognized from the weights if not given.
        trust_pickle: allow a file to run code while it is loaded.

    Raises:
        InputError: the file cannot be read, holds no weights, holds weights that are not finite or that fit
            no architecture (or more than one), or torchvision cannot be imported.
    """
    path = Path(path)
    if arch is not None:
        arch = known_architecture(arch)
    notes: list[str] = []
    found = find_weights(read_checkpoint(path, trust_pickle), path, notes)
    if isinstance(found, nn.Module):
        return adopt_module(found, path, arch, notes)
    weights = tidy_names(found)
    arch, free = identify(shapes_of(weights), arch, str(path))
    check_finite(weights, path)
    model = build_model(arch, free[CLASSES], image_size_of(free, weights))
    fill(model, weights, path, notes)
    set_transform_input(model, arch, free[CLASSES], notes)
    transform = published_transform(arch, image_size_of(free, weights))
    return LoadedModel(arch, free[CLASSES], freeze(model), transform, notes)


# --- Reading the file --------------------------------------------------------------------------------------


def read_checkpoint(path: Path, trust_pickle: bool = False) -> object:
    """Whatever the file holds; its content decides on the format, not its suffix.

    Raises:
        InputError: not a file, or not one that can be read (safely, without `trust_pickle`).
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
    """The first bytes of a file, and its size in bytes."""
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
    """Does the file begin with the length of a JSON header, and the header?"""
    if len(head) < 9 or head[8:9] != b"{":
        return False
    (header_bytes,) = struct.unpack("<Q", head[:8])
    # A header longer than the file is one that was cut short; anything up to the format's own limit of 100 MB
    # is still told apart from other files.
    return header_bytes <= max(size_bytes, 100_000_000)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is a damaged safetensors file ({first_line(error)})") from error


def check_archive(path: Path) -> None:
    """Refuse zip files that are cut short or that torch.save did not write."""
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
    """What a file that is no checkpoint looks like."""
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (git lfs pull fetches the file)"
    if head.lstrip()[:1] == b"<":
        return "a web page or XML"
    text = all(byte in (9, 10, 13) or byte >= 32 for byte in head)
    return "a text file" if text else "a file of another kind"


def read_pickle(path: Path, trust_pickle: bool) -> object:
    """Load what torch.save wrote, without running code from the file unless it is trusted."""
    try:
        # torchvision's own training scripts save their arguments as a Namespace: a class without behaviour.
        # An open file, as torch.load would take a path's suffix for its format.
        with torch.serialization.safe_globals([argparse.Namespace]), open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=not trust_pickle)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise InputError(explain_unpickling(path, error, trust_pickle)) from error


def explain_unpickling(path: Path, error: Exception, trust_pickle: bool) -> str:
    """One sentence on why torch.load refused a file."""
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
    if isinstance(error, pickle.UnpicklingError):  # in torch's words, advice to switch the safety off
        return f"{path} is damaged, or not a file of torch.save"
    return f"{path} is damaged, or not a file of torch.save ({first_line(error)})"


# --- Finding the weights in it -----------------------------------------------------------------------------


def find_weights(content: object, path: Path, notes: list[str]) -> dict[str, Tensor] | nn.Module:
    """The state_dict (or trusted module) in what a checkpoint holds.

    Raises:
        InputError: there is none.
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
    """Is this a module, or a dict with named tensors somewhere inside?"""
    if isinstance(content, nn.Module):
        return True
    if not isinstance(content, Mapping) or is_optimizer(content):
        return False
    return bool(named_tensors(content)) or any(holds_weights(content.get(key)) for key in WRAPPERS)


def other_wrappers(content: Mapping[Any, Any]) -> list[str]:
    """Keys of unusual name under which there is nothing but named tensors."""
    return [
        key
        for key, value in content.items()
        if isinstance(value, Mapping) and value and len(named_tensors(value)) == len(value)
    ]


def named_tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a dict that have names, without their history."""
    return {key: value.detach() for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def is_optimizer(content: Mapping[Any, Any]) -> bool:
    """Is this an optimizer's state_dict?"""
    return "param_groups" in content


def describe_weightless(content: Mapping[Any, Any]) -> str:
    """What a dict without weights holds instead."""
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
    """Names as torchvision gives them today: no wrapper's prefix, no auxiliary heads, no old spellings."""
    # `n_averaged` is the counter of torch's AveragedModel, beside the weights under `module.`.
    tidy = {name: tensor for name, tensor in weights.items() if name != "n_averaged"}
    # Every classifier of torchvision has at least two parts at its top level, so one common first word
    # (module, _orig_mod, model, backbone ...) was put there by a wrapper.
    while len({name.partition(".")[0] for name in tidy}) == 1 and all("." in name for name in tidy):
        tidy = {name.partition(".")[2]: tensor for name, tensor in tidy.items()}
    return {modern_name(name): tensor for name, tensor in tidy.items() if not name.startswith(AUXILIARY_HEADS)}


def modern_name(name: str) -> str:
    """Today's name of a tensor in one of torchvision's older files."""
    for pattern, replacement in OLD_NAMES:
        name = pattern.sub(replacement, name)
    return name


# --- Building the network ----------------------------------------------------------------------------------


def check_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse NaN and infinity, also where they appear only on the way from float64 to float32."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and is_plain(tensor) and not bool(tensor.float().isfinite().all()):
            raise InputError(f"{path} has NaN or infinite weights in {name!r}")


def is_plain(tensor: Tensor) -> bool:
    """Is this an ordinary dense tensor?"""
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def fill(model: nn.Module, weights: Mapping[str, Tensor], path: Path, notes: list[str]) -> None:
    """Give a network from `build_model` its weights, as float32.

    Raises:
        InputError: a tensor is of a kind that cannot be a weight, such as a quantized one.
    """
    expected = model.state_dict()
    cast = {str(weights[name].dtype) for name in expected if is_cast(weights.get(name), expected[name])}
    # What the checkpoint may lack, batch norm's counters, keeps the value it was built with.
    state = OrderedDict(
        (name, convert(name, weights.get(name, tensor), tensor, path)) for name, tensor in expected.items()
    )
    # MNASNet refuses a state_dict without the version that safetensors files do not carry.
    state._metadata = expected._metadata  # type: ignore[attr-defined]
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise InputError(f"{path} could not be loaded into its network: {first_line(error)}") from error
    if cast:
        notes.append(f"weights stored as {join_words(sorted(cast)).replace('torch.', '')} were cast to float32")


def is_cast(tensor: Tensor | None, expected: Tensor) -> bool:
    """Does a weight change its type on the way to float32?"""
    return tensor is not None and expected.is_floating_point() and tensor.dtype != torch.float32


def convert(name: str, tensor: Tensor, expected: Tensor, path: Path) -> Tensor:
    """A tensor of the checkpoint in the type that the network computes in."""
    if not is_plain(tensor) or tensor.is_floating_point() != expected.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InputError(f"{path} stores {name!r} as {kind} values, not as plain floating-point weights")
    return tensor.to(torch.float32 if expected.is_floating_point() else expected.dtype).contiguous()


def set_transform_input(model: nn.Module, arch: str, num_classes: int, notes: list[str]) -> None:
    """Choose GoogLeNet's and Inception's `transform_input`, which no state_dict records."""
    if not hasattr(model, "transform_input"):
        return
    chosen = num_classes == IMAGENET_CLASSES
    vars(model)["transform_input"] = chosen  # a plain attribute, which nn.Module's own typing does not know
    state, reason = ("on", "as") if chosen else ("off", "unlike")
    notes.append(
        f"{arch}: a state_dict does not say whether transform_input was set; it is guessed to be {state}, "
        f"{reason} torchvision's own weights of {IMAGENET_CLASSES} classes need it"
    )


def freeze(model: nn.Module) -> nn.Module:
    """The network in eval mode and without gradients."""
    return model.eval().requires_grad_(False)


def adopt_module(module: nn.Module, path: Path, arch: str | None, notes: list[str]) -> LoadedModel:
    """Take a whole network out of a trusted pickle as it is.

    Raises:
        InputError: it does not fit `arch`, its weights are not finite, or it has no layer that gives a class
            count.
    """
    weights = module.state_dict()
    check_finite(weights, path)
    if arch is None and not fits_registry(module):
        name = type(module).__name__
        notes.append(f"{name} is no classifier of torchvision: 224-pixel images, unless --input-size says otherwise")
        name = name.lower()
        return LoadedModel(name, count_outputs(module, path), freeze(module.float()), Transform(), notes)
    name, free = identify(shapes_of(tidy_names(weights)), arch, str(path))
    transform = published_transform(name, image_size_of(free, weights))
    return LoadedModel(name, free[CLASSES], freeze(module.float()), transform, notes)


def fits_registry(module: nn.Module) -> bool:
    """Is this network one of torchvision's classifiers, by names and shapes?"""
    shapes = shapes_of(tidy_names(module.state_dict()))
    return sum(first_difference(shapes, known) is None for known in registry_fingerprints().values()) == 1


def count_outputs(module: nn.Module, path: Path) -> int:
    """The width of a network's last linear or convolutional layer."""
    widths = [
        layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        for layer in module.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    if not widths:
        raise InputError(f"{path} holds a {type(module).__name__} without a linear or convolutional layer")
    return widths[-1]
