"""Scenes and clips of the study of other kinds of networks: masks and boxes fit, and the networks learn from them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.datasets import structured_networks
from benchmarks.datasets.scenes import SHAPES, write_clips, write_scenes
from benchmarks.studies.network.structures import SUBJECTS, write_uniform
from compressor.network.detection.raw import RawDetector, is_detector
from compressor.network.macs import count_macs
from compressor.pipeline.plan import read_plan


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    place = tmp_path_factory.mktemp("scenes")
    write_scenes(place / "scenes", 12, None, seed=0)
    write_clips(place / "clips", 12, seed=0)
    return {False: place / "scenes", True: place / "clips"}


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_training_lowers_the_loss(subject, folders: dict[bool, Path]) -> None:
    images, targets = subject.load(folders[subject.transform.frames is not None])
    assert images.input_shape == subject.transform.shape
    assert len(images) == len(targets) == 12
    torch.manual_seed(0)
    network = getattr(structured_networks, subject.name)()
    if is_detector(network):
        network = RawDetector(network).detector
    inputs = images.batch(slice(None))
    with torch.no_grad():
        before = float(subject.loss(network.train(), inputs, targets))
    structured_networks.train(network, inputs, targets, subject.loss, epochs=3)
    with torch.no_grad():
        assert float(subject.loss(network.train(), inputs, targets)) < before


def test_boxes_are_those_of_the_masks(folders: dict[bool, Path]) -> None:
    segmenter, _, detector = SUBJECTS
    masks, (_, boxes) = segmenter.load(folders[False])[0].masks, detector.load(folders[False])
    assert masks is not None
    assert set(np.unique(masks)) <= set(range(len(SHAPES) + 1))
    for mask, rows in zip(masks, boxes, strict=True):
        for left, top, right, bottom, label, _ in rows.int().tolist():
            assert (mask[top:bottom, left:right] == label).any()


def test_uniform_plans_take_no_more_than_asked(tmp_path: Path) -> None:
    network = structured_networks.tiny_lraspp().eval()
    example = torch.zeros(1, 3, 64, 64)
    macs, _ = count_macs(network, example)
    share = write_uniform(network, example, macs // 2, "net", tmp_path / "plan.json")
    layers = read_plan(tmp_path / "plan.json").layers
    assert 0.3 < share < 0.6
    assert {round(layer.rank / layer.break_even_rank, 1) for layer in layers if layer.rank and layer.rank > 10} <= {
        round(share + step, 1) for step in (-0.05, 0, 0.05)
    }
