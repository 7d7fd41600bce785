"""The hidden channels of one group at every width: which are kept, what is lost, and the readers refitted to them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.linalg import get_lapack_funcs
from torch import Tensor, nn

from compressor.arrays import Array
from compressor.channels.elimination import Elimination, eliminate
from compressor.channels.groups import ChannelGroup
from compressor.channels.narrowing import channels_of
from compressor.channels.statistics import ReaderMoments
from compressor.factorization.base import JointFactors, NestedFactors
from compressor.factorization.layers.kinds import Layer
from compressor.factorization.layers.making import geometry_of, make_conv, make_like
from compressor.factorization.moments import with_floor
from compressor.files.tensors_on_disk import on_disk

INPUT_FLOOR = 1e-2  # ridge on the inputs' covariance, as a share of its mean diagonal
OUTPUTS_AT_ONCE = 512  # of a reader that are refitted at once: copies of the weights of a wide one take gigabytes


@dataclass(frozen=True)
class Refitted:
    """A reader's weight and bias for the channels that are kept.

    Attributes:
        weight: of its own shape (Co, Ci, ...), zero at the channels that are removed; float64.
        bias: what is added to its bias (Co,), float64.
    """

    weight: Tensor
    bias: Tensor


class ChannelFactors(JointFactors):
    """A group's channels in a nested order, with its readers refitted to the first 1, 2, ... units.

    Args:
        group: the group.
        readers: the layers that read it, by name.
        moments: their second moments, by name.
        order: another order than that by elimination, and its losses.

    Attributes:
        layers: the readers, by name.
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
        self.layers = dict(readers)
        covariances = {name: regularized(moments[name].covariance) for name in readers}
        self._elimination = order or eliminate_units(covariances, self.layers, moments, self.max_rank)
        units = torch.from_numpy(self._elimination.order.copy())
        # Per reader its inputs' means, and C = L L^T with the inputs in the order of elimination: the columns, and L.
        self._means = {name: moments[name].mean for name in readers}
        self._columns = {name: channels_of(units, self.max_rank, len(mean)) for name, mean in self._means.items()}
        # In single precision, which a floor of a hundredth allows. On disk: they take as much as the network or more.
        self._roots = {
            name: on_disk([torch.linalg.cholesky(covariances.pop(name)[columns][:, columns])])
            for name, columns in self._columns.items()
        }

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
        self.check_width(width)
        return {name: self._refit(name, width) for name in self.layers}

    def build(self, rank: int) -> dict[str, nn.Module]:
        """Modules that replace the readers at the width `rank`: they take all channels, those removed with weight 0.

        In the network they compute what the readers of the narrowed network do.
        """
        return {name: _with(self.layers[name], found.weight, found.bias) for name, found in self.refit(rank).items()}

    def nested(self, name: str, limit: int) -> NestedFactors:
        """Widths 1 to `limit` of one reader at once.

        In the order of elimination, inputs are centred and made uncorrelated one after the other (C = L L^T). The best
        refit at width k is the sum over the features of the first k units.
        """
        layer, columns, root, mean = self.layers[name], self._columns[name], self._roots[name][0], self._means[name]
        like, size = layer.weight, len(columns) // self.max_rank * limit
        whiten = root.new_zeros(size, len(columns))
        whiten[:, columns[:size]] = _inverse(root[:size, :size])
        centre = -(whiten @ mean.to(root))
        by_input = like.detach().to(root).flatten(1).unflatten(1, (len(columns), -1))
        outputs = torch.einsum("ocs,ck->kso", by_input[:, columns], root[:, :size]).flatten(0, 1)
        bias = by_input.sum(2).double() @ mean
        if layer.bias is not None:
            bias = bias + layer.bias.detach().double().cpu()
        features: nn.Module
        if by_input.shape[2] == 1:
            features = make_like(layer, whiten.reshape(size, *like.shape[1:]).to(like), centre.to(like))
        else:
            features = _UnitFeatures(layer, whiten.to(like), centre.to(like))
        width = len(outputs) // limit
        return NestedFactors(features, outputs[None].to(like), bias.to(like), width, isinstance(layer, nn.Linear))

    def check_width(self, width: int) -> None:
        """Refuse a width outside 1 to `max_rank`.

        Raises:
            ValueError: it is outside.
        """
        if not 1 <= width <= self.max_rank:
            raise ValueError(f"width must lie in 1..{self.max_rank}, got {width}")

    def _refit(self, name: str, width: int) -> Refitted:
        """The weight at a width: with X = L_kk the root of the inputs kept, (W L)_k X^-1 in their columns."""
        columns, root = self._columns[name], self._roots[name][0]
        weight = self.layers[name].weight.detach().to(root)
        kept = len(columns) // self.max_rank * width
        changed, biases = torch.zeros_like(weight), []
        for some, into in zip(weight.split(OUTPUTS_AT_ONCE), changed.split(OUTPUTS_AT_ONCE), strict=True):
            by_input = some.flatten(1).unflatten(1, (len(columns), -1))
            rows = by_input[:, columns].transpose(1, 2).flatten(0, 1)
            solved = torch.linalg.solve_triangular(root[:kept, :kept], rows @ root[:, :kept], upper=False, left=False)
            into.view(by_input.shape)[:, columns[:kept]] = solved.unflatten(0, (len(some), -1)).transpose(1, 2)
            biases.append((some - into).reshape(by_input.shape).sum(2).double() @ self._means[name])
        return Refitted(changed, torch.cat(biases))


