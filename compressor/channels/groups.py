"""Groups of layers that share hidden channels: what produces these, what lies between, and what reads them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.channels.bundle import Bundle
from compressor.channels.narrowing import narrow
from compressor.channels.tracing import trace
from compressor.factorization.registry import CHANNELS

MIN_UNITS = 2
FAILURES = (RuntimeError, ValueError, IndexError, AssertionError)  # of a network that counts on its channels' number


@dataclass(frozen=True)
class Reader:
    """A layer that reads hidden channels and mixes them.

    Attributes:
        name: the layer's name in the network.
        norm: name of the batch norm that its outputs go through before anything else; None for none.
        addition: which of the network's additions, counted from 0 in order of use, adds its outputs (after `norm`) to
            something computed before, as at the end of a residual block; None where other things happen to them.
        adds_right: whether they are the addition's second operand.
    """

    name: str
    norm: str | None = None
    addition: int | None = None
    adds_right: bool = False


@dataclass(frozen=True)
class ChannelGroup:
    """Layers that share hidden channels, which are removed in all of them at once.

    Channels come in units, which are contiguous: one channel, or where a grouped convolution lies between, those of
    one of its groups. A tensor with D channels has D / num_units of them per unit; behind a flatten these include
    positions.

    Attributes:
        name: of the first producer.
        producers: layers whose outputs are the channels; with squeeze-and-excitation its last layer is one.
        between: modules that act unit by unit and have weights: batch norms, PReLU, depthwise and grouped convolutions.
        readers: layers that mix the channels; the last one is the one that is computed last.
        num_units: how many there are.
    """

    name: str
    producers: tuple[str, ...]
    between: tuple[str, ...]
    readers: tuple[Reader, ...]
    num_units: int

    @property
    def method(self) -> str:
        """The method under which plans and reports have it."""
        return CHANNELS

    @property
    def dense_rank(self) -> int:
        """The width by which the group is left as it is: that of all units."""
        return self.num_units

    @property
    def break_even_rank(self) -> int:
        """The largest width at which something is removed."""
        return self.num_units - 1

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of its layers and of the modules between, in order of use; each once."""
        return tuple(dict.fromkeys([*self.producers, *self.between, *self.reader_names]))

    @property
    def reader_names(self) -> tuple[str, ...]:
        """Names of the readers."""
        return tuple(reader.name for reader in self.readers)


def find_groups(model: nn.Module, example: Tensor, include: Sequence[str] | None = None) -> list[ChannelGroup]:
    """All groups of a network, in order of use.

    One forward pass is traced. Channels that reach the output or a residual sum, or meet an operation that is not known
    to keep them apart, are in no group. What is found is tried out: groups without which the network fails to run are
    left out.

    Args:
        model: the network, in eval mode.
        example: one input batch (N, ...), of which the first sample is used.
        include: names of groups to keep; None for all.
    """
    groups = [_group(bundle) for bundle in trace(model, example[:1]) if _is_hidden(bundle)]
    if include is not None:
        groups = [group for group in groups if group.name in include]
    return groups if _runs_without_last(model, groups, example[:1]) else _those_that_run(model, groups, example[:1])


def kept_in_front(groups: Iterable[ChannelGroup], widths: Mapping[str, int]) -> dict[str, Tensor]:
    """The first units of every group, by name: as many as `widths` says, all where it does not."""
    return {group.name: torch.arange(widths.get(group.name, group.num_units)) for group in groups}


def _is_hidden(bundle: Bundle) -> bool:
    return not bundle.blocked and bool(bundle.readers) and bundle.num_units >= MIN_UNITS


def _group(bundle: Bundle) -> ChannelGroup:
    readers = []
    for name in dict.fromkeys(bundle.readers):
        follows = bundle.outputs[name]
        norm = follows.norms[0] if follows.is_plain and follows.norms else None
        addition, adds_right = follows.addition if follows.is_plain and follows.addition else (None, False)
        readers.append(Reader(name, norm, addition, adds_right))
    return ChannelGroup(
        bundle.producers[0],
        tuple(dict.fromkeys(bundle.producers)),
        tuple(dict.fromkeys(bundle.between)),
        tuple(readers),
        bundle.num_units,
    )


def _runs_without_last(model: nn.Module, groups: Sequence[ChannelGroup], example: Tensor) -> bool:
    """Whether the network runs with one unit less in each of the groups."""
    kept = kept_in_front(groups, {group.name: group.num_units - 1 for group in groups})
    try:
        with torch.no_grad():
            narrow(model, groups, kept)(example)
    except FAILURES:
        return False
    return True


def _those_that_run(model: nn.Module, groups: list[ChannelGroup], example: Tensor) -> list[ChannelGroup]:
    """The groups that can be narrowed, found by halving."""
    if not groups or _runs_without_last(model, groups, example):
        return groups
    if len(groups) == 1:
        return []
    half = len(groups) // 2
    return [
        *_those_that_run(model, groups[:half], example),
        *_those_that_run(model, groups[half:], example),
    ]
