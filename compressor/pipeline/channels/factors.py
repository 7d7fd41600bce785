"""Hidden channels in their order, for groups of a run."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from compressor.channels.factors import ChannelFactors
from compressor.channels.groups import ChannelGroup
from compressor.channels.statistics import reader_moments
from compressor.network.calibration.moments import MAX_INPUTS, chunks
from compressor.pipeline.context import Context
from compressor.process.memory import release_memory

BYTES_PER_PRODUCT = 8  # of images' means and of deviations from them, in single precision


def order_channels(context: Context, groups: Sequence[ChannelGroup]) -> dict[str, ChannelFactors]:
    """The channels of the groups in the order in which they are kept, by the groups' names.

    The readers' second moments take as few passes over the calibration images as memory allows.
    """
    found: dict[str, ChannelFactors] = {}
    replay = context.gradients.replay([name for group in groups for name in group.reader_names])
    with context.progress.stage("ordering channels", len(groups)) as stage:
        for chunk in chunks(groups, partial(_group_bytes, context)):
            units = {name: group.num_units for group in chunk for name in group.reader_names}
            moments = reader_moments(context.gradients, units, replay)
            release_memory()  # passes leave hundreds of MB, and the matrices of a large reader take as much
            for group in chunk:
                stage.update(len(found), group.name)
                readers: dict[str, Any] = {name: context.original.get_submodule(name) for name in group.reader_names}
                found[group.name] = ChannelFactors(group, readers, moments)
    return found


def moment_sizes(context: Context, group: ChannelGroup) -> list[int]:
    """The rows of the second moments of each reader: its inputs, or where these are many the group's units."""
    readers: list[Any] = [context.original.get_submodule(name) for name in group.reader_names]
    inputs: list[int] = [reader.weight[0].numel() for reader in readers]
    return [count if count <= MAX_INPUTS else group.num_units for count in inputs]


def _group_bytes(context: Context, group: ChannelGroup) -> int:
    return sum(BYTES_PER_PRODUCT * size**2 for size in moment_sizes(context, group))
