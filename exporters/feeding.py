"""What an ONNX file says of how to feed it, as metadata properties; docs/inputs.md lists the keys.

`exporters/inference/infer.py`, which is written beside every model, reads nothing else.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor.data.resizing import FILTERS
from compressor.data.transforms import Transform
from compressor.text import well_formed

LAYOUT, CLIP_LAYOUT = "NCHW", "NCTHW"
ADJACENT = "adjacent"  # frames; else they are spread over a clip
COLORS = {1: "gray", 3: "RGB", 4: "RGBA"}
UNREADABLE = (KeyError, TypeError, ValueError, OverflowError, RecursionError)  # what strange metadata raise
MAX_SIDE = 8192  # pixels, or frames

IN_GRAPH, OUTSIDE = "in-graph", "outside"
SCRIPT = Path(__file__).parent / "inference" / "infer.py"
DETECTION_SCRIPT = Path(__file__).parent / "inference" / "detect.py"
TIMING_SCRIPT = Path(__file__).parent / "inference" / "measure.py"


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of pixels in [0, 1], per channel or a number for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def feeding_metadata(
    transform: Transform | None, class_names: Sequence[str] | None, in_graph: bool = False
) -> dict[str, str]:
    """The properties; without a transform (inputs prepared by the caller) only the layout and the class names.

    Args:
        transform: how an image becomes an input.
        class_names: of the outputs, in order.
        in_graph: whether the file's first step is the normalization.
    """
    found = {"input_layout": LAYOUT}
    if class_names is not None:
        found["class_names"] = json.dumps([*map(well_formed, class_names)], ensure_ascii=False)
    if transform is None:
        return found
    clip = {"input_layout": CLIP_LAYOUT, "input_frames": str(transform.frames)} if transform.frames else {}
    clip |= {"frame_choice": ADJACENT} if transform.adjacent else {}
    return (
        found
        | clip
        | {
            "input_height": str(transform.height),
            "input_width": str(transform.width),
            "resize_size": str(transform.resize_size),
            "crop": "center",
            "interpolation": transform.interpolation,
            "color_order": COLORS.get(transform.channels, f"{transform.channels} channels"),
            "value_range": "[0, 1]",
            "mean": json.dumps(transform.mean),
            "std": json.dumps(transform.std),
            "normalization": IN_GRAPH if in_graph else OUTSIDE,
        }
    )


def transform_of(metadata: Mapping[str, str]) -> Transform | None:
    """The transform that a file's metadata describe; None where they do not, or not so that it can be read."""
    try:
        mean, std = _numbers(metadata["mean"]), _numbers(metadata["std"])
        height, width, resized = (int(metadata[key]) for key in ("input_height", "input_width", "resize_size"))
        frames, interpolation = int(metadata.get("input_frames", 1)), metadata["interpolation"]
    except UNREADABLE:
        return None
    sides = height, width, resized, frames
    if interpolation not in FILTERS or min(sides) < 1 or max(sides) > MAX_SIDE or not mean or min(std, default=0) <= 0:
        return None
    return Transform(
        input_size=height,
        resize_size=resized,
        interpolation=interpolation,
        input_width=None if width == height else width,
        mean=mean,
        std=std,
        frames=frames if "input_frames" in metadata else None,
        adjacent="input_frames" in metadata and metadata.get("frame_choice") == ADJACENT,
    )


def normalization_of(metadata: Mapping[str, str]) -> Normalization | None:
    """The normalization that a file's metadata ask for.

    It follows from `mean`, `std` and `value_range`; a file that normalizes by itself takes pixels in its range.

    Returns:
        None where the metadata do not say it, or not so that it can be read.
    """
    try:
        low, high = _numbers(metadata.get("value_range", "[0, 1]"))
        in_graph = metadata.get("normalization") == IN_GRAPH
        mean, std = ((0.0,), (1.0,)) if in_graph else (_numbers(metadata["mean"]), _numbers(metadata["std"]))
    except UNREADABLE:
        return None
    if high <= low or len(mean) != len(std) or min(std, default=0.0) <= 0:
        return None
    span = high - low
    return Normalization(tuple((value - low) / span for value in mean), tuple(value / span for value in std))


def _numbers(text: str) -> tuple[float, ...]:
    """A list of finite numbers; raises one of UNREADABLE for all else."""
    numbers = tuple(map(float, json.loads(text)))
    if not all(map(math.isfinite, numbers)):
        raise ValueError(text)
    return numbers


def class_names_of(metadata: Mapping[str, str]) -> list[str] | None:
    """The class names in a file's metadata, None where there are none."""
    try:
        names = json.loads(metadata["class_names"])
    except UNREADABLE:
        return None
    return [str(name) for name in names] if isinstance(names, list) else None
