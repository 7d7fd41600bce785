"""Every network's second stage works on what the original proposes in an image, once and for all."""

import copy
import pickle

import pytest
import torch
from torch import nn

from compressor.network.detection.proposals import Proposals, with_proposals, without_proposals
from compressor.network.detection.raw import RawDetector
from compressor.network.macs import count_macs
from compressor.network.surgery import replace_layer
from compressor.outputs.structure import named_tensors
from tests.network.detection.networks import CHANNELS, SIDE, make_detector

IMAGES = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network() -> RawDetector:
    made = with_proposals(RawDetector(make_detector("maskrcnn")).eval())
    assert isinstance(made, RawDetector)
    return made


def proposals_of(network: RawDetector) -> Proposals:
    assert isinstance(network.proposals, Proposals)
    return network.proposals


def test_they_are_what_the_first_stage_proposes(network: RawDetector) -> None:
    seen = []
    handle = network.roi_heads.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    with torch.inference_mode():
        network.detector(list(IMAGES))
        found = proposals_of(network)(IMAGES)
    handle.remove()
    assert found.shape == (3, 40, 4)
    for boxes, expected in zip(found, seen[0], strict=True):
        torch.testing.assert_close(boxes[: len(expected)], expected)
        torch.testing.assert_close(boxes[len(expected) :], boxes[: 40 - len(expected)])


def test_scores_are_of_those_boxes(network: RawDetector) -> None:
    with torch.inference_mode():
        raw, detected = network(IMAGES[:1]), network.detector([IMAGES[0]])[0]
        scores = raw["class_logits"][0].softmax(1)
    assert all(float((scores - score).abs().min()) < 1e-5 for score in detected["scores"][:5])


def test_they_stay_whatever_becomes_of_the_first_stage(network: RawDetector) -> None:
    candidate = copy.deepcopy(network)
    replace_layer(candidate, "rpn.head.conv.0.0", nn.Conv2d(CHANNELS, CHANNELS, 1).eval())
    assert candidate.proposals is network.proposals
    torch.testing.assert_close(proposals_of(candidate)(IMAGES), proposals_of(network)(IMAGES))
    again = pickle.loads(pickle.dumps(proposals_of(network)))
    torch.testing.assert_close(again(IMAGES), proposals_of(network)(IMAGES))


def test_gradients_pass_where_they_were_found_without(network: RawDetector) -> None:
    with torch.inference_mode():
        network(IMAGES)
    images = IMAGES.clone().requires_grad_()
    network(images)["class_logits"].square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_files_work_on_the_same_boxes_in_every_image(network: RawDetector) -> None:
    plain = without_proposals(network)
    expected = RawDetector(make_detector("maskrcnn")).eval()
    with torch.inference_mode():
        for one, two in zip(
            named_tensors(plain(IMAGES)).values(), named_tensors(expected(IMAGES)).values(), strict=True
        ):
            torch.testing.assert_close(one, two)
    assert network.proposals is not None
    assert count_macs(network, IMAGES[:1])[0] == count_macs(plain, IMAGES[:1])[0]


def test_others_have_none() -> None:
    network = RawDetector(make_detector("retinanet")).eval()
    assert with_proposals(network) is network
    assert network.proposals is None
