"""A network's outputs as one row of numbers for each image, so scaled that squared distances of rows are L.

L is the sum over the outputs of their squared distances, averaged over positions and, where there are several outputs,
divided by each one's energy. A map of scores has millions of values for an image; a fixed random sample of them stands
for all, so that rows stay short; scores of classes are all kept.

The rows are made by a hook on the network itself. Whatever runs the network, to search, to fit and to train, then sees
a matrix (N, D) as a classifier gives it; what exports or evaluates takes `whole` of it. A network that returns one
tensor (N, classes) has no hook.
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import InputError
from compressor.outputs.structure import Output, describe_outputs, named_tensors
from compressor.streams import Stream, derived_seed
from compressor.text import join_words

MAX_VALUES = 2048  # of a row
MIN_VALUES = 64  # of an output, however many there are


@dataclass(frozen=True)
class Weighted:
    """An output that counts in L.

    Attributes:
        output: the tensor.
        weight: by which its squared distance counts.
        energy: the squared length of the original's, averaged over images and positions, that divides it; 1 where it is
            the only one.
        values: indices of the values in a row, among all of an image; None for all of them.
    """

    output: Output
    weight: float
    energy: float
    values: Tensor | None

    @property
    def share(self) -> float:
        """What a squared distance of one position counts in L."""
        return self.weight / self.energy

    def rows(self, tensor: Tensor) -> Tensor:
        """Its part of the rows (N, ...) from the tensor (N, *shape), scaled."""
        flat = tensor.reshape(len(tensor), -1).float()
        count = flat.shape[1]
        if self.values is not None:
            flat = flat.index_select(1, self.values.to(flat.device))
        factor = (self.share * count / (max(1, flat.shape[1]) * self.output.num_positions)) ** 0.5
        return flat if factor == 1.0 else flat * factor


@dataclass(frozen=True)
class RowView:
    """Makes rows of a network's outputs; as a hook, in place of them.

    Attributes:
        parts: the outputs that count in L, in order.
        outputs: all that the network returns.
    """

    parts: tuple[Weighted, ...]
    outputs: tuple[Output, ...] = field(repr=False)

    @property
    def is_scores(self) -> bool:
        """Whether rows are scores (N, classes): the one output that counts is a matrix."""
        return len(self.parts) == 1 and len(self.parts[0].output.shape) == 1

    @property
    def weights(self) -> dict[str, float]:
        """By which outputs count, by name."""
        return {part.output.name: part.weight for part in self.parts}

    def rows(self, outputs: object) -> Tensor:
        """Rows (N, D), float32, of what the network returns for N images."""
        tensors = named_tensors(outputs)
        return torch.cat([part.rows(tensors[part.output.name]) for part in self.parts], dim=1)

    def __call__(self, _module: nn.Module, _inputs: Any, outputs: object) -> Tensor:
        return self.rows(outputs)

    def __deepcopy__(self, _known: dict[int, object]) -> "RowView":
        return self  # it never changes


def make_view(
    outputs: Sequence[Output], energies: Mapping[str, float], weights: Mapping[str, float], seed: int
) -> RowView:
    """The view of these outputs.

    Args:
        outputs: all that the network returns.
        energies: of the floating-point ones by name; see `Weighted`.
        weights: by name; 1 for those that it does not have, and for all where it is empty.
        seed: of the values that stand for all.

    Raises:
        InputError: a weight is for no output, or for one without distances, or none is above zero.
    """
    _require_weights(outputs, weights)
    counted = [each for each in outputs if each.is_float and each.num_values and weights.get(each.name, 1.0) > 0]
    # A constant zero says nothing, and has no energy to be divided by.
    counted = [each for each in counted if energies[each.name] > 0] or counted[:1]
    if not counted:
        raise InputError(f"--output-weights leave nothing to compare of {describe_outputs(outputs)}")
    room = max(MIN_VALUES, MAX_VALUES // len(counted))
    generator = torch.Generator().manual_seed(derived_seed(seed, Stream.OUTPUT_VALUES))
    parts = tuple(
        Weighted(
            output=each,
            weight=weights.get(each.name, 1.0) if len(counted) > 1 else 1.0,  # alone, scores stay as they are
            energy=energies[each.name] if len(counted) > 1 else 1.0,
            values=sample_values(each.num_values, room, generator) if len(each.shape) > 1 else None,
        )
        for each in counted
    )
    return RowView(parts, tuple(outputs))


def _require_weights(outputs: Sequence[Output], weights: Mapping[str, float]) -> None:
    names = {each.name: each for each in outputs}
    for name, weight in weights.items():
        if name not in names:
            raise InputError(f"--output-weights {name}={weight:g}: the network returns {join_words(list(names))}")
        if weight > 0 and not names[name].is_float:
            raise InputError(f"--output-weights {name}={weight:g}: it holds whole numbers, which have no distance")


def sample_values(count: int, most: int, generator: torch.Generator) -> Tensor | None:
    """A random index from each of `most` equal parts of `count` values (most,); None where all are taken.

    Every value is as likely as any other, so that sums over the sample estimate sums over all without bias, and spread
    over the whole map, so that they do it well.
    """
    if count <= most:
        return None
    places = (torch.arange(most) + torch.rand(most, generator=generator, dtype=torch.float64)) * (count / most)
    return places.long().clamp_max(count - 1)


def with_rows(network: nn.Module, view: RowView) -> nn.Module:
    """The network, from now on returning rows."""
    network.register_forward_hook(view)
    return network


def view_of(network: nn.Module) -> RowView | None:
    """The view by which a network returns rows; None where it returns what it always did."""
    return next((hook for hook in network._forward_hooks.values() if isinstance(hook, RowView)), None)


def whole(network: nn.Module) -> nn.Module:
    """The network, with the same modules and tensors, returning all its outputs in their structure."""
    if view_of(network) is None:
        return network
    plain = copy.copy(network)
    hooks = [(key, hook) for key, hook in network._forward_hooks.items() if not isinstance(hook, RowView)]
    plain._forward_hooks = OrderedDict(hooks)
    return plain


def counted_outputs(network: nn.Module) -> dict[str, dict[str, float]]:
    """What L depends on beside weights and images, for journals; nothing where the network returns one matrix."""
    view = view_of(network)
    return {} if view is None else {"outputs": view.weights}


def gives_scores(network: nn.Module) -> bool:
    """Whether the network's rows are scores of classes, by which it decides."""
    view = view_of(network)
    return view is None or view.is_scores
