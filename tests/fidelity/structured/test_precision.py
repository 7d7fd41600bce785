"""Average precision is pycocotools', and stays so where images count several times or not at all."""

import io
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor.fidelity.structured.precision import (
    Detections,
    MatchedDetections,
    _evaluate,
    bootstrap_changes,
    changes,
)

pytest.importorskip("pycocotools")

BOXES = torch.tensor([[10.0, 10, 30, 30, 1, 0], [40, 40, 60, 60, 2, 0]])
NUM_IMAGES = 40


def detections(boxes: Tensor, scores: list[float], labels: list[int]) -> Detections:
    return {"boxes": boxes, "scores": torch.tensor(scores), "labels": torch.tensor(labels)}


def precision(boxes: Tensor, found: Detections) -> tuple[float, float]:
    matched = MatchedDetections([boxes], [found])
    return matched.average_precision, matched.average_precision_50


def test_precision_of_what_is_right_half_right_and_wrong() -> None:
    right = detections(BOXES[:, :4], [0.9, 0.8], [1, 2])
    moved = detections(BOXES[:, :4] + torch.tensor([0.0, 0, 0, 5]), [0.9, 0.8], [1, 2])  # IoU 0.8
    swapped = detections(BOXES[:, :4], [0.9, 0.8], [2, 1])
    assert precision(BOXES, right) == pytest.approx((1, 1))
    assert precision(BOXES, moved) == pytest.approx((0.7, 1), abs=0.01)
    assert precision(BOXES, swapped) == pytest.approx((0, 0))
    assert precision(BOXES, detections(BOXES[:0, :4], [], [])) == (0, 0)


def test_what_is_cut_off_counts_neither_way() -> None:
    ignored = BOXES.clone()
    ignored[1, 5] = 1
    only = detections(BOXES[:1, :4], [0.9], [1])
    both = detections(BOXES[:, :4], [0.9, 0.8], [1, 2])
    assert precision(ignored, only) == precision(ignored, both) == pytest.approx((1, 1))


def make_images(blur: float, seed: int = 0) -> tuple[list[Tensor], list[Detections]]:
    """Boxes of three classes in NUM_IMAGES images, some of them ignored, and detections that miss them by `blur`."""
    rng = torch.Generator().manual_seed(seed)
    every, found = [], []
    for image in range(NUM_IMAGES):
        count = int(torch.randint(0 if image else 1, 5, (1,), generator=rng))
        corner = 60 * torch.rand(count, 2, generator=rng)
        sides = 10 + 30 * torch.rand(count, 2, generator=rng)
        labels = torch.randint(1, 4, (count, 1), generator=rng).float()
        boxes = torch.cat([corner, corner + sides], dim=1)
        every.append(torch.cat([boxes, labels, (torch.rand(count, 1, generator=rng) < 0.1).float()], dim=1))
        moved = boxes.repeat(2, 1) + blur * torch.randn(2 * count, 4, generator=rng)
        wrong = torch.rand(2 * count, generator=rng) < 0.2
        guessed = torch.where(wrong, torch.ones(2 * count), labels[:, 0].repeat(2)).long()
        found.append({"boxes": moved, "scores": torch.rand(2 * count, generator=rng), "labels": guessed})
    return every, found


def reference(boxes: list[Tensor], found: list[Detections]) -> tuple[float, float]:
    evaluation = _evaluate(boxes, found)
    with redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    precisions = evaluation.eval["precision"][:, :, :, 0, -1]
    return tuple(float(each[each > -1].mean()) for each in (precisions, precisions[0]))  # type: ignore[return-value]


@pytest.mark.parametrize("blur", [0.5, 3.0])
def test_it_is_pycocotools(blur: float) -> None:
    boxes, found = make_images(blur)
    matched = MatchedDetections(boxes, found)
    assert (matched.average_precision, matched.average_precision_50) == pytest.approx(reference(boxes, found))
    assert 0.1 < matched.average_precision < 0.9


def test_weights_stand_for_images_that_are_there_so_often() -> None:
    boxes, found = make_images(2.0)
    weights = np.random.default_rng(0).integers(0, 3, NUM_IMAGES)
    drawn = np.repeat(np.arange(NUM_IMAGES), weights)
    expected, _ = reference([boxes[each] for each in drawn], [found[each] for each in drawn])
    assert MatchedDetections(boxes, found).with_weights(weights.astype(float)) == pytest.approx(expected)


def test_the_error_of_a_change_is_that_of_samples_of_images() -> None:
    boxes, found = make_images(1.0)
    before, after = MatchedDetections(boxes, found), MatchedDetections(boxes, make_images(3.0)[1])
    each = changes(before, after)
    assert each.mean() == pytest.approx(after.average_precision - before.average_precision)
    drawn = bootstrap_changes(before, after, np.random.default_rng(0), 300)
    assert drawn.mean() == pytest.approx(each.mean(), abs=0.02)
    assert drawn.std() == pytest.approx(each.std(ddof=1) / NUM_IMAGES**0.5, rel=0.3)
