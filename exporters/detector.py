"""A whole detector of two stages as one file: an image in, boxes, classes and scores out.

Proposals are chosen in the graph, so that its outputs jump where a score passes another. Detections are therefore
compared one by one, and a few may differ by rounding.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.errors import BocompressError, VerificationError
from compressor.network.detection.raw import RawDetector
from compressor.text import first_line
from exporters.feeding import Normalization
from exporters.onnx import finish
from exporters.opsets import Interface, silence, translate_older
from exporters.session import open_session

DEFAULT_OPSET = 17  # which the exporter is tested with
MIN_SAME = 0.99  # of the detections
SAME_SCORE, SAME_BOX = 1e-3, 0.95  # a score's difference and an IoU of two detections that are the same
SAME_INSIDE = {"masks": 0.01, "keypoints": 0.5}  # medians of differences: of probabilities, and in pixels

Array = NDArray[Any]
Found = dict[str, Array]


def export_detector(
    network: RawDetector,
    image: Tensor,
    path: Path,
    metadata: Mapping[str, str],
    opset: int | None = None,
    normalization: Normalization | None = None,
) -> None:
    """Write the network's detector as an ONNX file for one image of this size.

    Outputs have torchvision's names: `boxes` (n, 4) in pixels of the input, `labels` (n,), `scores` (n,), best first,
    and `masks` (n, 1, 28, 28) of the boxes' insides or `keypoints` (n, points, 3) with `keypoints_scores`.

    Args:
        network: with two stages, in eval mode, on the CPU.
        image: one input (1, 3, H, W).
        path: the file to write.
        metadata: as of `exporters.onnx.export_onnx`, and likewise the rest.
        opset: the ONNX operator set; None for DEFAULT_OPSET.
        normalization: becomes the graph's first step.

    Raises:
        BocompressError: torch could not translate it.
    """
    detector: Any = copy.deepcopy(network).detector
    forward = detector.forward
    names = tuple(_run_torch(network, image))
    detector.forward = lambda images: tuple(forward([images[0]])[0].values())
    try:
        with silence(), torch.no_grad():
            proto = translate_older(detector, image, opset or DEFAULT_OPSET, Interface(names, fixed=True))
    except Exception as error:
        raise BocompressError(f"torch cannot export the whole detector to ONNX: {first_line(error)}") from error
    finish(proto, path, metadata, normalization)


def verify_detector(path: Path, network: nn.Module, images: Tensor, inputs: Tensor) -> tuple[int, float]:
    """Compare detections of a file in ONNX Runtime with torch's.

    Args:
        path: the ONNX file.
        network: a `RawDetector`, in eval mode, on the CPU.
        images: as the network takes them (n, 3, H, W).
        inputs: the same as the file takes them.

    Returns:
        How many detections were compared, and the largest difference of a score.

    Raises:
        VerificationError: the file does not run, or less than MIN_SAME of the detections are the same.
    """
    assert isinstance(network, RawDetector)
    session = open_session(path)
    same = compared = 0
    error = 0.0
    for image, each in zip(images.split(1), inputs.split(1), strict=True):
        expected, found = _run_torch(network, image), _run_file(session, path, each)
        differences = list(_differences(expected, found))
        same += len(differences)
        compared += max(len(expected["scores"]), len(found["scores"]))
        error = max([error, *differences])
    if same < MIN_SAME * compared:
        raise VerificationError(
            f"{path} has {same} of {compared} detections of the torch network in {len(images)} images"
        )
    return compared, error


def _run_torch(network: RawDetector, image: Tensor) -> Found:
    with torch.inference_mode():
        found = network.detector(list(image))[0]
    return {name: values.numpy() for name, values in found.items()}


def _run_file(session: ort.InferenceSession, path: Path, inputs: Tensor) -> Found:
    names = [output.name for output in session.get_outputs()]
    try:
        found: Sequence[Array] = session.run(names, {session.get_inputs()[0].name: inputs.numpy()})
    except Exception as error:
        raise VerificationError(f"{path} does not run: {first_line(error)}") from error
    return dict(zip(names, found, strict=True))


def _differences(expected: Found, found: Found) -> Iterator[float]:
    """Yields how far the score of each expected detection is from that of the one found that is the same."""
    from torchvision.ops import box_iou

    if not len(found["scores"]):
        return
    free = np.ones(len(found["scores"]), bool)
    overlaps = box_iou(*(torch.from_numpy(each["boxes"]) for each in (expected, found))).numpy()
    for number, (label, score) in enumerate(zip(expected["labels"], expected["scores"], strict=True)):
        apart = np.abs(found["scores"] - score)
        alike = free & (found["labels"] == label) & (apart <= SAME_SCORE) & (overlaps[number] >= SAME_BOX)
        for name in SAME_INSIDE.keys() & expected.keys():
            moved = np.abs(found[name] - expected[name][number])
            alike &= np.median(moved, axis=tuple(range(1, moved.ndim))) <= SAME_INSIDE[name]
        if alike.any():
            best = int(np.where(alike, apart, np.inf).argmin())
            free[best] = False
            yield float(apart[best])
