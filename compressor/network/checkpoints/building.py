"""torchvision's network for a match, with the head and the stem that the checkpoint has."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from compressor.data.transforms import Transform
from compressor.errors import InputError
from compressor.network.architectures import (
    AUXILIARY,
    TOKENS,
    build_model,
    list_task,
    published_transform,
    shapes_of,
)
from compressor.network.checkpoints.copies import WAYS_OUT
from compressor.network.checkpoints.heads import Head, build_head
from compressor.network.checkpoints.inert import Inert
from compressor.network.checkpoints.matching import AUXILIARY_HEADS, SMALL_STEMS, Match, Stem
from compressor.network.checkpoints.pickled import adopt_parts, describe_difference
from compressor.network.detection.building import build_detector
from compressor.network.detection.recognition import TWINS, detector_options

SMALL_IMAGE = 32  # pixels
IDLE = (nn.Linear, nn.Dropout, nn.Flatten, nn.LayerNorm, nn.AdaptiveAvgPool2d, nn.Identity)


def build_matched(
    match: Match, weights: dict[str, Tensor], pickled: dict[str, Inert], source: str, notes: list[str]
) -> tuple[nn.Module, Transform]:
    """The network, its large parameters on the meta device, and how images are prepared for it.

    Args:
        match: of the weights.
        weights: by the network's names.
        pickled: modules of the network as a pickle describes them; empty for a state_dict.
        source: the checkpoint, for messages.
        notes: gets remarks on what was inferred.

    Raises:
        InputError: a pickled module is not what the architecture has in its place.
    """
    if match.arch in list_task("detection"):
        if match.arch in TWINS:
            notes.append(f"its tensors are those of {TWINS[match.arch]}, too: say so with --arch if it is that")
        return _build_detector(match, weights, bool(pickled), source)
    size = image_size(match, weights)
    auxiliary = any(name.startswith(AUXILIARY) for name in match.left)
    network = build_model(match.arch, match.num_classes, size, auxiliary)
    transform = published_transform(match.arch, size)
    if match.head:
        notes += _replace_head(network, match.head, bool(pickled))
    if match.stem:
        _replace_stem(network, match)
    if pickled:
        _check_pickled(network, match, pickled, source)
    if match.stem:
        transform = _transform_of_stem(transform, match.stem, bool(pickled), notes)
    return network, transform


def _build_detector(
    match: Match, weights: dict[str, Tensor], is_pickled: bool, source: str
) -> tuple[nn.Module, Transform]:
    if is_pickled:
        raise InputError(
            f"{source} is a pickled {match.arch}, whose thresholds and anchors are not read without running its code: "
            "save its state_dict, if they are torchvision's, or use --trust-pickle"
        )
    options = detector_options(shapes_of(weights))
    assert options is not None
    return build_detector(match.arch, **options)


def image_size(match: Match, weights: dict[str, Tensor]) -> int | None:
    """The only image size in pixels that a vision transformer takes; None for other networks."""
    if TOKENS not in match.sizes:
        return None
    side = round((match.sizes[TOKENS] - 1) ** 0.5)
    return int(weights["conv_proj.weight"].shape[-1]) * side


def _replace_head(network: nn.Module, head: Head, is_seen: bool) -> list[str]:
    """Put the head in; the note on it, unless a pickle shows what it is."""
    original = network.get_submodule(head.slot)
    parts = list(original.children())
    before = [part for part in parts if isinstance(part, nn.Flatten | nn.AdaptiveAvgPool2d)]
    eps = next((part.eps for part in parts if isinstance(part, nn.LayerNorm)), None)
    activation = _activation(original, head)
    network.set_submodule(head.slot, build_head(head, activation, eps, before))
    return [] if is_seen else [head.describe(type(activation).__name__)]


def _activation(original: nn.Module, head: Head) -> nn.Module:
    """The original's, where the linear layers stand at the same places; else ReLU."""
    own = [name for name, part in original.named_children() if isinstance(part, nn.Linear)]
    if [layer.path for layer in head.layers if layer.kind == "linear"] == [(name,) for name in own]:
        return next((part for part in original.children() if not isinstance(part, IDLE)), nn.ReLU())
    if head.layers[0].path == ("pre_logits",):  # torchvision's vision transformers with a representation
        return nn.Tanh()
    return nn.ReLU()


