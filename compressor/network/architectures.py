"""torchvision's networks that are compressed: names, transforms, empty networks; which one a checkpoint is.

torchvision is imported inside functions: if it was built for another torch, the user gets one
sentence instead of a traceback.
"""

import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressor.data.transforms import Transform
from compressor.errors import InputError
from compressor.failures import explain_shortage
from compressor.files import read_sealed, user_cache_dir, write_sealed
from compressor.network.clips.flow import NUM_FRAMES as PAIR
from compressor.network.clips.flow import FlowNetwork
from compressor.text import first_line, join_words

Shape = tuple[int, ...]
Fingerprint = dict[str, Shape]

# Sizes in a fingerprint's shapes that are free: the class count, and a vision transformer's number of tokens, which
# follows from the image size.
CLASSES = -1
TOKENS = -2

# A number that is no layer's width, so that it shows where shapes contain the class count.
MARKER_CLASSES = 7919

TOKEN_TENSOR = "encoder.pos_embedding"
CACHE_FORMAT = 3

Task = Literal["classification", "segmentation", "detection", "video", "optical_flow", "quantization"]
# Recognized by the shapes of all their tensors, where sizes that follow from the number of classes are free.
FINGERPRINTED: tuple[Task, ...] = ("classification", "segmentation", "video", "optical_flow")
COMPRESSED: tuple[Task, ...] = (*FINGERPRINTED, "detection")
AUXILIARY = "aux_classifier."  # tensors of the head that segmentation networks may have for training
WITHOUT_AUXILIARY = "lraspp"  # never has it

# Frames of the clips that published weights were trained with, by the beginning of a network's name.
CLIP_FRAMES = {"s3d": 128, "swin3d": 32}
NUM_FRAMES = 16  # of all others
FLOW_TRANSFORM = Transform(256, 256, mean=(0.5,) * 3, std=(0.5,) * 3, frames=PAIR, adjacent=True)

# Auxiliary heads are for training only, and slow to build and initialize.
BUILD_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}


# --- torchvision -------------------------------------------------------------------------------------------


def import_torchvision() -> ModuleType:
    """The torchvision package.

    Raises:
        InputError: it is missing, or was built for another torch.
    """
    try:
        import torchvision
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("torchvision", ""):
            raise
        raise InputError("torchvision is not installed: pip install torch torchvision") from error
    except Exception as error:  # RuntimeError on its operators, OSError on its libraries, AttributeError after
        if shortage := explain_shortage(error):
            raise shortage from error
        raise InputError(
            f"torch {torch.__version__} and the installed torchvision do not belong together "
            f"({first_line(error)}): pip install --upgrade --force-reinstall torch torchvision"
        ) from error
    return torchvision


def known_architecture(arch: str) -> str:
    """torchvision's spelling of `arch`.

    Raises:
        InputError: torchvision has no such network, or it cannot be compressed; the sentence names similar ones.
    """
    names = list_architectures()
    if arch.lower() in names:
        return arch.lower()
    if task_of(arch.lower()) is not None:
        raise InputError(why_not(arch.lower()))
    near = difflib.get_close_matches(arch.lower(), names, n=3, cutoff=0.3)
    hint = f"did you mean {join_words(near, 'or')}?" if near else "see torchvision.models for the names"
    raise InputError(f"torchvision has no network named {arch!r}: {hint}")


def list_architectures() -> list[str]:
    """Names of torchvision's networks in floating point."""
    return [arch for task in COMPRESSED for arch in list_task(task)]


def list_fingerprinted() -> list[str]:
    """Names of those that are recognized by their fingerprints: all but detectors."""
    return [arch for task in FINGERPRINTED for arch in list_task(task)]


def list_task(task: Task) -> list[str]:
    """Names of torchvision's networks for a task."""
    models = import_torchvision().models
    return list(models.list_models(module=models if task == "classification" else getattr(models, task)))


def task_of(arch: str) -> Task | None:
    """What a network of torchvision is for; None where it has no network of this name."""
    return next((task for task in get_args(Task) if arch in list_task(task)), None)


def why_not(arch: str) -> str:
    """Why one of torchvision's networks that are not compressed, the quantized ones, cannot be; one sentence."""
    return (
        f"{arch} is quantized, and weights in floating point are compressed: give the network it was made from, and "
        "--precision int8"
    )


def published_transform(arch: str, image_size: int | None = None) -> Transform:
    """How images are prepared for torchvision's published weights of `arch`; nothing is downloaded.

    Args:
        arch: torchvision's name.
        image_size: the only size in pixels that the network takes, if there is one; it selects the published weights.
    """
    if arch in list_task("detection"):
        from compressor.network.detection.building import build_detector  # which builds on this module

        return build_detector(arch, num_classes=2)[1]
    models = import_torchvision().models
    if arch in list_task("optical_flow"):  # whose weights are for frames of any size
        return FLOW_TRANSFORM
    published = models.get_model_weights(arch)
    if not len(published):
        return Transform()
    presets = [read_preset(entry.transforms()) for entry in (published.DEFAULT, *published)]
    if arch in list_task("video"):
        frames = next((count for start, count in CLIP_FRAMES.items() if arch.startswith(start)), NUM_FRAMES)
        presets = [replace(preset, frames=frames) for preset in presets]
    if image_size is None:
        return presets[0]
    fitting = [preset for preset in presets if preset.input_size == image_size]
    return fitting[0] if fitting else replace(presets[0], input_size=image_size, resize_size=image_size)