class _UnitFeatures(nn.Module):
    """Mixes units of a layer's inputs, all inputs within one by the same coefficients, and gives every input of every
    mixed unit as a feature: F units of s inputs as F * s.

    Args:
        layer: whose inputs they are; s of them are of one unit.
        mix: coefficients (F, U).
        centre: what is added to the inputs of each mixed unit (F,).
    """

    def __init__(self, layer: Layer, mix: Tensor, centre: Tensor) -> None:
        super().__init__()
        self._mix, self._axis = mix, -1 if isinstance(layer, nn.Linear) else 1
        self._units, shape = mix.shape[1], layer.weight.shape[1:]
        self._centre = centre.repeat_interleave(shape.numel() // self._units)
        self._taps: nn.Module | None = None
        if not isinstance(layer, nn.Linear):  # the pixels of a patch become features
            taps, channels = shape[1:].numel(), len(mix) * shape[0] // self._units
            pick = torch.eye(taps).to(mix).reshape(taps, 1, *shape[1:]).repeat(channels, *[1] * (len(shape)))
            self._taps = make_conv(pick, self._centre, layer, channels, **geometry_of(layer))

    def forward(self, inputs: Tensor) -> Tensor:
        """Features of the layer's inputs (b, ...), in the place of their channels."""
        by_unit = inputs.movedim(self._axis, 1).unflatten(1, (self._units, -1))
        mixed = torch.einsum("bus...,fu->bfs...", by_unit, self._mix).flatten(1, 2).movedim(1, self._axis)
        return mixed + self._centre if self._taps is None else self._taps(mixed)


def _inverse(root: Tensor) -> Tensor:
    """The inverse (n, n) of a lower triangular matrix."""
    upper = root.mT.numpy()
    (invert,) = get_lapack_funcs(("trtri",), (upper,))
    return torch.from_numpy(invert(upper)[0]).mT


def regularized(covariance: Tensor) -> Tensor:
    """The covariance (n, n) with a ridge: inputs that hardly vary keep their weights."""
    return with_floor(covariance[None], INPUT_FLOOR)[0]


def eliminate_units(
    covariances: Mapping[str, Tensor], layers: Mapping[str, Layer], moments: Mapping[str, ReaderMoments], num_units: int
) -> Elimination:
    """The order by backward elimination for the sum of all readers' losses.

    Args:
        covariances: of the channels that each reader takes (n, n), by reader.
        layers: the readers.
        moments: of the same readers: what their outputs weigh in the network's.
        num_units: of the group; its channels lie unit by unit.
    """
    importances = (moments[name].importance(layer.weight).numpy() for name, layer in layers.items())  # held once
    return eliminate((covariances[name].numpy() for name in layers), importances, num_units)


def _with(layer: Layer, weight: Tensor, bias: Tensor) -> nn.Module:
    total = bias if layer.bias is None else bias + layer.bias.detach().double().cpu()
    return make_like(layer, weight.to(layer.weight), total.to(layer.weight))
