"""A detector as a network from images to what its heads compute, before boxes are chosen and suppressed.

What detections are chosen depends on the image, and a small change of a score may add or remove one. The heads' own
outputs, class scores and box coordinates for every anchor, are tensors of fixed shapes that move smoothly with the
weights, and the function norm needs no labels.

The second stage of Faster, Mask and Keypoint R-CNN works on proposals that the first has chosen. Here it works on boxes
that do not depend on the first: on the original's proposals where these are given (see
`compressor.network.detection.proposals`), else, as in files, on boxes that are spread over every image, as many as it
would be given.
"""

from collections.abc import Callable, Mapping, Sequence
from math import log2
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

MIN_SIDE = 16  # pixels of the smallest of the boxes spread over an image
PRIMES = (2, 3, 5, 7)

Array = NDArray[np.float32]


class RawDetector(nn.Module):
    """The heads' outputs of a detector for images (N, 3, H, W), by name.

    One-stage detectors give `cls_logits` (N, anchors, classes) and `bbox_regression` (N, anchors, 4), FCOS
    `bbox_ctrness` (N, anchors, 1), too. The others give the first stage's `objectness` and `deltas` of each level, maps
    of anchors, and on boxes `class_logits` (N, boxes, classes), `box_regression` (N, boxes,
    4 classes) and, as the detector has them, `mask_logits` and `keypoint_logits`.

    Args:
        detector: any of torchvision's; it shares its parts with this network, so that replacing layers in either
            replaces them in both, and its own transform goes: images come prepared.

    Attributes:
        detector: from a list of images (3, H, W) to detections, with the layers of this network.
        proposals: gives boxes (N, n, 4) for images (N, 3, H, W); None for boxes spread over the images.
    """

    detector: nn.Module
    proposals: Callable[[Tensor], Tensor] | None = None

    def __init__(self, detector: Any) -> None:
        super().__init__()
        detector.transform = Unchanged()
        self.__dict__["detector"] = detector  # no part of this network, whose tensors would be there twice
        self.backbone = detector.backbone
        self.has_proposals = hasattr(detector, "roi_heads")
        if self.has_proposals:
            self.rpn, self.roi_heads = detector.rpn, detector.roi_heads
        else:
            self.head = detector.head

    def train(self, mode: bool = True) -> "RawDetector":
        """As of `nn.Module`; the detector's own flag goes with it."""
        self.detector.training = mode
        return super().train(mode)

    def forward(self, images: Tensor) -> dict[str, Any]:
        """See the class."""
        features = self.backbone(images)
        if not self.has_proposals:
            found: dict[str, Any] = self.head(list(features.values()))
            return found
        objectness, deltas = self.rpn.head(list(features.values()))
        return {"objectness": objectness, "deltas": deltas, **self._second_stage(features, images)}

    def _second_stage(self, features: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        heads = self.roi_heads
        size = int(images.shape[2]), int(images.shape[3])
        boxes: Array | Tensor = spread_boxes(self.rpn._post_nms_top_n["testing"], *size)
        boxes = boxes if self.proposals is None else self.proposals(images)
        logits, regression = heads.box_predictor(heads.box_head(pool(heads.box_roi_pool, features, boxes, size)))
        found = {"class_logits": logits, "box_regression": regression}
        counts = dict.fromkeys(found, boxes.shape[-2])
        boxes = boxes[..., : heads.detections_per_img, :]
        for name in ("mask", "keypoint"):
            if getattr(heads, f"{name}_predictor", None) is not None:
                pooled = pool(getattr(heads, f"{name}_roi_pool"), features, boxes, size)
                counts[f"{name}_logits"] = boxes.shape[-2]
                found[f"{name}_logits"] = getattr(heads, f"{name}_predictor")(getattr(heads, f"{name}_head")(pooled))
        return {name: values.reshape(-1, counts[name], *values.shape[1:]) for name, values in found.items()}


def is_detector(module: nn.Module) -> bool:
    """Whether a module is of torchvision's detectors, or of a class made from one of them."""
    parts = dict(module.named_children())
    known = any(kind.__module__.startswith("torchvision.models.detection.") for kind in type(module).__mro__)
    return known and {"transform", "backbone"} <= parts.keys() and bool({"head", "roi_heads"} & parts.keys())


class Unchanged(nn.Module):
    """In place of a detector's transform: images are as large as they should be, and normalized."""

    def forward(self, images: Sequence[Tensor], targets: Any = None) -> tuple[Any, Any]:
        """All images as one batch, and the targets as they are."""
        from torchvision.models.detection.image_list import ImageList

        return ImageList(torch.stack(list(images)), [tuple(image.shape[-2:]) for image in images]), targets

    def postprocess(self, result: Any, _shapes: Any, _original: Any) -> Any:
        """Detections, in pixels of the images as they are given."""
        return result


def spread_boxes(count: int, height: int, width: int) -> Array:
    """Boxes (count, 4) of all sizes and places in an image, evenly: corners x, y, x, y in pixels.

    A Halton sequence (1960) in place, size and shape; always the same.
    """
    middle_x, middle_y, size, shape = (halton(count, prime) for prime in PRIMES)
    side = MIN_SIDE * (max(MIN_SIDE, min(height, width)) / MIN_SIDE) ** size
    stretch = 2.0 ** (shape - 0.5)
    half = np.stack([side * stretch, side / stretch], axis=1) / 2
    middle = np.stack([middle_x * width, middle_y * height], axis=1)
    corners = np.concatenate([middle - half, middle + half], axis=1).clip(0, [width, height, width, height])
    return corners.astype(np.float32)


def halton(count: int, base: int) -> NDArray[np.float64]:
    """Numbers 1 to `count` in the base's digits, mirrored at the point: (count,) within 0 and 1."""
    values, left, digit = np.zeros(count), np.arange(1, count + 1), 1.0
    while left.any():
        digit /= base
        values += digit * (left % base)
        left = left // base
    return values


def pool(pooling: Any, features: Mapping[str, Tensor], boxes: Array | Tensor, size: tuple[int, int]) -> Tensor:
    """Features (N boxes, C, size, size) of boxes in every image, as torchvision's `MultiScaleRoIAlign`.

    The level of boxes that are the same in every image is known, so that nothing here depends on the images.

    Args:
        pooling: torchvision's, whose settings are taken.
        features: of the levels, by name.
        boxes: (n, 4), in pixels; or those of each image as a tensor (N, n, 4).
        size: height and width of the images.
    """
    from torchvision.ops import roi_align

    if isinstance(boxes, Tensor):
        pooled: Tensor = pooling(features, list(boxes), [size] * len(boxes))
        return pooled
    used = [features[name] for name in pooling.featmap_names if name in features]
    scales = [2.0 ** round(log2(float(values.shape[2]) / size[0])) for values in used]
    levels = _levels(boxes, pooling, scales)
    parts = []
    for level, (values, scale) in enumerate(zip(used, scales, strict=True)):
        chosen = torch.from_numpy(boxes[levels == level]).to(values)
        if len(chosen):
            rois = _in_every_image(chosen, values)
            pooled = roi_align(values, rois, pooling.output_size, scale, pooling.sampling_ratio)
            parts.append(pooled.reshape(-1, len(chosen), *pooled.shape[1:]))
    back = torch.from_numpy(np.argsort(np.argsort(levels, kind="stable"), kind="stable"))
    return torch.cat(parts, dim=1)[:, back.to(used[0].device)].flatten(0, 1)


def _levels(boxes: Array, pooling: Any, scales: Sequence[float]) -> NDArray[np.int64]:
    """The level of each box by its size, as in Lin et al. (2017), Eq. (1)."""
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    first, last = -log2(scales[0]), -log2(scales[-1])
    levels = np.floor(pooling.canonical_level + np.log2(sides / pooling.canonical_scale) + 1e-6)
    found: NDArray[np.int64] = (levels.clip(first, last) - first).astype(np.int64)
    return found


def _in_every_image(boxes: Tensor, features: Tensor) -> Tensor:
    """The boxes (n, 4) in each of N images of features (N, ...): (N n, 5), first the number of the image."""
    count = features.shape[0]  # which exporters see, as they would not see `len`
    numbers = torch.arange(count, device=boxes.device).to(boxes)[:, None, None].expand(count, len(boxes), 1)
    return torch.cat([numbers, boxes[None].expand(count, len(boxes), 4)], dim=2).flatten(0, 1)
