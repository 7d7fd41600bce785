"""Detections of two networks: mean average precision where there are boxes, and which of the original's are kept.

Average precision is pycocotools' (Lin et al. 2014), over IoU thresholds of 0.5 to 0.95. It needs no interval of its own
here: it is a figure for the report, and nothing is chosen by it.
"""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.fidelity.function_norm import BATCH_SIZE
from compressor.fidelity.records import DetectionRecord
from compressor.network.detection.raw import RawDetector
from compressor.schema import Pair

CONFIDENT = 0.5  # score from which a detection of the original should be found again
SAME_BOX = 0.5  # IoU
NEEDS = "mean average precision needs pycocotools: pip install 'bocompress[detection]'"

Detections = dict[str, Tensor]


@dataclass
class DetectionEvaluation:
    """Detections of the original and of a compressed network, added up image by image."""

    before: list[Detections] = field(default_factory=list)
    after: list[Detections] = field(default_factory=list)
    boxes: list[Tensor] = field(default_factory=list)

    def add(self, original: RawDetector, network: RawDetector, images: ImageSet, device: torch.device) -> None:
        """Add images; both networks are on the device."""
        for found, each in ((self.before, original), (self.after, network)):
            for indices in torch.arange(len(images)).split(images.fitting(BATCH_SIZE)):
                found += detect(each, images.batch(indices).to(device))
        self.boxes += [] if images.boxes is None else images.boxes

    def record(self) -> DetectionRecord:
        """The record; without average precision where there are no boxes, or no pycocotools."""
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
        try:
            found = [average_precision(self.boxes, each) for each in (self.before, self.after)]
        except ImportError:
            return record.model_copy(update={"note": NEEDS})
        whole, half = (Pair[float](original=one, compressed=two) for one, two in zip(*found, strict=True))
        count = sum(len(each) for each in self.boxes)
        return record.model_copy(update={"boxes": count, "average_precision": whole, "average_precision_50": half})


def detector_of(network: nn.Module) -> RawDetector | None:
    """The network as one of a detector's raw outputs; None where it is another."""
    return network if isinstance(network, RawDetector) else None


def detect(network: RawDetector, inputs: Tensor) -> list[Detections]:
    """Boxes, scores and labels of images (N, 3, H, W), on the CPU."""
    with torch.inference_mode():
        found = network.detector(list(inputs))
    return [{name: each[name].cpu() for name in ("boxes", "scores", "labels")} for each in found]


def _found_again(before: Detections, after: Detections) -> Tensor:
    """Whether each confident detection (n,) of the original has one of its class at its place."""
    from torchvision.ops import box_iou

    sure = before["scores"] >= CONFIDENT
    overlap = box_iou(before["boxes"][sure], after["boxes"]) >= SAME_BOX
    same = before["labels"][sure][:, None] == after["labels"]
    return (overlap & same & (after["scores"] >= CONFIDENT / 2)).any(1)


def average_precision(boxes: Sequence[Tensor], found: Sequence[Detections]) -> tuple[float, float]:
    """COCO's mean average precision, over IoU thresholds of 0.5 to 0.95, and at 0.5.

    Args:
        boxes: of each image rows as of `ImageSet.boxes`.
        found: detections in the same images.

    Raises:
        ImportError: pycocotools is missing.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rows = [[image, *box] for image, each in enumerate(boxes) for box in each.tolist()]
    truth, guesses = COCO(), [_rows(image, each) for image, each in enumerate(found)]
    labels = sorted({int(row[5]) for row in rows})
    truth.dataset = {
        "images": [{"id": image} for image in range(len(boxes))],
        "categories": [{"id": label} for label in labels],
        "annotations": [_annotation(number, *row) for number, row in enumerate(rows, 1)],
    }
    if not sum(map(len, guesses)):
        return 0.0, 0.0
    with redirect_stdout(io.StringIO()):  # it prints what it does
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(np.concatenate(guesses)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return max(0.0, float(evaluation.stats[0])), max(0.0, float(evaluation.stats[1]))


def _annotation(  # noqa: PLR0913
    number: int, image: int, left: float, top: float, right: float, bottom: float, label: float, ignored: float
) -> dict[str, object]:
    """A box as COCO has it; the arguments are a row of numbers."""
    width, height = right - left, bottom - top
    return {
        "id": number,
        "image_id": image,
        "bbox": [left, top, width, height],
        "area": width * height,
        "category_id": int(label),
        "iscrowd": int(ignored),
    }


def _rows(image: int, found: Detections) -> np.ndarray:
    """Detections as pycocotools takes them: image, x, y, width, height, score, label."""
    boxes = found["boxes"].double().numpy()
    columns = [np.full(len(boxes), image), *boxes[:, :2].T, *(boxes[:, 2:] - boxes[:, :2]).T]
    return np.stack([*columns, found["scores"].double().numpy(), found["labels"].double().numpy()], axis=1)
