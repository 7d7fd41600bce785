"""From a checkpoint file to a network ready for inference; see `state_dict` for how the file is read."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.data.transforms import Transform
from compressor.errors import InputError
from compressor.network.architectures import (
    CLASSES,
    build_model,
    first_difference,
    identify,
    image_size_of,
    known_architecture,
    published_transform,
    registry_fingerprints,
    shapes_of,
)
from compressor.network.state_dict import find_weights, read_checkpoint, tidy_names
from compressor.text import first_line, join_words

IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class LoadedModel:
    """A network ready for inference: eval mode, float32, on the CPU, no gradients.

    Attributes:
        arch: torchvision's name of it.
        num_classes: width of its output.
        model: the network.
        transform: how images are prepared for torchvision's published weights of `arch`.
        notes: one-line remarks for the user.
        class_names: of the outputs in order, where the checkpoint or a file beside it has them.
    """

    arch: str
    num_classes: int
    model: nn.Module
    transform: Transform
    notes: list[str]
    class_names: list[str] | None = None


def load_model(path: Path, arch: str | None = None, trust_pickle: bool = False) -> LoadedModel:
    """Load a torchvision classifier from a `.pt`, `.pth` or `.safetensors` file.

    Args:
        path: a state_dict, a dict holding one, or with `trust_pickle` a whole pickled module.
        arch: torchvision's name of the architecture; recognized from the weights if not given.
        trust_pickle: allow a file to run code while it is loaded.

    Raises:
        InputError: the file cannot be read or has no weights; the weights are not finite, or fit no architecture or
            more than one; or torchvision cannot be imported.
    """
    path = Path(path)
    if arch is not None:
        arch = known_architecture(arch)
    notes: list[str] = []
    found = find_weights(read_checkpoint(path, trust_pickle), path, notes)
    if isinstance(found, nn.Module):
        return adopt_module(found, path, arch, notes)
    weights = tidy_names(found)
    arch, free = identify(shapes_of(weights), arch, str(path))
    check_finite(weights, path)
    model = build_model(arch, free[CLASSES], image_size_of(free, weights))
    fill(model, weights, path, notes)
    set_transform_input(model, arch, free[CLASSES], notes)
    transform = published_transform(arch, image_size_of(free, weights))
    return LoadedModel(arch, free[CLASSES], freeze(model), transform, notes)


def check_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse NaN and infinity, including float64 values that overflow in float32.

    Raises:
        InputError: a weight is not finite.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and is_plain(tensor) and not bool(tensor.float().isfinite().all()):
            raise InputError(f"{path} has NaN or infinite weights in {name!r}")


def is_plain(tensor: Tensor) -> bool:
    """Whether this is an ordinary dense tensor."""
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def fill(model: nn.Module, weights: Mapping[str, Tensor], path: Path, notes: list[str]) -> None:
    """Load `weights` into a network from `build_model`, as float32.

    Raises:
        InputError: a tensor cannot be a weight, for example because it is quantized.
    """
    expected = model.state_dict()
    cast = {str(weights[name].dtype) for name in expected if is_cast(weights.get(name), expected[name])}
    # Batch norm's counters, which a checkpoint may lack, keep their initial values.
    state = OrderedDict(
        (name, convert(name, weights.get(name, tensor), tensor, path)) for name, tensor in expected.items()
    )
    # MNASNet refuses a state_dict without its version, which safetensors files do not store.
    state._metadata = expected._metadata  # type: ignore[attr-defined]
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise InputError(f"{path} could not be loaded into its network: {first_line(error)}") from error
    if cast:
        notes.append(f"weights stored as {join_words(sorted(cast)).replace('torch.', '')} were cast to float32")


def is_cast(tensor: Tensor | None, expected: Tensor) -> bool:
    """Whether a weight is converted to float32 from another type."""
    return tensor is not None and expected.is_floating_point() and tensor.dtype != torch.float32


def convert(name: str, tensor: Tensor, expected: Tensor, path: Path) -> Tensor:
    """A tensor of the checkpoint in the type of the network's.

    Raises:
        InputError: it is no plain floating-point tensor where the network has one.
    """
    if not is_plain(tensor) or tensor.is_floating_point() != expected.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InputError(f"{path} stores {name!r} as {kind} values, not as plain floating-point weights")
    return tensor.to(torch.float32 if expected.is_floating_point() else expected.dtype).contiguous()


def set_transform_input(model: nn.Module, arch: str, num_classes: int, notes: list[str]) -> None:
    """Guess GoogLeNet's and Inception's `transform_input`, which is not in a state_dict."""
    if not hasattr(model, "transform_input"):
        return
    chosen = num_classes == IMAGENET_CLASSES
    vars(model)["transform_input"] = chosen  # setattr would not pass type checks
    state, reason = ("on", "as") if chosen else ("off", "unlike")
    notes.append(
        f"{arch}: a state_dict does not say whether transform_input was set; it is guessed to be {state}, "
        f"{reason} torchvision's own weights of {IMAGENET_CLASSES} classes need it"
    )


def freeze(model: nn.Module) -> nn.Module:
    """The network in eval mode and without gradients."""
    return model.eval().requires_grad_(False)


def adopt_module(module: nn.Module, path: Path, arch: str | None, notes: list[str]) -> LoadedModel:
    """A whole network from a trusted pickle, unchanged.

    Raises:
        InputError: it does not fit `arch`, its weights are not finite, or it has no conv or linear layer.
    """
    weights = module.state_dict()
    check_finite(weights, path)
    if arch is None and not fits_registry(module):
        name = type(module).__name__
        notes.append(f"{name} is no classifier of torchvision: 224-pixel images, unless --input-size says otherwise")
        name = name.lower()
        return LoadedModel(name, count_outputs(module, path), freeze(module.float()), Transform(), notes)
    name, free = identify(shapes_of(tidy_names(weights)), arch, str(path))
    transform = published_transform(name, image_size_of(free, weights))
    return LoadedModel(name, free[CLASSES], freeze(module.float()), transform, notes)


def fits_registry(module: nn.Module) -> bool:
    """Whether names and shapes are those of exactly one of torchvision's classifiers."""
    shapes = shapes_of(tidy_names(module.state_dict()))
    return sum(first_difference(shapes, known) is None for known in registry_fingerprints().values()) == 1


def count_outputs(module: nn.Module, path: Path) -> int:
    """The width of a network's last conv or linear layer.

    Raises:
        InputError: it has none.
    """
    widths = [
        layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        for layer in module.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    if not widths:
        raise InputError(f"{path} holds a {type(module).__name__} without a linear or convolutional layer")
    return widths[-1]
