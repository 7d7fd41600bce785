"""A whole detector of two stages in one file, which detects what torch detects, and the script that runs it."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image

from compressor.data.transforms import Transform
from compressor.errors import VerificationError
from compressor.network.detection.raw import RawDetector
from exporters.detector import export_detector, verify_detector
from exporters.feeding import DETECTION_SCRIPT, SCRIPT, Normalization, feeding_metadata
from tests.network.detection.networks import SIDE, make_detector

PIXELS = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
TRANSFORM = Transform(input_size=SIDE, resize_size=SIDE)
IMAGES = (PIXELS - torch.tensor(TRANSFORM.mean).view(3, 1, 1)) / torch.tensor(TRANSFORM.std).view(3, 1, 1)


@pytest.fixture(scope="module")
def network() -> RawDetector:
    return RawDetector(make_detector("maskrcnn")).eval()


@pytest.fixture(scope="module")
def folder(network: RawDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """detector.onnx, which takes pixels, and both scripts."""
    made = tmp_path_factory.mktemp("whole")
    metadata = feeding_metadata(TRANSFORM, ["background", "cat", "dog"], in_graph=True)
    metadata |= {"detector": json.dumps({"kind": "whole"})}
    normalization = Normalization(TRANSFORM.mean, TRANSFORM.std)
    export_detector(network, IMAGES[:1], made / "detector.onnx", metadata, normalization=normalization)
    for script in (SCRIPT, DETECTION_SCRIPT):
        (made / script.name).write_text(script.read_text())
    return made


def test_it_detects_what_torch_detects(network: RawDetector, folder: Path) -> None:
    compared, error = verify_detector(folder / "detector.onnx", network, IMAGES, PIXELS)
    assert compared > 15
    assert error < 1e-4
    names = [each.name for each in ort.InferenceSession(folder / "detector.onnx").get_outputs()]
    assert names == ["boxes", "labels", "scores", "masks"]


def test_another_network_is_found_out(folder: Path) -> None:
    other = RawDetector(make_detector("maskrcnn", seed=1)).eval()
    with pytest.raises(VerificationError, match="detections of the torch network"):
        verify_detector(folder / "detector.onnx", other, IMAGES, PIXELS)


def test_other_masks_are_found_out(network: RawDetector, folder: Path) -> None:
    other = copy.deepcopy(network)
    torch.nn.init.normal_(other.roi_heads.mask_predictor.mask_fcn_logits.weight)
    with pytest.raises(VerificationError, match="has 0 of"):
        verify_detector(folder / "detector.onnx", other, IMAGES, PIXELS)


@pytest.fixture(scope="module")
def shown(folder: Path) -> list[list[str]]:
    """What the script prints for a picture twice as large as the input."""
    pixels = (PIXELS[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    Image.fromarray(pixels.repeat(2, 0).repeat(2, 1)).save(folder / "picture.png")
    command = [sys.executable, "detect.py", "picture.png", "--threshold", "0.25", "--masks", "masks"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


def test_the_script_prints_and_paints_them(folder: Path, shown: list[list[str]]) -> None:
    assert shown
    assert {row[1] for row in shown} <= {"cat", "dog", "3"}
    for _, _, score, *corners in shown:
        left, top, right, bottom = map(float, corners)
        assert 0 <= left < right <= 2 * SIDE
        assert 0 <= top < bottom <= 2 * SIDE
        assert float(score) >= 0.25
    painted = np.asarray(Image.open(folder / "masks" / "picture.png"))
    assert painted.shape == (2 * SIDE, 2 * SIDE)
    assert 0 < painted.max() <= len(shown)
