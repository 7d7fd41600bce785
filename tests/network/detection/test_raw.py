"""Raw outputs of detectors: what they are, that both stages' layers are in them, and that the detector follows."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from compressor.network.detection.raw import RawDetector, Unchanged, is_detector, pool, spread_boxes
from compressor.network.layers import compressible, find_layers
from compressor.network.surgery import replace_layer
from compressor.outputs.structure import find_outputs
from tests.network.detection.networks import CHANNELS, SIDE, make_detector

KINDS = ("retinanet", "fcos", "ssd", "maskrcnn")
IMAGES = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("retinanet", {"cls_logits": (160, 4), "bbox_regression": (160, 4)}),
        ("fcos", {"cls_logits": (80, 4), "bbox_regression": (80, 4), "bbox_ctrness": (80, 1)}),
        ("ssd", {"bbox_regression": (352, 4), "cls_logits": (352, 4)}),
        (
            "maskrcnn",
            {
                "objectness.0": (2, 8, 8),
                "objectness.1": (2, 4, 4),
                "deltas.0": (8, 8, 8),
                "deltas.1": (8, 4, 4),
                "class_logits": (40, 4),
                "box_regression": (40, 16),
                "mask_logits": (12, 4, 16, 16),
            },
        ),
    ],
)
def test_its_outputs(kind: str, shapes: dict[str, tuple[int, ...]]) -> None:
    network = RawDetector(make_detector(kind)).eval()
    assert {output.name: output.shape for output in find_outputs(network, IMAGES[:1])} == shapes


@pytest.mark.parametrize("kind", KINDS)
def test_the_detector_is_the_same_and_follows(kind: str) -> None:
    original = make_detector(kind)
    network = RawDetector(copy.deepcopy(original)).eval()
    assert is_detector(original)
    assert not is_detector(network)
    assert network.state_dict().keys() == original.state_dict().keys()
    original.transform = Unchanged()
    candidate = copy.deepcopy(network)
    with torch.inference_mode():
        for found, expected in zip(network.detector(list(IMAGES)), original(list(IMAGES)), strict=True):
            torch.testing.assert_close(found["boxes"], expected["boxes"])
        replace_layer(
            candidate, "backbone.first.0", nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1, 2), nn.ReLU()).eval()
        )
        moved = candidate.detector(list(IMAGES)), network.detector(list(IMAGES))
    assert any(not torch.equal(one["scores"], other["scores"]) for one, other in zip(*moved, strict=True))
    assert not candidate.train().eval().detector.training


@pytest.mark.parametrize("kind", KINDS)
def test_all_its_layers_can_be_compressed(kind: str) -> None:
    network = RawDetector(make_detector(kind)).eval()
    layers = find_layers(network, IMAGES[:1])
    assert not [layer.name for layer in layers if layer.skipped and "never called" in layer.skipped]
    assert len(compressible(layers)) >= 4


def test_pooling_is_torchvisions() -> None:
    pooling = MultiScaleRoIAlign(["0", "1"], 5, 2)
    features = {"0": torch.randn(2, 4, 16, 16), "1": torch.randn(2, 4, 8, 8)}
    boxes = spread_boxes(30, 128, 128)
    images = ImageList(torch.zeros(2, 3, 128, 128), [(128, 128)] * 2)
    expected = pooling(features, [torch.from_numpy(boxes)] * 2, images.image_sizes)
    torch.testing.assert_close(pool(pooling, features, boxes, (128, 128)), expected)


def test_boxes_are_spread_evenly_and_always_the_same() -> None:
    boxes = spread_boxes(400, 120, 200)
    assert (boxes == spread_boxes(400, 120, 200)).all()
    assert boxes.min() >= 0
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes.max(0) <= [200, 120, 200, 120]).all()
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2 / [200, 120]
    for axis in (0, 1):
        assert ((middles[:, axis] < 0.5).mean()) == pytest.approx(0.5, abs=0.05)
