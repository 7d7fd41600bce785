"""A whole pickled module, of which nothing is loaded, says what its layers are: a state_dict's guesses are checked.

The network is built from torchvision and compared, module by module, with what the pickle says of classes and
settings. Where head or stem differ, they are built from the pickle's description, by constructors of torch.nn alone.
"""

import inspect
from collections import OrderedDict
from typing import Any

from torch import nn

from compressor.network.checkpoints.inert import Inert, children, is_module

# What can be built from a description: modules of torch.nn whose constructors take plain values.
LAYERS = (
    *("Linear", "Conv2d", "BatchNorm1d", "BatchNorm2d", "LayerNorm", "GroupNorm", "PReLU", "Dropout", "Dropout2d"),
    *("AlphaDropout", "Identity", "Flatten", "ReLU", "ReLU6", "LeakyReLU", "ELU", "SELU", "GELU", "SiLU", "Mish"),
    *("Hardswish", "Hardsigmoid", "Sigmoid", "Tanh", "Softplus", "Softmax", "LogSoftmax", "Hardtanh", "CELU"),
    *("MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d"),
)
# Settings that change what a module computes; the rest is of training or of memory.
SETTINGS = (
    *("stride", "padding", "dilation", "groups", "kernel_size", "padding_mode", "ceil_mode", "output_size", "eps"),
    *("negative_slope", "approximate", "num_heads", "num_groups", "dim", "start_dim", "end_dim", "window_size"),
    *("shift_size", "transform_input", "normalized_shape", "count_include_pad", "track_running_stats"),
)
PLAIN = (int, float, str, bool, type(None))


def submodules(modules: dict[str, Inert], prefix: str) -> dict[str, Inert]:
    """The pickled modules from `prefix` downwards, by their names in the network."""
    start = f"{prefix}." if prefix else ""
    inside = {name[len(start) :]: module for name, module in modules.items() if name.startswith(start)}
    return {**inside, **({"": modules[prefix]} if prefix in modules else {})}


def class_name(module: Inert) -> str:
    """The class of a pickled module."""
    return module.origin.rpartition(".")[2]


def describe_difference(network: nn.Module, pickled: dict[str, Inert]) -> str | None:
    """The first module in which the pickle and the network differ, in words; None if there is none."""
    own = dict(network.named_modules())
    for name, module in pickled.items():
        if name == "":
            continue
        if name not in own:
            return f"it has a {class_name(module)} at {name!r}"
        kind = type(own[name]).__name__
        if kind != class_name(module) and not _do_nothing(own[name], module):
            return f"its {name!r} is a {class_name(module)}, not a {kind}"
        for setting in SETTINGS:
            mine, theirs = getattr(own[name], setting, None), module.attributes.get(setting)
            if setting in module.attributes and _is_plain(mine) and _plain(theirs) != _plain(mine):
                return f"its {name!r} has {setting} {theirs}, not {mine}"
    missing = next((name for name in own if name not in pickled), None)
    return None if missing is None else f"it lacks {missing!r}"


def _do_nothing(own: nn.Module, pickled: Inert) -> bool:
    """Whether both are dropout or nothing, which are one in eval mode."""
    names = ("Dropout", "Dropout2d", "AlphaDropout", "Identity", "StochasticDepth")
    return type(own).__name__ in names and class_name(pickled) in names


def adopt_parts(network: nn.Module, pickled: dict[str, Inert], names: list[str]) -> None:
    """Replace modules of the network by what the pickle says they are, where that can be built."""
    for name in names:
        module = build(pickled[name]) if name in pickled else None
        if module is not None:
            network.set_submodule(name, module)


def build(pickled: Inert) -> nn.Module | None:
    """A module of torch.nn from its description, large ones on the meta device; None if it is of another kind."""
    name = class_name(pickled)
    if not pickled.origin.startswith("torch.nn.modules."):
        return None
    if name == "Sequential":
        parts = {key: build(part) for key, part in children(pickled.attributes["_modules"]).items() if is_module(part)}
        known = OrderedDict((key, part) for key, part in parts.items() if part is not None)
        return nn.Sequential(known) if len(known) == len(parts) else None
    if name not in LAYERS:
        return None
    kind = getattr(nn, name)
    accepted = inspect.signature(kind).parameters
    given = {key: value for key, value in pickled.attributes.items() if key in accepted and _is_plain(value)}
    if "bias" in accepted:
        given["bias"] = children(pickled.attributes["_parameters"]).get("bias") is not None
    if name in ("Linear", "Conv2d"):
        given["device"] = "meta"
    try:
        module: nn.Module = kind(**given)
    except (TypeError, ValueError):
        return None
    return module


def _is_plain(value: Any) -> bool:
    return isinstance(value, PLAIN) or (isinstance(value, tuple | list) and all(isinstance(v, PLAIN) for v in value))


def _plain(value: Any) -> Any:
    """A value for comparison: lists as tuples, two equal numbers as one."""
    if isinstance(value, tuple | list):
        values = tuple(value)
        return values[0] if values and all(v == values[0] for v in values) else values
    return value
