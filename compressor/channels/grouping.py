"""The groups of a network, found by tracing one forward pass."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compressor.channels.bundle import Bundle
from compressor.channels.groups import ChannelGroup, Reader
from compressor.channels.narrowing import kept_in_front, narrow
from compressor.channels.tracing import trace

MIN_UNITS = 2
FAILURES = (RuntimeError, ValueError, IndexError, AssertionError)  # of a network that counts on its channels' number


def find_groups(model: nn.Module, example: Tensor) -> list[ChannelGroup]:
    """All groups of a network, in order of use.

    One forward pass is traced. Channels that reach the output or a residual sum, or meet an operation that is not known
    to keep them apart, are in no group. What is found is tried out: groups without which the network fails to run are
    left out.

    Args:
        model: the network, in eval mode.
        example: one input batch (N, ...), of which the first sample is used.
    """
    groups = [_group(bundle) for bundle in trace(model, example[:1]) if _is_hidden(bundle)]
    return groups if _runs_without_last(model, groups, example[:1]) else _those_that_run(model, groups, example[:1])


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
