"""Networks that are not torchvision's: a function of the user's own, or a name of timm's, gives the empty network."""

import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
from torch import Tensor, nn

from compressor.data.transforms import Transform
from compressor.errors import InputError
from compressor.failures import explain_shortage
from compressor.network.architectures import NUM_FRAMES, Fingerprint, shapes_of
from compressor.network.checkpoints.copies import Copy, make_copy, prefixes_before, under
from compressor.network.checkpoints.matching import COUNTERS, lies_beside, tensor_difference
from compressor.network.inputs import first_convolution
from compressor.text import first_line, join_words

TIMM = "timm:"


def is_custom(arch: str | None) -> bool:
    """Whether --arch names a function or a network of timm's rather than one of torchvision's."""
    return arch is not None and ":" in arch


def make_network(arch: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The empty network of `package.module:function`, `file.py:function` or `timm:NAME`.

    Args:
        arch: as above; the function, or class, takes no arguments.
        tensors: of the checkpoint; for timm's networks they give the number of classes and of channels.

    Raises:
        InputError: there is no such module, function or name, or what it gives is no network.
    """
    return _timm_network(arch[len(TIMM) :], tensors) if arch.startswith(TIMM) else _own_network(arch)


def _own_network(arch: str) -> nn.Module:
    module_name, _, name = arch.rpartition(":")
    if not module_name or not name:
        raise InputError(f"--arch {arch!r} is not of the form package.module:function")
    module = _import(module_name, arch)
    try:
        made = functools.reduce(getattr, name.split("."), module)
    except AttributeError as error:
        raise InputError(f"--arch {arch}: {module_name} has no {name!r}") from error
    if not isinstance(made, nn.Module):
        made = _call(made, arch)
    if not isinstance(made, nn.Module):
        raise InputError(f"--arch {arch} gives a {type(made).__name__}, not a torch.nn.Module")
    return made


def _import(name: str, arch: str) -> Any:
    """The user's module, from the current folder or from where Python finds modules.

    Other imports, its own and ours, find the current folder last: files there stand for no library's modules.
    """
    file, folder = Path(name), str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        if file.suffix == ".py":
            module = _load(file.stem, importlib.util.spec_from_file_location(file.stem, file))
        else:
            top = name.partition(".")[0]
            spec = PathFinder.find_spec(top, [folder])
            if top not in sys.modules and spec is not None and spec.loader is not None:
                _load(top, spec)
            module = importlib.import_module(name)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise InputError(f"--arch {arch}: {first_line(error)}; it is looked for from {Path.cwd()}") from error
    except (Exception, SystemExit) as error:  # the user's own code
        if shortage := explain_shortage(error):
            raise shortage from error
        raise InputError(f"--arch {arch}: importing it fails ({type(error).__name__}: {first_line(error)})") from error
    if file.suffix == ".py" or str(getattr(module, "__file__", "")).startswith(folder):
        cloudpickle.register_pickle_by_value(module)  # workers may have no such file
    return module


def _load(name: str, spec: ModuleSpec | None) -> ModuleType:
    """Run a module, which pickles and dataclasses find under its name meanwhile."""
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if sys.modules.get(name) is module:
            del sys.modules[name]
        raise
    return module


def _call(function: Callable[[], Any], arch: str) -> Any:
    if not callable(function):
        raise InputError(f"--arch {arch} is a {type(function).__name__}, which cannot be called")
    with suppress(ValueError):  # of built-in functions nothing is known
        _check_arguments(inspect.signature(function), arch)
    try:
        return function()
    except (Exception, SystemExit) as error:  # the user's own code
        if shortage := explain_shortage(error):
            raise shortage from error
        raise InputError(f"--arch {arch} raises {type(error).__name__}: {first_line(error)}") from error


def _check_arguments(signature: inspect.Signature, arch: str) -> None:
    try:
        signature.bind()
    except TypeError as error:
        raise InputError(
            f"--arch {arch} cannot be called without arguments ({error}): give a function that sets them"
        ) from error


def _timm_network(name: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise InputError(f"--arch {TIMM}{name} needs timm ({first_line(error)}): pip install timm") from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.3)
        hint = f"did you mean {join_words(near, 'or')}?" if near else "see timm.list_models()"
        raise InputError(f"timm has no network named {name!r}: {hint}")
    network: nn.Module = timm.create_model(name, pretrained=False)
    arguments = _timm_arguments(network, tensors)
    try:
        return timm.create_model(name, pretrained=False, **arguments) if arguments else network
    except Exception as error:  # not every network takes every argument
        raise InputError(f"timm's {name} cannot be made with {arguments} ({first_line(error)})") from error


def _timm_arguments(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The number of classes and channels in the checkpoint, where they differ from the network's own."""
    config, own = getattr(network, "default_cfg", None) or {}, network.state_dict()
    arguments: dict[str, Any] = {}
    for argument, key, axis in (("num_classes", "classifier", 0), ("in_chans", "first_conv", 1)):
        names = config.get(key) or ()
        name = f"{names if isinstance(names, str) else next(iter(names), '')}.weight"
        found = [tensors[prefix + name] for prefix in _starts(tensors, name) if name in own]
        if found and found[0].ndim > axis and found[0].shape[axis] != own[name].shape[axis]:
            arguments[argument] = int(found[0].shape[axis])
    return arguments


def _starts(tensors: Mapping[str, Tensor], name: str) -> list[str]:
    return [f"{prefix}." if prefix else "" for prefix in prefixes_before(tensors, {name})]


def find_own_copies(tensors: Mapping[str, Tensor], network: nn.Module, source: str) -> list[Copy]:
    """All places in a checkpoint whose tensors are exactly the network's.

    Args:
        tensors: of the file, by name.
        network: the empty network that the user's function gave.
        source: the file's name, for errors.

    Raises:
        InputError: there are none; the sentence says what differs.
    """
    expected = shapes_of(network.state_dict())
    prefixes = list(dict.fromkeys(p for name in list(expected)[:1] for p in prefixes_before(tensors, {name}))) or [""]
    shapes = {prefix: _of_network(shapes_of(under(tensors, prefix)), expected) for prefix in prefixes}
    reasons = {prefix: tensor_difference(inside, expected) for prefix, inside in shapes.items()}
    fitting = [prefix for prefix, reason in reasons.items() if reason is None]
    if not fitting:
        nearest = max(prefixes, key=lambda prefix: len(shapes[prefix].keys() & expected.keys()))
        raise InputError(f"{source} does not fit the network of --arch: {reasons[nearest]}")
    return [make_copy(tensors, prefix, None) for prefix in fitting]


def _of_network(shapes: Fingerprint, expected: Fingerprint) -> Fingerprint:
    """Without counters, and losses beside the network."""
    return {
        name: shape
        for name, shape in shapes.items()
        if name in expected or not (COUNTERS.search(name) or lies_beside(name, shapes, expected))
    }


def transform_of(network: nn.Module, notes: list[str]) -> Transform:
    """How images are prepared: as timm's network says, else torchvision's usual way."""
    config = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    if isinstance(config, Mapping) and {"input_size", "mean", "std"} <= config.keys():
        side = int(config["input_size"][-1])
        return Transform(
            input_size=side,
            resize_size=int(side / (config.get("crop_pct") or 0.875)),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation="bicubic" if config.get("interpolation") == "bicubic" else "bilinear",
        )
    if isinstance(first_convolution(network), nn.Conv3d):
        notes.append(
            f"not a network of torchvision: clips of {NUM_FRAMES} frames of 112 pixels, unless --num-frames and "
            "--input-size say otherwise"
        )
        return Transform(input_size=112, resize_size=128, frames=NUM_FRAMES)
    notes.append("not a network of torchvision: 224-pixel images, unless --input-size says otherwise")
    return Transform()
