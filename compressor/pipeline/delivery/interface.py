"""What the files of a run take and say: their batch size, normalization, operator set and metadata."""

import gc
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.network.detection.proposals import without_proposals
from compressor.network.detection.raw import RawDetector
from compressor.network.detection.selection import describe_selection
from compressor.outputs.rows import gives_scores, whole
from compressor.pipeline.context import Context
from compressor.pipeline.plan import Plan
from compressor.process.memory import release_memory
from compressor.version import VERSION
from exporters.feeding import Normalization, feeding_metadata
from exporters.onnx import export_onnx
from exporters.records import ExportCheckRecord
from exporters.verify import DEFAULT_BATCH_SIZES, VERIFY_IMAGES, verify_onnx


def write_file(context: Context, network: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the network as an ONNX file with the run's operator set, batch size and normalization, unchecked.

    Args:
        context: images and settings.
        network: in eval mode, on the CPU.
        path: the ONNX file.
        metadata: texts that the file carries, by key.

    Raises:
        InputError, BocompressError: as `export_onnx`.
    """
    images, settings = context.search_images, context.settings
    normalization = Normalization(images.mean, images.std) if in_graph(context) else None
    example = replace(images, channels_last=False).batch(slice(0, 2))
    export_onnx(network, example, path, metadata, settings.opset, settings.static_batch, normalization)
    gc.collect()  # graphs of an export refer to themselves
    release_memory()


def check_file(context: Context, network: nn.Module, path: Path) -> ExportCheckRecord:
    """The export check of the run's file against its network, on test images as the file takes them.

    Args:
        context: test images and settings.
        network: that the file was written from.
        path: the ONNX file.

    Raises:
        VerificationError: it does not compute what the network computes.
    """
    images, batch = context.test_images, context.settings.static_batch
    network = without_proposals(whole(network))
    normalized = nn.Sequential(Normalize(images), network) if in_graph(context) else network
    inputs = file_batch(context, images, slice(0, VERIFY_IMAGES))
    return verify_onnx(path, normalized.eval(), inputs, (batch,) if batch else DEFAULT_BATCH_SIZES)


class Normalize(nn.Module):
    """Pixels in [0, 1] of images or clips (N, C, ...), normalized as a set's are."""

    def __init__(self, images: ImageSet) -> None:
        super().__init__()
        sides = [1] * (len(images.input_shape) - 1)
        self.mean, self.std = (torch.tensor(values).view(-1, *sides) for values in (images.mean, images.std))

    def forward(self, pixels: Tensor) -> Tensor:
        """As torchvision does."""
        return (pixels - self.mean) / self.std


def file_batch(context: Context, images: ImageSet, indices: slice) -> Tensor:
    """Images as the run's files take them: pixels in [0, 1] where these normalize, else normalized.

    Args:
        context: whether the run's files normalize.
        images: any of the run.
        indices: which of them.

    Returns:
        The inputs (n, ...), float32.
    """
    images = replace(images, channels_last=False)
    if in_graph(context):
        channels = len(images.mean)
        images = replace(images, mean=(0.0,) * channels, std=(1.0,) * channels)
    return images.batch(indices)


def in_graph(context: Context) -> bool:
    """Whether the run's files normalize."""
    return context.settings.normalize == "in-graph"


def require_pixels(images: ImageSet) -> None:
    """Check that files can normalize: that images are pixels.

    Raises:
        InputError: they were given ready for the network, whose mean and standard deviation are then not known.
    """
    if not images.mean:
        raise InputError(
            "--normalize in-graph needs images as pixels, with a mean and a standard deviation: load them with "
            "compressor.data.folders.load_folder, or leave it out"
        )


def provenance(context: Context, plan: Plan | None = None) -> dict[str, str]:
    """What files carry: how to feed them, and where they came from; those of the compressed network its plan, too."""
    feeding = feeding_metadata(context.source.transform, _class_names(context), in_graph(context))
    source = {"version": VERSION, "architecture": context.source.arch, **feeding}
    if (selection := selection_of(context, context.original)) is not None:
        source["detector"] = json.dumps(selection[0])
    if plan is None:
        return source
    ranks = {layer.name: layer.rank for layer in plan.layers if layer.rank is not None}
    return source | {
        "gamma": repr(plan.gamma),
        "ranks": json.dumps(ranks),
        "prune_fraction": repr(plan.prune_fraction),
    }


def selection_of(context: Context, network: nn.Module) -> tuple[dict[str, Any], NDArray[np.float32]] | None:
    """What is known of how a one-stage detector chooses boxes, see `describe_selection`; None for other networks."""
    if not isinstance(network, RawDetector):
        return None
    device = next(network.parameters()).device
    return describe_selection(network, context.example.to(device))


def _class_names(context: Context) -> list[str] | None:
    """The checkpoint's names of the classes, else those of boxes, or of folders as many as outputs tell apart."""
    if context.source.class_names is not None:
        return list(context.source.class_names)
    names = context.test_images.class_names
    if names is not None and context.test_images.boxes is not None:
        return list(names)
    if names is None or not gives_scores(context.original):
        return None
    return list(names) if len(names) == max(context.num_outputs, 2) else None
