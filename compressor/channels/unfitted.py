"""Hidden channels without least squares: the readers keep their weights, and means stand in for what is removed.

Takes one pass over a few images, where covariances and elimination may take minutes: enough to tell where fewer
channels are no match for anything else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.channels.groups import ChannelGroup
from compressor.channels.narrowing import channels_of
from compressor.data.images import ImageSet
from compressor.factorization.base import JointFactors
from compressor.factorization.layers.kinds import Layer
from compressor.factorization.layers.making import make_like
from compressor.network.hooks import batches, watch_batches

Spread = tuple[Tensor, Tensor]
"""Mean and variance (n,) of a layer's inputs, by channel."""


class UnfittedChannels(JointFactors):
    """A group's channels, those first whose removal changes the readers' outputs most, each by itself.

    Args:
        group: the group.
        readers: the layers that read it, by name.
        spreads: of their inputs, by name.
    """

    def __init__(self, group: ChannelGroup, readers: Mapping[str, Layer], spreads: Mapping[str, Spread]) -> None:
        self.layers = dict(readers)
        self.max_rank = group.num_units
        self._means = {name: spreads[name][0] for name in readers}
        changes = torch.zeros(group.num_units, dtype=torch.float64)
        for name, layer in readers.items():
            weight = layer.weight.detach()
            axes = [axis for axis in range(weight.dim()) if axis != 1]
            lengths = torch.linalg.vector_norm(weight, dim=axes, dtype=torch.float64).cpu()
            changes += (spreads[name][1] * lengths.square()).unflatten(0, (group.num_units, -1)).sum(1)
        self._order = changes.argsort(descending=True, stable=True)

    def build(self, rank: int) -> Mapping[str, nn.Module]:
        """See `JointFactors.build`."""
        return {name: self._masked(layer, self._means[name], rank) for name, layer in self.layers.items()}

    def nested(self, name: str, limit: int) -> "_AllWidths":
        """See `JointFactors.nested`."""
        return _AllWidths(self.layers[name], self._means[name], self._order, limit)

    def _masked(self, layer: Layer, means: Tensor, width: int) -> nn.Module:
        weight = layer.weight.detach().clone()
        removed = channels_of(self._order[width:], self.max_rank, weight.shape[1])
        bias = _by_channel(weight[:, removed]) @ means[removed].to(weight)
        weight[:, removed] = 0
        bias = bias if layer.bias is None else bias + layer.bias.detach()
        return make_like(layer, weight, bias)


@dataclass(frozen=True)
class _AllWidths:
    """A reader at widths 1 to `limit`: what its outputs owe to each unit is told by gradients at its inputs.

    Attributes:
        layer: the reader.
        means: of its inputs' channels (Ci,).
        order: of the units (U,).
        limit: K.
    """

    layer: Layer
    means: Tensor
    order: Tensor
    limit: int

    def along(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """See `compressor.factorization.base.AllRanks.along`."""
        layer, axis = self.layer, -1 if isinstance(self.layer, nn.Linear) else 1
        with torch.enable_grad():
            given = inputs.detach().requires_grad_()
            outputs = layer(given)
        # Means stand in for what is removed: all of them make up a width of 0, and each unit adds what it differs by.
        at_means = _by_channel(layer.weight.detach()) * self.means.to(inputs)
        found = []
        for number, gradient in enumerate(gradients):
            (back,) = torch.autograd.grad(outputs, given, gradient, retain_graph=number + 1 < len(gradients))
            by_channel, sums = _over_positions(back * inputs, axis), _over_positions(gradient, axis)
            differences = (by_channel - sums @ at_means).unflatten(1, (len(self.order), -1)).sum(2)
            none_left = sums @ (at_means.sum(1) + (0 if layer.bias is None else layer.bias.detach()))
            found.append(none_left[:, None] + differences[:, self.order[: self.limit]].cumsum(1))
        return torch.stack(found)


def _over_positions(values: Tensor, axis: int) -> Tensor:
    """The sum (b, C) over all axes of values (b, ...) but the first and that of channels."""
    by_channel = values.movedim(axis, 1)
    return by_channel.reshape(*by_channel.shape[:2], -1).sum(2)


def _by_channel(weight: Tensor) -> Tensor:
    """A weight (Co, Ci, ...) summed over its pixels (Co, Ci)."""
    return weight.flatten(2).sum(2) if weight.dim() > 2 else weight


def unfitted_channels(
    model: nn.Module, groups: Sequence[ChannelGroup], images: ImageSet, device: torch.device
) -> dict[str, UnfittedChannels]:
    """The channels of groups, by their names.

    Args:
        model: the original network on `device`, in eval mode.
        groups: groups of it.
        images: a few images.
        device: of the network.
    """
    names = list(dict.fromkeys(name for group in groups for name in group.reader_names))
    modules: dict[str, Any] = {name: model.get_submodule(name) for name in names}
    sums = {name: torch.zeros(2, module.weight.shape[1], dtype=torch.float64) for name, module in modules.items()}
    counts = dict.fromkeys(names, 0)

    def add(number: int, value: Tensor, _output: Tensor, _size: int) -> None:
        name, axis = names[number], -1 if isinstance(modules[names[number]], nn.Linear) else -3
        rows = value.movedim(axis, -1).reshape(len(value), -1, value.shape[axis])
        counts[name] += rows.shape[0] * rows.shape[1]
        # Image by image in single precision: a copy of a batch in double takes hundreds of MB.
        for image in rows:
            sums[name] += torch.stack([image.sum(0), image.square().sum(0)]).double().cpu()

    watch_batches(model, list(modules.values()), batches(images, device), add)
    spreads: dict[str, Spread] = {}
    for name, (first, second) in sums.items():
        mean = first / max(1, counts[name])
        spreads[name] = (mean, (second / max(1, counts[name]) - mean.square()).clamp_min(0))
    return {
        group.name: UnfittedChannels(group, {name: modules[name] for name in group.reader_names}, spreads)
        for group in groups
    }
