"""What masks and boxes say of a file, run in ONNX Runtime on the test images that are held."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.fidelity.decisions import decide
from compressor.fidelity.structured.precision import Detections, MatchedDetections, can_be_measured
from compressor.fidelity.structured.segmentation import Confusion
from compressor.pipeline.context import Context
from compressor.pipeline.delivery.interface import file_batch, selection_of
from exporters.inference.detect import Detector
from exporters.session import iterate_outputs, open_session

TEST_BATCH = 16


def mean_iou_of(context: Context, partial: Path, path: Path) -> float | None:
    """Mean IoU of a file; None where the test images have no masks, or pixels no classes.

    Args:
        context: test images.
        partial: where the file lies.
        path: its name in messages.
    """
    images, output = context.test_images, context.class_map
    if output is None or images.masks is None:
        return None
    session, confusion = open_session(partial), Confusion()
    for some in _slices(context):
        parts = iterate_outputs(session, path, file_batch(context, images, some), TEST_BATCH, [output.name])
        scores = torch.from_numpy(np.concatenate([part[output.name] for part in parts]))
        confusion.add(decide(scores), images.masks[some], max(2, output.shape[0]))
    return confusion.mean_iou if confusion.has_classes else None


def average_precision_of(context: Context, partial: Path, path: Path) -> float | None:
    """Mean average precision of a one-stage detector's file, whose raw outputs are chosen from as `detect.py` does.

    None for other networks, and where the test images have no boxes or pycocotools is missing. Arguments as of
    `mean_iou_of`.
    """
    images, selection = context.test_images, selection_of(context, context.original)
    if selection is None or images.boxes is None or not any(map(len, images.boxes)) or not can_be_measured():
        return None
    found = list(_detect(context, Detector(*selection), open_session(partial), path))
    return MatchedDetections(images.boxes, found).average_precision


def _detect(context: Context, detector: Detector, session: ort.InferenceSession, path: Path) -> Iterator[Detections]:
    """Yields the detections in every test image."""
    names = [output.name for output in session.get_outputs()]
    for some in _slices(context):
        inputs = file_batch(context, context.test_images, some)
        for outputs in iterate_outputs(session, path, inputs, TEST_BATCH, names):
            for values in zip(*outputs.values(), strict=True):  # of one image
                chosen = detector.choose(dict(zip(names, values, strict=True)))
                yield dict(zip(("boxes", "scores", "labels"), map(_as_tensor, chosen), strict=True))


def _slices(context: Context) -> Iterator[slice]:
    """Yields the test images' places, as many as are run at once."""
    size = context.test_images.fitting(TEST_BATCH)
    yield from (slice(start, start + size) for start in range(0, len(context.test_images), size))


def _as_tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
