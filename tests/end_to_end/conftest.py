"""A run on the trained digits, and a longer search on a small network."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compressor.data.folders import load_folder
from compressor.network.checkpoint import Transform
from compressor.pipeline.plan import Plan
from compressor.report.records import Report
from tests.end_to_end.runs import SEED, Run, tiny_arguments


@pytest.fixture(scope="session")
def run(digits, invoke, tmp_path_factory) -> Run:
    """The command that the README promises, on the digits.

    With the weights' own factors: those fitted to images take a minute for layers of this width, and are tested on
    small networks.
    """
    folder = tmp_path_factory.mktemp("run") / "out"
    words = [
        *("bocompress-export", digits.checkpoint, "--data", digits.images, "--input-size", 32, "--samples", 20),
        *("--layers", "layer4.1*,*downsample*,fc", "--max-evaluations", 20, "--epsilon", 0.02, "--seed", SEED),
        *("--out", folder, "--method", "spatial", "--factors", "weight", "--no-recalibrate"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [*map(str, words)])  # the report quotes what was typed
        done = invoke(*words)
    assert done.exit_code == 0, done.stderr
    report = Report.model_validate_json((folder / "report.json").read_text())
    plan = Plan.model_validate_json((folder / "plan.json").read_text())
    return Run(done.stdout, done.stderr, folder, report, plan)


@pytest.fixture(scope="session")
def tiny_run(tiny_checkpoint, digit_images, invoke, tmp_path_factory) -> Path:
    """A search without interruption, by one worker."""
    folder = tmp_path_factory.mktemp("tiny-run") / "out"
    result = invoke("bocompress-export", *tiny_arguments(tiny_checkpoint, digit_images, folder))
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="session")
def pictures(digit_images) -> tuple[np.ndarray, np.ndarray]:
    """The folder's images as inputs and their labels, prepared by other means than the program's."""
    files = sorted(digit_images.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file), dtype=np.float32) / 255 for file in files])
    inputs = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    labels = np.array([int(file.parent.name) for file in files])
    return inputs.transpose(0, 3, 1, 2).astype(np.float32), labels


@pytest.fixture(scope="session")
def halves(digits):
    """The images that the search saw, and those it did not; none to fit factors on."""
    images = load_folder(digits.images, Transform(32, 32), 1500, SEED)
    return images.split(0, SEED)[1].split(60, SEED)


@pytest.fixture(scope="session")
def test_images(halves):
    return halves[1]
