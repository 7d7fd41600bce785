"""detect.py chooses what torchvision's detectors choose, from raw outputs alone, without torch."""

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from compressor.network.detection.raw import RawDetector
from compressor.network.detection.selection import describe_selection
from exporters.feeding import DETECTION_SCRIPT
from tests.network.detection.networks import SIDE, make_detector


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("detect", DETECTION_SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "ssd"])
def test_it_chooses_as_torchvision_does(kind: str, script: Any) -> None:
    network = RawDetector(make_detector(kind)).eval()
    images = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    selection = describe_selection(network, images[:1])
    assert selection is not None
    detector = script.Detector(*selection)
    with torch.inference_mode():
        outputs, expected = network(images), network.detector(list(images))
    for number, each in enumerate(expected):
        assert len(each["scores"]) > 5
        boxes, scores, labels = detector.choose({name: value[number].numpy() for name, value in outputs.items()})
        np.testing.assert_allclose(scores, each["scores"].numpy(), atol=1e-5)
        assert len(scores) == len(each["scores"])
        both = (
            np.lexsort((labels, -scores.round(4))),
            np.lexsort((each["labels"].numpy(), -each["scores"].numpy().round(4))),
        )
        np.testing.assert_array_equal(labels[both[0]], each["labels"].numpy()[both[1]])
        np.testing.assert_allclose(boxes[both[0]], each["boxes"].numpy()[both[1]], atol=1e-2)


def test_two_stages_cannot_be_described() -> None:
    network = RawDetector(make_detector("maskrcnn")).eval()
    assert describe_selection(network, torch.zeros(1, 3, SIDE, SIDE)) is None
