"""A network with fewer hidden channels: the same modules, with the weights of the units that are kept."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from compressor.channels.groups import ChannelGroup
from compressor.network.surgery import copy_sharing_tensors


def narrow(model: nn.Module, groups: Iterable[ChannelGroup], kept: Mapping[str, Tensor]) -> nn.Module:
    """The network with some units of each group; tensors that stay whole are shared with `model`.

    Args:
        model: the network, left unchanged.
        groups: groups of it.
        kept: by group name the indices of the units that are kept, ascending; groups not named stay whole.

    Returns:
        A network of the same modules, in eval mode if `model` is.
    """
    network = copy_sharing_tensors(model)
    for group in groups:
        units = kept.get(group.name)
        if units is None or len(units) == group.num_units:
            continue
        for name in group.producers:
            _keep_outputs(network.get_submodule(name), units, group.num_units)
        for name in group.between:
            _keep_both(network.get_submodule(name), units, group.num_units)
        for name in group.reader_names:
            _keep_inputs(network.get_submodule(name), units, group.num_units)
    return network


def kept_in_front(groups: Iterable[ChannelGroup], widths: Mapping[str, int]) -> dict[str, Tensor]:
    """The first units of every group, by name: as many as `widths` says, all where it does not."""
    return {group.name: torch.arange(widths.get(group.name, group.num_units)) for group in groups}


def channels_of(units: Tensor, num_units: int, num_channels: int) -> Tensor:
    """Indices of the channels (k,) of some units.

    Args:
        units: indices of the units (u,).
        num_units: how many units there are.
        num_channels: how many channels all of them have, in equal parts; k is u times such a part.
    """
    size = num_channels // num_units
    return (units[:, None] * size + torch.arange(size)).flatten()


def _keep_outputs(module: nn.Module, units: Tensor, num_units: int) -> None:
    assert isinstance(module, nn.Conv2d | nn.Linear)
    index = channels_of(units, num_units, len(module.weight))
    _set(module, "weight", module.weight[index.to(module.weight.device)])
    if module.bias is not None:
        _set(module, "bias", module.bias[index.to(module.bias.device)])
    _count(module)


def _keep_inputs(module: nn.Module, units: Tensor, num_units: int) -> None:
    assert isinstance(module, nn.Conv2d | nn.Linear)
    index = channels_of(units, num_units, module.weight.shape[1])
    _set(module, "weight", module.weight[:, index.to(module.weight.device)])
    _count(module)


def _keep_both(module: nn.Module, units: Tensor, num_units: int) -> None:
    """Narrow a module that acts unit by unit."""
    if isinstance(module, nn.Conv2d):
        module.groups = module.groups * len(units) // num_units
        _keep_outputs(module, units, num_units)
        return
    for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if value.dim():
            index = channels_of(units, num_units, len(value))
            _set(module, name, value[index.to(value.device)])
    if isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        module.num_features = module.num_features * len(units) // num_units


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    present = getattr(module, name)
    is_parameter = isinstance(present, nn.Parameter)
    value = value.detach().contiguous()
    setattr(module, name, nn.Parameter(value, requires_grad=present.requires_grad) if is_parameter else value)


def _count(module: nn.Conv2d | nn.Linear) -> None:
    """Set the numbers of channels to those of the weight."""
    outputs, inputs = module.weight.shape[:2]
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = outputs, inputs
    else:
        module.out_channels, module.in_channels = outputs, inputs * module.groups
