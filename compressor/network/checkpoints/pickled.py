"""A whole pickled module, of which nothing is loaded, says what its layers are: a state_dict's guesses are checked.

The network is built from torchvision and compared, module by module, with what the pickle says of classes and
settings. Where head or stem differ, they are built from the pickle's description, by constructors of torch.nn alone.
"""

import inspect
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from compressor.network.checkpoints.contents import shorten
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
# Modules that call the one inside and do nothing else.
WRAPPERS = (
    "torch.nn.parallel.data_parallel.DataParallel",
    "torch.nn.parallel.distributed.DistributedDataParallel",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointWrapper",
    "torch._dynamo.eval_frame.OptimizedModule",
    "torch.optim.swa_utils.AveragedModel",
)
SEQUENTIAL = "torch.nn.modules.container.Sequential"
IDLE = ("Dropout", "Dropout2d", "AlphaDropout", "Identity", "StochasticDepth")  # in eval mode
KNOWN_PACKAGES = ("torch.nn.", "torchvision.models.", "torchvision.ops.")
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
KNOWN_HOOKS = "torch.nn.utils."  # pruning, weight norm and spectral norm, which are multiplied out


def submodules(modules: dict[str, Inert], prefix: str) -> dict[str, Inert]:
    """The pickled modules from `prefix` downwards, by their names in the network."""
    start = f"{prefix}." if prefix else ""
    inside = {name[len(start) :]: module for name, module in modules.items() if name.startswith(start)}
    return {**inside, **({"": modules[prefix]} if prefix in modules else {})}


def describe_code(origin: str) -> str:
    """What a pickled module needs, for a message."""
    return (
        f"pickled code ({origin}), which runs when it is loaded: save the model's state_dict() instead, give "
        "the network by --arch module:function, or pass --trust-pickle only if you trust where the file came from"
    )


def describe_unknown(code: str) -> str:
    """What a network inside a pickled module, or one with parts of other packages, needs, for a message."""
    return (
        f"the code of {code}, which is not run and may change what the network computes: give the whole by --arch "
        "module:function, save the state_dict() of the network alone, or pass --trust-pickle only if you trust where "
        "the file came from"
    )


def pickled_name(pickled: Mapping[str, Inert]) -> str:
    """The class of a pickled network, for a note."""
    return f"{pickled[''].origin}, none of whose code ran" if "" in pickled else "module, none of whose code ran"


def class_name(module: Inert) -> str:
    """The class of a pickled module."""
    return module.origin.rpartition(".")[2]


def find_unknown_code(modules: dict[str, Inert], prefix: str) -> str | None:
    """The first class or hook whose code the network at `prefix` may depend on, but which is not known; None if none.

    Modules around the network may do nothing but call it; the network itself is of torchvision, and what it consists
    of belongs to torchvision and torch. All else may compute anything.
    """
    for name, module in modules.items():
        if name == prefix or f"{name}.".startswith(f"{prefix}." if prefix else ""):
            known = module.origin.startswith(KNOWN_PACKAGES if name != prefix else "torchvision.models.")
        elif not name or prefix.startswith(f"{name}."):
            known = calls_one_part(module)
        else:
            continue
        if not known or "forward" in module.attributes:
            return describe_module(module)
        hooks = [hook for kind in HOOKS for hook in children(module.attributes.get(kind)).values()]
        if unknown := [hook for hook in hooks if not str(getattr(hook, "origin", "")).startswith(KNOWN_HOOKS)]:
            return str(getattr(unknown[0], "origin", "") or f"a hook of {module.origin}")
    return None


def without_wrappers(modules: dict[str, Inert], parts: Collection[str]) -> dict[str, Inert]:
    """The modules by names without these parts; wrappers that only call what is inside give way to it."""
    named: dict[str, Inert] = {}
    for name, module in modules.items():
        inside = [f"{name}.{part}".lstrip(".") for part in parts]
        if module.origin not in WRAPPERS or not any(other in modules for other in inside):
            named.setdefault(shorten(name, parts), module)  # another kind of wrapper hides what is inside
    return named


def describe_module(module: Inert) -> str:
    """The class of a module, of a Sequential also those of its parts."""
    if module.origin != SEQUENTIAL:
        return module.origin
    return f"Sequential({', '.join(class_name(part) for part in children(module.attributes['_modules']).values())})"


def calls_one_part(module: Inert) -> bool:
    """Whether a module only hands its input on to the one module inside that does something."""
    if module.origin != SEQUENTIAL:
        return module.origin in WRAPPERS
    parts = children(module.attributes["_modules"]).values()
    return sum(class_name(part) not in IDLE for part in parts) == 1


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
    return type(own).__name__ in IDLE and class_name(pickled) in IDLE


def adopt_parts(network: nn.Module, pickled: dict[str, Inert], names: list[str]) -> None:
    """Replace modules of the network by what the pickle says they are, where that can be built.

    Args:
        network: changed in place.
        pickled: what a pickle says of its modules, by name, without running its code.
        names: of the modules to replace.
    """
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
