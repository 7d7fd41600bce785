"""Clips from the command line: a network of one's own on folders of frames, its files, and what runs them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import Result
from PIL import Image

from compressor.report.records import Report
from tests.unmeasured import without_latency

pytestmark = pytest.mark.hard

SOURCE = """
import torch
from torch import nn

def network():
    return nn.Sequential(
        nn.Conv3d(3, 12, 3, padding=1), nn.BatchNorm3d(12), nn.ReLU(), nn.Conv3d(12, 16, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 2))
"""
OPTIONS = ("--arch", "mine.py:network", "--input-size", 16, "--num-frames", 4)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, the function that gives its network, and clips of squares that move right or down."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "mine.py").write_text(SOURCE)
    rng = np.random.default_rng(0)
    for name, step in (("down", (0, 2)), ("right", (2, 0))):
        for number in range(24):
            clip = folder / "data" / name / f"clip{number}"
            clip.mkdir(parents=True)
            across, down = rng.integers(0, 8, 2)
            for frame in range(6):
                picture = Image.new("RGB", (24, 20), (40, 60, 80))
                picture.paste((250, 240, 90), (across + frame * step[0], down + frame * step[1], across + 9, down + 9))
                picture.save(clip / f"{frame + 1}.png")
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(SOURCE, names)
    torch.save(names["network"]().state_dict(), folder / "model.pt")  # type: ignore[operator]
    return folder


@pytest.fixture(scope="module")
def done(place: Path, invoke) -> Result:
    options = ("--normalize", "in-graph", "--target-ratio", 0.6, "--max-evaluations", 4, "--samples", 8)
    with pytest.MonkeyPatch.context() as patch, without_latency():
        patch.chdir(place)
        return invoke("bocompress-export", "model.pt", "--data", "data", *OPTIONS, *options, "--out", "out")


def test_it_compresses_them(done: Result, place: Path) -> None:
    assert done.exit_code in (0, 3), done.output
    report = Report.model_validate_json((place / "out" / "report.json").read_text())
    assert report.images.input_shape == [3, 4, 16, 16]
    assert report.ratio < 0.61
    assert report.export_check.max_rel_error < 1e-4
    assert report.images.source == "48 of 48 clips in data, in 2 classes"
    about = {entry.key: entry.value for entry in onnx.load(place / "out" / "model.onnx").metadata_props}
    assert (about["input_layout"], about["input_frames"], about["normalization"]) == ("NCTHW", "4", "in-graph")


@pytest.mark.usefixtures("done")
def test_files_are_compared_on_clips(place: Path, invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    files = ("out/original.onnx", "out/model.onnx")
    found = invoke("bocompress", "verify", *files, "--data", "data", "--tolerance", 5, "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["images"] == 48
    refused = invoke("bocompress", "verify", *files, "--num-frames", 7)
    assert "the files take 4 frames only: leave out --num-frames" in refused.stderr


@pytest.mark.usefixtures("done")
def test_infer_reads_the_same_frames(place: Path) -> None:
    command = [sys.executable, place / "out" / "infer.py", place / "data" / "down", "--model"]
    shown = subprocess.run([*command, place / "out" / "original.onnx"], capture_output=True, text=True, check=True)
    lines = [line.split("\t") for line in shown.stdout.splitlines()]
    assert len(lines) == 24
    names: dict[str, object] = {}
    exec(SOURCE, names)
    network = names["network"]().eval()  # type: ignore[operator]
    network.load_state_dict(torch.load(place / "model.pt"))
    frames = [np.asarray(Image.open(Path(lines[0][0]) / f"{number}.png")) for number in (1, 3, 4, 6)]
    from compressor.data.resizing import fit_image
    from compressor.data.transforms import Transform

    transform = Transform(input_size=16, resize_size=16)
    fitted = np.stack([fit_image(Image.fromarray(frame), transform) for frame in frames])
    pixels = torch.from_numpy(fitted).permute(3, 0, 1, 2)[None] / 255
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (transform.mean, transform.std))
    with torch.inference_mode():
        expected = network((pixels - mean) / std).softmax(1)[0]
    assert float(lines[0][2]) == pytest.approx(float(expected.max()), abs=2e-4)
