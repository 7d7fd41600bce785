"""Which of the original's detections are found again, what is made of boxes, and boxes that fit the detections."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from compressor.data.images import ImageSet
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.structured import detection, truth
from compressor.fidelity.structured.detection import DetectionEvaluation, detect_all
from compressor.fidelity.structured.drop import AveragePrecisionDrop
from compressor.fidelity.structured.outputs import give_rows
from compressor.fidelity.structured.truth import check_boxes, tells_accuracy
from compressor.network.detection.raw import RawDetector
from compressor.outputs.structure import find_outputs
from tests.network.detection.networks import make_detector

pytest.importorskip("pycocotools")

IMAGES = ImageSet(torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)), "random")
CPU = torch.device("cpu")


def detector(seed: int) -> RawDetector:
    return RawDetector(make_detector("retinanet", seed)).eval()


def evaluate(seed: int, images: ImageSet = IMAGES) -> DetectionEvaluation:
    found = DetectionEvaluation()
    found.add(detector(0), detector(seed), images, CPU)
    return found


@pytest.fixture(scope="module")
def boxes() -> tuple[Tensor, ...]:
    """What a detector is surest of."""
    rows = []
    for each in detect_all(detector(0), IMAGES, CPU):
        sure = each["scores"] > 0.6
        columns = [each["boxes"], each["labels"][:, None], torch.zeros(len(sure), 1)]
        rows.append(torch.cat(columns, dim=1)[sure])
    return tuple(rows)


def test_a_detector_against_itself_and_another() -> None:
    same, other = evaluate(0).record(0), evaluate(1).record(0)
    assert (same.images, same.kept) == (6, 1)
    assert same.confident > 10
    assert other.kept is not None
    assert other.kept < 0.9
    assert same.average_precision is None


def test_with_boxes_there_is_average_precision(boxes: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluate(1, replace(IMAGES, boxes=boxes))
    record = found.record(0)
    assert record.average_precision is not None
    assert record.change is not None
    assert record.average_precision.original > 0.3 > record.average_precision.compressed
    assert record.change.low < record.change.change < record.change.high < 0
    monkeypatch.setattr(detection, "can_be_measured", lambda: False)
    assert "needs pycocotools" in found.record(0).note


def test_boxes_of_other_images_or_classes_are_not_used(boxes: tuple[Tensor, ...]) -> None:
    network, fitting = detector(0), replace(IMAGES, boxes=boxes)
    assert check_boxes(network, fitting, CPU) is fitting
    shifted = replace(IMAGES, boxes=(*boxes[1:], boxes[0]))
    assert check_boxes(network, shifted, CPU).boxes is None
    none = check_boxes(network, replace(IMAGES, boxes=tuple(each[:0] for each in boxes)), CPU)
    assert none.notes[-1] == "boxes are not used: there are none in these images"


def test_boxes_tell_an_accuracy_with_pycocotools(boxes: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert tells_accuracy(replace(IMAGES, boxes=boxes))
    assert not tells_accuracy(IMAGES)
    monkeypatch.setattr(truth, "can_be_measured", lambda: False)
    assert not tells_accuracy(replace(IMAGES, boxes=boxes))


def test_the_drop_is_in_points_of_average_precision(boxes: tuple[Tensor, ...]) -> None:
    images, network = replace(IMAGES, boxes=boxes), detector(0)
    give_rows(network, find_outputs(network, IMAGES.batch([0])), IMAGES, CPU, {}, 0)
    other = copy.deepcopy(network)
    other.load_state_dict(detector(1).state_dict())
    estimator = AveragePrecisionDrop([FunctionNorm(network, part, CPU) for part in images.split(3, 0)], network, CPU)
    none, all_lost = estimator.measure(network), estimator.measure(other)
    assert none.drop == pytest.approx(0)
    assert 30 < all_lost.drop <= 100
    assert estimator.exponent == 1
    assert estimator.informative([none, all_lost]) == [none]
    assert estimator.informative([all_lost]) == [all_lost]
