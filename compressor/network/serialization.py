"""A compressed network in a safetensors file: weights, and the modules that are not the original's as JSON.

Factors consist of convolutions, linear layers, chains of them and `Interpolated`; where hidden channels were removed,
batch norms and PReLU have fewer, too. Their constructors' arguments are stored, so that loading repeats no
decomposition.
"""

import copy
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.errors import InputError
from compressor.factorization.interpolative import Interpolated
from compressor.failures import blaming
from compressor.files.tensors import read_tensors, write_tensors
from compressor.network.surgery import replace_layer

CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
LINEAR = ("in_features", "out_features")
NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
NORMS = ("norm 1d", "norm 2d")
CHANGED = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.PReLU)
KINDS: dict[str, type[nn.Module]] = {
    "linear": nn.Linear,
    "conv": nn.Conv2d,
    "norm 1d": nn.BatchNorm1d,
    "norm 2d": nn.BatchNorm2d,
    "prelu": nn.PReLU,
}
Description = dict[str, Any]


def save_network(original: nn.Module, network: nn.Module, path: Path) -> None:
    """Write a compressed network atomically, with what its changed layers are.

    Args:
        original: the network before.
        network: the same with some layers factorized or narrower.
        path: a safetensors file.
    """
    layers = {name: describe_module(network.get_submodule(name)) for name in changed_names(original, network)}
    weights = {name: value.detach().cpu().clone().contiguous() for name, value in network.state_dict().items()}
    write_tensors(path, weights, {"layers": json.dumps(layers)})


def load_network(original: nn.Module, path: Path) -> nn.Module:
    """Load a network of `save_network`, in eval mode, on the device of `original`.

    Raises:
        InputError: the file cannot be read, or is not of a network compressed from `original`.
    """
    network = copy.deepcopy(original)
    weights, texts = read_tensors(path, "compressed network")
    with blaming(
        lambda _: InputError(f"{path} does not hold a network compressed from this one; choose another --out")
    ):
        for name, description in json.loads(texts["layers"]).items():
            network = replace_layer(network, name, build_module(description))
        state = OrderedDict(weights)
        state._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]  # MNASNet asks for its version
        network.load_state_dict(state)
    device = next((value.device for value in original.parameters()), torch.device("cpu"))
    return network.to(device).eval().requires_grad_(False)


def changed_names(original: nn.Module, network: nn.Module) -> list[str]:
    """Names of the modules of `original` that are factorized in `network`, or have fewer channels or another bias."""
    return [
        name
        for name, module in original.named_modules()
        if isinstance(module, CHANGED) and _is_changed(module, network.get_submodule(name))
    ]


def _is_changed(module: nn.Module, other: nn.Module) -> bool:
    shapes, others = ({name: value.shape for name, value in one.state_dict().items()} for one in (module, other))
    return type(other) is not type(module) or shapes != others


def describe_module(module: nn.Module) -> Description:
    """Constructor arguments of `module`, JSON values only."""
    if isinstance(module, nn.Sequential):
        return {"chain": [describe_module(part) for part in module]}
    if isinstance(module, Interpolated):
        parts = {"keep": describe_module(module.keep), "rest": describe_module(module.rest)}
        return {"interpolated": parts, "outputs": len(module.order)}
    if isinstance(module, nn.Linear):
        return {"linear": {name: getattr(module, name) for name in LINEAR} | {"bias": module.bias is not None}}
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return {NORMS[isinstance(module, nn.BatchNorm2d)]: {name: getattr(module, name) for name in NORM}}
    if isinstance(module, nn.PReLU):
        return {"prelu": {"num_parameters": module.num_parameters}}
    assert isinstance(module, nn.Conv2d)
    return {"conv": {name: getattr(module, name) for name in CONV} | {"bias": module.bias is not None}}


def build_module(description: Description) -> nn.Module:
    """The module of a description, with weights yet to be loaded."""
    kind, options = next(iter(description.items()))
    if kind == "chain":
        return nn.Sequential(*(build_module(part) for part in options))
    if kind == "interpolated":
        keep, rest = build_module(options["keep"]), build_module(options["rest"])
        assert isinstance(keep, nn.Conv2d | nn.Linear)
        assert isinstance(rest, nn.Conv2d | nn.Linear)
        return Interpolated(keep, rest, torch.zeros(description["outputs"], dtype=torch.int64))
    # JSON has lists in place of torch's tuples.
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return KINDS[kind](**arguments)
