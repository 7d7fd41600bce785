"""How a one-stage detector chooses boxes by its raw outputs: what the script that does so in numpy has to know."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.network.detection.raw import RawDetector

KINDS = {"RetinaNet": "retinanet", "FCOS": "fcos", "SSD": "ssd"}
THRESHOLDS = ("score_thresh", "nms_thresh", "detections_per_img", "topk_candidates")


def describe_selection(network: RawDetector, example: Tensor) -> tuple[dict[str, Any], NDArray[np.float32]] | None:
    """Thresholds and sizes, JSON values only, and the anchors' corners (A, 4) in pixels of the input.

    Args:
        network: whose detector chooses.
        example: one input (1, 3, H, W), on its device.

    Returns:
        None for detectors whose second stage works on the proposals of the first.
    """
    detector: Any = network.detector
    kind = next((KINDS[one.__name__] for one in type(detector).__mro__ if one.__name__ in KINDS), None)
    if network.has_proposals or kind is None:
        return None
    with torch.inference_mode():
        images, _ = detector.transform(list(example))
        features = list(network.backbone(images.tensors).values())
        anchors = detector.anchor_generator(images, features)[0].cpu()
    places = [int(each.shape[2] * each.shape[3]) for each in features]
    per_place = len(anchors) // sum(places) if kind != "ssd" else 0
    about: dict[str, Any] = {
        "kind": kind,
        "input_size": [int(side) for side in example.shape[2:]],
        "anchors_per_level": [count * per_place for count in places] if per_place else [len(anchors)],
        **{name: getattr(detector, name) for name in THRESHOLDS},
    }
    if kind != "fcos":
        about["box_weights"] = [float(weight) for weight in detector.box_coder.weights]
    return about, anchors.numpy().astype(np.float32)
