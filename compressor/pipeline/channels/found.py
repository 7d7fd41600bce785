"""The groups of layers of a network that a run may take hidden channels from."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from compressor.channels.grouping import find_groups
from compressor.channels.groups import ChannelGroup
from compressor.errors import InputError
from compressor.factorization.registry import CHANNELS, removes_channels
from compressor.network.layers import FoundLayer
from compressor.network.records import LayerRecord
from compressor.pipeline.context import Context

# Of modules that may lie between and have weights, those that are no layers by themselves.
NOT_LAYERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.PReLU)


def groups_to_search(context: Context) -> list[ChannelGroup]:
    """The groups whose channels may be removed; none where that is not asked for or cannot be fitted.

    Channels are chosen and readers refitted by what real images say of their covariances: weights alone do not tell
    which channels the others can stand in for, and synthetic images tell wrong.

    Raises:
        InputError: nothing but channels was asked for, and there are no images to fit on.
    """
    settings = context.settings
    if not removes_channels(settings.method):
        return []
    reason = _why_not(context)
    if reason and settings.method == CHANNELS:
        raise InputError(f"--method channels refits layers to images: {reason}")
    return [] if reason else groups_of(context)


def require_images(context: Context, groups: Sequence[ChannelGroup]) -> None:
    """Check that there are images to order the channels of a plan's groups by.

    Raises:
        InputError: there are none.
    """
    if groups and not len(context.calibration):
        raise InputError("the plan removes channels, and layers are refitted for that: give --data, and more images")


def groups_of(context: Context) -> list[ChannelGroup]:
    """All groups of the network whose layers may be changed."""
    return [group for group in context.channel_groups if may_be_narrowed(group, context.original, context.layers)]


def may_be_narrowed(group: ChannelGroup, model: nn.Module, layers: Sequence[FoundLayer]) -> bool:
    """Whether all layers of a group are among those found, and none is to stay as it is.

    Args:
        group: found in `model`.
        model: the network.
        layers: all layers found in it, those left out among them.
    """
    free = {layer.name for layer in layers if not layer.left_out}
    return all(name in free or isinstance(model.get_submodule(name), NOT_LAYERS) for name in group.layers)


def list_layers(model: nn.Module, example: Tensor, layers: Sequence[FoundLayer], method: str) -> list[LayerRecord]:
    """The layers as `inspect` shows them, with the groups whose channels can be removed under this method.

    Args:
        model: the network.
        example: one input (1, ...), with which groups are found.
        layers: all layers found in it.
        method: as `--method` spells it.
    """
    found = find_groups(model, example) if removes_channels(method) else []
    groups = [group for group in found if may_be_narrowed(group, model, layers)]
    return [_record(layer, [group for group in groups if layer.name in group.layers], method) for layer in layers]


def _record(layer: FoundLayer, groups: Sequence[ChannelGroup], method: str) -> LayerRecord:
    record = layer.record()
    if not groups:
        return record
    changes: dict[str, Any] = {"groups": [group.name for group in groups]}
    if layer.skipped or method == CHANNELS:
        changes |= {"method": CHANNELS, "break_even_rank": groups[-1].break_even_rank, "skipped": None}
    return record.model_copy(update=changes)


def _why_not(context: Context) -> str:
    """Why no channels can be removed; empty where they can."""
    if context.settings.factors == "weight":
        return "leave out --factors weight"
    if context.calibration.synthetic:
        return "synthetic ones will not do, give --data"
    if not len(context.calibration):
        return "--calibration must be above 0, and there must be enough images"
    return ""
