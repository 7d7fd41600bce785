"""Mean IoU, its change with an interval, and whether masks are those of a network's pixels."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.data.batches import from_batches
from compressor.data.images import VOID, ImageSet
from compressor.fidelity.decisions import decide
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.structured.drop import MeanIoUDrop
from compressor.fidelity.structured.outputs import give_rows
from compressor.fidelity.structured.segmentation import Confusion, PixelEvaluation, changes, class_map
from compressor.fidelity.structured.truth import check_masks
from compressor.outputs.rows import view_of, whole
from compressor.outputs.structure import Output, find_outputs

CPU = torch.device("cpu")


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.body(images)}


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(0)
    return Segmenter().eval()


@pytest.fixture(scope="module")
def images(original: nn.Module) -> ImageSet:
    torch.manual_seed(1)
    inputs = nn.functional.interpolate(torch.randn(40, 3, 5, 5), size=16, mode="bilinear")
    with torch.no_grad():
        masks = decide(original(inputs)["out"])
    masks[:, :2] = VOID
    return from_batches([(inputs, masks)], 40)


@pytest.fixture
def viewed(original: nn.Module, images: ImageSet) -> nn.Module:
    network = copy.deepcopy(original)
    return give_rows(network, find_outputs(network, images.batch([0])), images, CPU, {}, 0)


def out_of(network: nn.Module) -> Output:
    output = class_map(view_of(network), (16, 16), has_masks=True)
    assert output is not None
    return output


def disturbed(network: nn.Module) -> nn.Module:
    other: Any = copy.deepcopy(network)
    torch.manual_seed(2)
    with torch.no_grad():
        other.body[2].weight.add_(0.05 * torch.randn_like(other.body[2].weight))
    return other


def test_ious_are_those_written_out() -> None:
    masks = torch.tensor([[[0, 0, 1], [1, 2, VOID]]], dtype=torch.uint8)
    decided = torch.tensor([[[0, 1, 1], [1, 1, 3]]])
    confusion = Confusion()
    confusion.add(decided, masks, 4)
    np.testing.assert_allclose(confusion.ious, [1 / 2, 2 / 4, 0, np.nan])
    assert confusion.mean_iou == pytest.approx(1 / 3)
    assert confusion.accuracy == pytest.approx(3 / 5)


def test_the_change_of_every_image_adds_up_and_predicts_leaving_it_out() -> None:
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.integers(0, 3, (30, 8, 8)).astype(np.uint8))
    wrong = torch.from_numpy(rng.random((30, 8, 8)) < np.linspace(0.1, 0.5, 30)[:, None, None])
    decided = torch.where(wrong, (masks.long() + 1) % 3, masks.long())
    before, after, without = Confusion(), Confusion(), Confusion()
    before.add(masks.long(), masks, 3)
    after.add(decided, masks, 3)
    each = changes(before, after)
    assert each.mean() == pytest.approx(after.mean_iou - before.mean_iou)
    without.add(decided[:-1], masks[:-1], 3)
    assert each[-1] - each.mean() == pytest.approx((after.mean_iou - without.mean_iou) * 29, rel=0.1)


def test_both_networks_on_masks(viewed: nn.Module, images: ImageSet) -> None:
    other, evaluation, inputs = disturbed(viewed), PixelEvaluation(out_of(viewed)), images.batch(slice(None))
    with torch.no_grad():
        evaluation.add(whole(viewed)(inputs), whole(other)(inputs), images.masks)
    record = evaluation.record(["sky", "road", "car", "tree"])
    assert record.mean_iou is not None
    assert record.change is not None
    assert record.pixel_accuracy is not None
    assert record.mean_iou.original == record.pixel_accuracy.original == 1
    assert record.pixel_accuracy.compressed == pytest.approx(record.pixel_agreement, abs=0.02)
    assert record.change.change == pytest.approx(record.mean_iou.compressed - 1)
    assert record.change.low < record.change.change < record.change.high
    assert {row.name for row in record.classes} <= {"sky", "road", "car", "tree"}


def test_the_drop_is_in_points_of_mean_iou(viewed: nn.Module, images: ImageSet) -> None:
    norms = [FunctionNorm(viewed, part, CPU) for part in images.split(20, 0)]
    estimator, other = MeanIoUDrop(norms, viewed, out_of(viewed), CPU), disturbed(viewed)
    assert estimator.measure(viewed).drop == 0
    measured = estimator.measure(other)
    assert 0 < measured.drop < 100
    losses = [norm.of_outputs(norm.outputs(other, torch.arange(20))) for norm in norms]
    assert measured.loss == pytest.approx(np.mean(losses))


def test_masks_of_another_order_are_not_used(viewed: nn.Module, images: ImageSet) -> None:
    output, masks = out_of(viewed), images.masks
    assert masks is not None
    assert check_masks(viewed, output, images, CPU) is images
    assert "no map of classes" in check_masks(viewed, None, images, CPU).label_note
    for change, words in (
        (lambda known: (known + 1) % 4, "may be in another order"),
        (lambda known: known + 9, "up to"),
    ):
        wrong = from_batches([(images.data, torch.where(masks == VOID, masks, change(masks)).long())], 40)
        found = check_masks(viewed, output, wrong, CPU)
        assert found.masks is None
        assert words in found.label_note