def read_preset(preset: Any) -> Transform:
    """The fields of torchvision's presets for classification, of images and of clips, and for segmentation."""
    resized = preset.resize_size[0]
    return Transform(
        input_size=preset.crop_size[0] if hasattr(preset, "crop_size") else resized,  # whole images, cut to squares
        resize_size=resized,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


# --- Fingerprints of the registry --------------------------------------------------------------------------


class SkipParameterData(TorchFunctionMode):
    """Builds modules whose parameters have shapes but neither memory nor initial values.

    `torch.device("meta")` would affect all tensors, but RegNet computes its widths, and Swin its index buffers, with
    real ones.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        elif func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build_model(arch: str, num_classes: int, image_size: int | None = None, auxiliary: bool = False) -> nn.Module:
    """A network of torchvision with parameters on the meta device and real buffers.

    Args:
        arch: torchvision's name.
        num_classes: width of its output.
        image_size: in pixels, for vision transformers.
        auxiliary: whether a segmentation network has its head for training.
    """
    models = import_torchvision().models
    arguments = dict(BUILD_ARGUMENTS.get(arch, {}))
    if arch in list_task("segmentation"):
        arguments["weights_backbone"] = None
        arguments |= {} if arch.startswith(WITHOUT_AUXILIARY) else {"aux_loss": auxiliary}
    if image_size is not None:
        arguments["image_size"] = image_size
    # A few small parameters are still initialized, which must not change the caller's random numbers.
    with SkipParameterData(), torch.random.fork_rng(devices=[]):
        if arch in list_task("optical_flow"):
            return FlowNetwork(models.get_model(arch, weights=None))
        model: nn.Module = models.get_model(arch, weights=None, num_classes=num_classes, **arguments)
    return model


def architecture_fingerprint(arch: str) -> Fingerprint:
    """Names and shapes of all tensors of `arch`, with CLASSES and TOKENS for free sizes.

    Batch norm's counters are left out, as old checkpoints lack them.
    """
    state = build_model(arch, MARKER_CLASSES).state_dict()
    shapes = {
        name: tuple(CLASSES if size == MARKER_CLASSES else size for size in shape)
        for name, shape in shapes_of(state).items()
    }
    if TOKEN_TENSOR in shapes:
        shapes[TOKEN_TENSOR] = (1, TOKENS, shapes[TOKEN_TENSOR][2])
    return shapes


def shapes_of(state: Mapping[str, Tensor]) -> Fingerprint:
    """Names and shapes of all tensors but batch norm's counters."""
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def registry_fingerprints(cache_dir: Path | None = None) -> dict[str, Fingerprint]:
    """Fingerprints of torchvision's networks that can be compressed, by name, without detectors.

    Computing them takes seconds, so they are cached for each version of torchvision.

    Args:
        cache_dir: folder of the cache; by default the user's cache folder.
    """
    cache = cache_file(cache_dir)
    names = list_fingerprinted()
    cached = read_cache(cache, names)
    if cached is not None:
        return cached
    fingerprints = {name: architecture_fingerprint(name) for name in names}
    write_cache(cache, fingerprints)
    return fingerprints


def cache_file(cache_dir: Path | None = None) -> Path | None:
    """The file of cached fingerprints; None where there is no home directory."""
    version = import_torchvision().__version__
    try:
        folder = cache_dir or user_cache_dir()
    except RuntimeError:
        return None
    return folder / f"architectures-{version}-{CACHE_FORMAT}.json"


def read_cache(cache: Path | None, names: list[str]) -> dict[str, Fingerprint] | None:
    """The cached fingerprints, or None if they are absent, damaged, or of other architectures."""
    try:
        if cache is None:
            return None
        state = cache.stat()
        cached = _parse_cache(cache, (state.st_ino, state.st_mtime_ns, state.st_size))
    except (OSError, InputError):
        return None
    return cached if set(cached) == set(names) else None


@functools.lru_cache(maxsize=1)
def _parse_cache(cache: Path, state: tuple[int, int, int]) -> dict[str, Fingerprint]:
    """What the file holds, once per process and `state` of it: its JSON takes a fifth of a second."""
    content = read_sealed(cache, "cache of fingerprints")
    return {arch: {name: tuple(shape) for name, shape in shapes.items()} for arch, shapes in content.items()}


def write_cache(cache: Path | None, fingerprints: dict[str, Fingerprint]) -> None:
    """Write the cache, where that is possible."""
    if cache is None:
        return
    with suppress(OSError, InputError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(cache, fingerprints, indent=None)
