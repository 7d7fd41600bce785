"""The hidden channels of one group at every width: which are kept, what is lost, and the readers refitted to them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.arrays import Array
from compressor.channels.elimination import Elimination, eliminate
from compressor.channels.groups import ChannelGroup
from compressor.channels.narrowing import channels_of
from compressor.channels.statistics import ReaderMoments
from compressor.factorization.base import Layer, NestedFactors, make_conv, make_linear
from compressor.factorization.moments import with_floor

INPUT_FLOOR = 1e-2  # ridge on the inputs' covariance, as a share of its mean diagonal


@dataclass(frozen=True)
class Refitted:
    """A reader's weight and bias for the channels that are kept.

    Attributes:
        weight: of its own shape (Co, Ci, ...), zero at the channels that are removed; float64.
        bias: what is added to its bias (Co,), float64.
    """

    weight: Tensor
    bias: Tensor


class ChannelFactors:
    """A group's channels in a nested order, with its readers refitted to the first 1, 2, ... units.

    Args:
        group: the group.
        readers: the layers that read it, by name.
        moments: their second moments, by name.
        order: another order than that by elimination, and its losses.

    Attributes:
        max_rank: the width at which nothing is removed.
        losses: the first-order loss (U + 1,) of the network's outputs at widths 0, 1, ..., U, inputs and gradients
            taken as independent of each other and of the position.
    """

    def __init__(
        self,
        group: ChannelGroup,
        readers: Mapping[str, Layer],
        moments: Mapping[str, ReaderMoments],
        order: Elimination | None = None,
    ) -> None:
        self.group = group
        self.max_rank = group.num_units
        self._layers, self._moments = dict(readers), {name: moments[name] for name in readers}
        self._covariances = {name: regularized(of.covariance) for name, of in self._moments.items()}
        self._elimination = (
            eliminate_units(self._covariances, self._layers, moments, self.max_rank) if order is None else order
        )

    @property
    def losses(self) -> Array:
        """See the class."""
        return self._elimination.losses

    def kept(self, width: int) -> Tensor:
        """Indices of the units (width,) that are kept, ascending."""
        self.check_width(width)
        return torch.from_numpy(self._elimination.order[:width].copy()).sort().values

    def refit(self, width: int) -> dict[str, Refitted]:
        """The readers' weights and biases at a width, by their names."""
        return {name: self._refit(name, self.kept(width)) for name in self._layers}

    def build(self, width: int) -> dict[str, nn.Module]:
        """Modules that replace the readers and take all channels, with weights of zero for those that are removed.

        In the network they compute what the readers of the narrowed network do.
        """
        return {name: _with(self._layers[name], found.weight, found.bias) for name, found in self.refit(width).items()}

    def nested(self, name: str, limit: int) -> NestedFactors | None:
        """Widths 1 to `limit` of one reader at once; None where its moments are those of units.

        In the order of elimination, inputs are centred and made uncorrelated one after the other (C = L L^T). The best
        refit at width k is the sum over the features of the first k units.
        """
        layer, moments = self._layers[name], self._moments[name]
        if len(moments.covariance) != layer.weight[0].numel():
            return None
        order = torch.from_numpy(self._elimination.order.copy())
        columns = channels_of(order, self.max_rank, len(moments.covariance))
        root = torch.linalg.cholesky(self._covariances[name][columns][:, columns])
        size = len(columns) // self.max_rank * limit
        whiten = torch.zeros(size, len(columns), dtype=torch.float64)
        whiten[:, columns] = torch.linalg.inv(root)[:size]
        weight = layer.weight.detach().double().cpu().flatten(1)
        outputs = (weight[:, columns] @ root)[:, :size].T
        bias = weight @ moments.mean
        if layer.bias is not None:
            bias = bias + layer.bias.detach().double().cpu()
        like = layer.weight
        centre = -(whiten @ moments.mean)
        features = _like(layer, whiten.reshape(size, *layer.weight.shape[1:]).to(like), centre.to(like))
        return NestedFactors(
            features, outputs[None].to(like), bias.to(like), size // limit, isinstance(layer, nn.Linear)
        )

    def check_width(self, width: int) -> None:
        """Refuse a width outside 1 to `max_rank`.

        Raises:
            ValueError: it is outside.
        """
        if not 1 <= width <= self.max_rank:
            raise ValueError(f"width must lie in 1..{self.max_rank}, got {width}")

    def _refit(self, name: str, units: Tensor) -> Refitted:
        layer, moments, covariance = self._layers[name], self._moments[name], self._covariances[name]
        weight = layer.weight.detach().double().cpu()
        size = weight[0].numel() // len(covariance)
        by_input = weight.flatten(1).unflatten(1, (-1, size))
        index = channels_of(units, self.max_rank, len(covariance))
        removed = torch.ones(len(covariance), dtype=torch.bool)
        removed[index] = False
        combine = torch.linalg.solve(covariance[index][:, index], covariance[index][:, removed])
        changed = torch.zeros_like(by_input)
        changed[:, index] = by_input[:, index] + torch.einsum("kr,ors->oks", combine, by_input[:, removed])
        bias = torch.einsum("oks,k->o", by_input - changed, moments.mean)
        return Refitted(changed.reshape(weight.shape), bias)


def regularized(covariance: Tensor) -> Tensor:
    """The covariance (n, n) with a ridge: inputs that hardly vary keep their weights."""
    return with_floor(covariance[None], INPUT_FLOOR)[0]


def eliminate_units(
    covariances: Mapping[str, Tensor], layers: Mapping[str, Layer], moments: Mapping[str, ReaderMoments], num_units: int
) -> Elimination:
    """The order by backward elimination for the sum of all readers' losses."""
    importances = [moments[name].importance(layer.weight).numpy() for name, layer in layers.items()]
    return eliminate([covariances[name].numpy() for name in layers], importances, num_units)


def _with(layer: Layer, weight: Tensor, bias: Tensor) -> nn.Module:
    total = bias if layer.bias is None else bias + layer.bias.detach().double().cpu()
    return _like(layer, weight.to(layer.weight), total.to(layer.weight))


def _like(layer: Layer, weight: Tensor, bias: Tensor | None) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return make_linear(weight, bias)
    geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    return make_conv(weight, bias, layer, 1, **geometry)
