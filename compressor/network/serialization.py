"""A compressed network in a safetensors file: weights, and the modules that are not the original's as JSON.

Factors consist of convolutions of any kind, linear layers, chains of them and `Interpolated`; where hidden channels
were removed, batch norms and PReLU have fewer, too. Their constructors' arguments are stored, so that loading repeats
no decomposition.
"""

import copy
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import InputError
from compressor.factorization.interpolative import Interpolated
from compressor.factorization.layers.kinds import Layer
from compressor.factorization.layers.making import chain
from compressor.failures import blaming
from compressor.files.tensors import read_tensors, write_tensors
from compressor.network.surgery import replace_layer

CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
LINEAR = ("in_features", "out_features")
NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
PRELU = ("num_parameters",)
ARGUMENTS = {
    "linear": LINEAR,
    "prelu": PRELU,
    "transposed": (*CONV, "output_padding"),
    **dict.fromkeys(("conv", "conv 1d", "conv 3d"), CONV),
    **dict.fromkeys(("norm 1d", "norm 2d", "norm 3d"), NORM),
}
KINDS: dict[str, type[nn.Module]] = {
    "linear": nn.Linear,
    "conv": nn.Conv2d,
    "norm 1d": nn.BatchNorm1d,
    "norm 2d": nn.BatchNorm2d,
    "prelu": nn.PReLU,
    "conv 1d": nn.Conv1d,
    "conv 3d": nn.Conv3d,
    "transposed": nn.ConvTranspose2d,
    "norm 3d": nn.BatchNorm3d,
}
NAMES = {kind: name for name, kind in KINDS.items()}
CHANGED = tuple(NAMES)
Description = dict[str, Any]


def save_network(original: nn.Module, network: nn.Module, path: Path, about: Mapping[str, str] | None = None) -> None:
    """Write a compressed network atomically, with what its changed layers are.

    Args:
        original: the network before.
        network: the same with some layers factorized or narrower.
        path: a safetensors file.
        about: further texts of its metadata.
    """
    layers = {name: describe_module(network.get_submodule(name)) for name in changed_names(original, network)}
    weights = {name: value.detach().cpu().clone().contiguous() for name, value in network.state_dict().items()}
    write_tensors(path, weights, {"layers": json.dumps(layers), **(about or {})})


def load_network(original: nn.Module, path: Path) -> nn.Module:
    """Load a network of `save_network`, in eval mode, on the device of `original`.

    Raises:
        InputError: the file cannot be read, or is not of a network compressed from `original`.
    """
    weights, texts = read_tensors(path, "compressed network")
    with blaming(
        lambda _: InputError(f"{path} does not hold a network compressed from this one; choose another --out")
    ):
        network = put_together(copy.deepcopy(original), weights, texts)
    device = next((value.device for value in original.parameters()), torch.device("cpu"))
    return network.to(device).requires_grad_(False)


def put_together(original: nn.Module, weights: Mapping[str, Tensor], texts: Mapping[str, str]) -> nn.Module:
    """The network of a file that `save_network` wrote, in eval mode.

    Args:
        original: the network before, changed in place.
        weights: of the compressed one.
        texts: the file's metadata.
    """
    network = original
    for name, description in json.loads(texts["layers"]).items():
        network = replace_layer(network, name, build_module(description))
    state = OrderedDict(weights)
    state._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]  # MNASNet asks for its version
    network.load_state_dict(state)
    return network.eval()


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
    name = next(name for kind, name in NAMES.items() if isinstance(module, kind))
    arguments = {each: getattr(module, each) for each in ARGUMENTS[name]}
    with_bias = ARGUMENTS[name] not in (NORM, PRELU)
    return {name: arguments | ({"bias": module.bias is not None} if with_bias else {})}


def build_module(description: Description) -> nn.Module:
    """The module of a description, with weights yet to be loaded."""
    kind, options = next(iter(description.items()))
    if kind == "chain":
        return chain(*(build_module(part) for part in options))
    if kind == "interpolated":
        keep, rest = build_module(options["keep"]), build_module(options["rest"])
        assert isinstance(keep, Layer)
        assert isinstance(rest, Layer)
        return Interpolated(keep, rest, torch.zeros(description["outputs"], dtype=torch.int64))
    # JSON has lists in place of torch's tuples.
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return KINDS[kind](**arguments)
