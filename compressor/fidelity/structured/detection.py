"""Detections of two networks: mean average precision where there are boxes, and which of the original's are kept.

The change of average precision has a bootstrap's interval: the same images are drawn for both networks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.fidelity.function_norm import BATCH_SIZE
from compressor.fidelity.records import ChangeRecord, DetectionRecord
from compressor.fidelity.structured.precision import (
    NEEDS,
    Detections,
    MatchedDetections,
    bootstrap_changes,
    can_be_measured,
)
from compressor.network.detection.raw import RawDetector
from compressor.schema import Pair
from compressor.streams import Stream, generator

CONFIDENT = 0.5  # score from which a detection of the original should be found again
SAME_BOX = 0.5  # IoU
BOOTSTRAP_SAMPLES = 400


@dataclass
class DetectionEvaluation:
    """Detections of the original and of a compressed network, added up image by image."""

    before: list[Detections] = field(default_factory=list)
    after: list[Detections] = field(default_factory=list)
    boxes: list[Tensor] = field(default_factory=list)

    def add(self, original: RawDetector, network: RawDetector, images: ImageSet, device: torch.device) -> None:
        """Add images; both networks are on the device."""
        for found, each in ((self.before, original), (self.after, network)):
            found += detect_all(each, images, device)
        self.boxes += [] if images.boxes is None else images.boxes

    def record(self, seed: int) -> DetectionRecord:
        """The record; without average precision where there are no boxes, or no pycocotools.

        Args:
            seed: of the bootstrap.
        """
        pairs = list(zip(self.before, self.after, strict=True))
        kept = [_found_again(before, after) for before, after in pairs]
        confident = sum(len(each) for each in kept)
        record = DetectionRecord(
            images=len(pairs),
            confident=confident,
            kept=sum(int(each.sum()) for each in kept) / confident if confident else None,
        )
        if len(self.boxes) != len(pairs) or not any(len(each) for each in self.boxes):
            return record
        if not can_be_measured():
            return record.model_copy(update={"note": NEEDS})
        return record.model_copy(update=self._precisions(seed))

    def _precisions(self, seed: int) -> dict[str, object]:
        """Average precisions by the record's fields, with the interval of the change."""
        before, after = (MatchedDetections(self.boxes, each) for each in (self.before, self.after))
        moved = bootstrap_changes(before, after, generator(seed, Stream.BOOTSTRAP), BOOTSTRAP_SAMPLES)
        low, high = np.quantile(moved, [0.025, 0.975])
        change = after.average_precision - before.average_precision
        return {
            "boxes": sum(len(each) for each in self.boxes),
            "average_precision": _pair(before.average_precision, after.average_precision),
            "average_precision_50": _pair(before.average_precision_50, after.average_precision_50),
            "change": ChangeRecord(change=change, low=min(float(low), change), high=max(float(high), change)),
        }


def detector_of(network: nn.Module) -> RawDetector | None:
    """The network as one of a detector's raw outputs; None where it is another."""
    return network if isinstance(network, RawDetector) else None


def detect_all(network: RawDetector, images: ImageSet, device: torch.device) -> Iterator[Detections]:
    """Yields boxes, scores and labels in each of the images, on the CPU; the network is on the device."""
    for indices in torch.arange(len(images)).split(images.fitting(BATCH_SIZE)):
        with torch.inference_mode():  # which must not hold while others work
            batch = network.detector(list(images.batch(indices).to(device)))
        yield from ({name: each[name].cpu() for name in ("boxes", "scores", "labels")} for each in batch)


def _found_again(before: Detections, after: Detections) -> Tensor:
    """Whether each confident detection (n,) of the original has one of its class at its place."""
    from torchvision.ops import box_iou

    sure = before["scores"] >= CONFIDENT
    overlap = box_iou(before["boxes"][sure], after["boxes"]) >= SAME_BOX
    same = before["labels"][sure][:, None] == after["labels"]
    return (overlap & same & (after["scores"] >= CONFIDENT / 2)).any(1)


def _pair(before: float, after: float) -> Pair[float]:
    return Pair[float](original=before, compressed=after)
