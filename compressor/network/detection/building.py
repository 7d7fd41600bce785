"""Empty detectors of torchvision, and how images are prepared for them."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from compressor.data.transforms import Transform
from compressor.network.architectures import SkipParameterData, import_torchvision
from compressor.network.detection.raw import RawDetector


def build_detector(arch: str, num_classes: int, **options: Any) -> tuple[nn.Module, Transform]:
    """The network of a detector's raw outputs, most parameters on the meta device, and its images' transform.

    Args:
        arch: torchvision's name.
        num_classes: with the background, where the network counts it.
        options: further arguments of torchvision's function, such as the number of keypoints.
    """
    models = import_torchvision().models
    # SSD runs its backbone to learn how many channels there are, which needs values.
    without_values = nullcontext() if arch.startswith("ssd") else SkipParameterData()
    with without_values, torch.random.fork_rng(devices=[]):
        detector = models.get_model(arch, weights=None, weights_backbone=None, num_classes=num_classes, **options)
    transform = transform_of(detector)
    return RawDetector(detector), transform


def transform_of(detector: Any) -> Transform:
    """Squares whose side is the short side that the detector's own transform makes."""
    own = detector.transform
    side = min(own.fixed_size) if own.fixed_size else max(own.min_size)
    return Transform(input_size=side, resize_size=side, mean=tuple(own.image_mean), std=tuple(own.image_std))
