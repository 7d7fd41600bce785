"""Average precision by COCO's rules, and which of the original's detections are found again."""

import sys

import pytest
import torch
from torch import Tensor

from compressor.data.images import ImageSet
from compressor.fidelity.structured.detection import DetectionEvaluation, average_precision
from compressor.network.detection.raw import RawDetector
from tests.network.detection.networks import make_detector

pytest.importorskip("pycocotools")

BOXES = torch.tensor([[10.0, 10, 30, 30, 1, 0], [40, 40, 60, 60, 2, 0]])


def detections(boxes: Tensor, scores: list[float], labels: list[int]) -> dict[str, Tensor]:
    return {"boxes": boxes, "scores": torch.tensor(scores), "labels": torch.tensor(labels)}


def test_precision_of_what_is_right_half_right_and_wrong() -> None:
    right = detections(BOXES[:, :4], [0.9, 0.8], [1, 2])
    moved = detections(BOXES[:, :4] + torch.tensor([0.0, 0, 0, 5]), [0.9, 0.8], [1, 2])  # IoU 0.8
    swapped = detections(BOXES[:, :4], [0.9, 0.8], [2, 1])
    assert average_precision([BOXES], [right]) == pytest.approx((1, 1))
    assert average_precision([BOXES], [moved]) == pytest.approx((0.7, 1), abs=0.01)
    assert average_precision([BOXES], [swapped]) == pytest.approx((0, 0))
    assert average_precision([BOXES], [detections(BOXES[:0, :4], [], [])]) == (0, 0)


def test_what_is_cut_off_counts_neither_way() -> None:
    ignored = BOXES.clone()
    ignored[1, 5] = 1
    only = detections(BOXES[:1, :4], [0.9], [1])
    both = detections(BOXES[:, :4], [0.9, 0.8], [1, 2])
    assert average_precision([ignored], [only]) == average_precision([ignored], [both]) == pytest.approx((1, 1))


def evaluate(seed: int, boxes: tuple[Tensor, ...] | None = None) -> DetectionEvaluation:
    images = ImageSet(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)), "random", boxes=boxes)
    networks = (RawDetector(make_detector("retinanet", each)).eval() for each in (0, seed))
    found = DetectionEvaluation()
    found.add(*networks, images, torch.device("cpu"))
    return found


def test_a_detector_against_itself_and_another() -> None:
    same, other = evaluate(0).record(), evaluate(1).record()
    assert (same.images, same.kept) == (4, 1)
    assert same.confident > 10
    assert other.kept is not None
    assert other.kept < 0.9
    assert same.average_precision is None


def test_with_boxes_there_is_average_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluate(0)
    sure = [each["scores"] > 0.6 for each in found.before]
    found.boxes = [
        torch.cat([each["boxes"], each["labels"][:, None], torch.zeros(len(each["labels"]), 1)], dim=1)[keep]
        for each, keep in zip(found.before, sure, strict=True)
    ]
    record = found.record()
    assert record.average_precision is not None
    assert record.average_precision.original == record.average_precision.compressed > 0.3
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    assert "needs pycocotools" in found.record().note