def _replace_stem(network: nn.Module, match: Match) -> None:
    stem = match.stem
    assert stem is not None
    own = network.get_submodule(stem.name)
    assert isinstance(own, nn.Conv2d | nn.Conv3d)
    size: dict[str, Any] = {name: getattr(own, name) for name in ("kernel_size", "stride", "padding")}
    if stem.small:
        size = {"kernel_size": 3, "stride": 1, "padding": 1}
    conv = type(own)(stem.channels, own.out_channels, **size, bias=stem.bias, device="meta")
    network.set_submodule(stem.name, conv)
    if stem.small:
        network.set_submodule(SMALL_STEMS[f"{stem.name}.weight"], nn.Identity())


def _check_pickled(network: nn.Module, match: Match, pickled: dict[str, Inert], source: str) -> None:
    """Take head and stem as the pickle has them, and compare the rest.

    Raises:
        InputError: they differ.
    """
    stems = [name for weight, pool in SMALL_STEMS.items() for name in (weight.removesuffix(".weight"), pool)]
    own = dict(network.named_modules())
    names = [*stems, *([match.head.slot] if match.head else []), *([match.stem.name] if match.stem else [])]
    adopt_parts(network, pickled, [name for name in dict.fromkeys(names) if name in own])
    known = {name: module for name, module in pickled.items() if not f"{name}.".startswith(AUXILIARY_HEADS)}
    if difference := describe_difference(network, known):
        raise InputError(f"{source} is a pickled module like {match.arch}, but {difference}: {WAYS_OUT}")


def _transform_of_stem(transform: Transform, stem: Stem, is_seen: bool, notes: list[str]) -> Transform:
    transform = fit_channels(transform, stem.channels, notes)
    if stem.small:
        transform = replace(transform, input_size=SMALL_IMAGE, resize_size=SMALL_IMAGE)
        guess = "" if is_seen else ", stride 1 and no max pooling, which a state_dict does not show"
        notes.append(
            f"the first convolution is 3 x 3, as for small images: {SMALL_IMAGE} pixels{guess}; see --input-size"
            + ("" if is_seen else ", and --arch module:function for another stem")
        )
    return transform


def fit_channels(transform: Transform, channels: int, notes: list[str]) -> Transform:
    """The transform with as many channels as the first convolution takes.

    Args:
        transform: of the architecture, as published.
        channels: that the convolution takes.
        notes: gets a sentence where these are others than the transform has.
    """
    if channels == len(transform.mean):
        return transform
    transform = _with_channels(transform, channels)
    notes.append(_describe_channels(transform))
    return transform


def _with_channels(transform: Transform, channels: int) -> Transform:
    """The transform for another number of channels: the colours' own values first, then averages over them."""

    def spread(values: tuple[float, ...]) -> tuple[float, ...]:
        mean = round(sum(values) / len(values), 4)
        return (*values, *[mean] * (channels - len(values))) if channels > len(values) else (mean,) * channels

    return replace(transform, mean=spread(transform.mean), std=spread(transform.std))


def _describe_channels(transform: Transform) -> str:
    """The note on images that are not in colour."""
    channels = len(transform.mean)
    mean, std = (",".join(f"{value:g}" for value in values) for values in (transform.mean, transform.std))
    kind = "1 channel, so images are taken in grey" if channels == 1 else f"{channels} channels"
    return f"the first convolution takes {kind}; mean {mean} and deviation {std} are a guess: see --mean and --std"
