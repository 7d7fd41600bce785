"""A detector from the command line: raw outputs in its file, average precision in its report, and its script."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import Result

from benchmarks.datasets.scenes import write_scenes
from benchmarks.datasets.structured_networks import tiny_ssdlite
from compressor.report.page import render_report
from compressor.report.records import Report
from tests.unmeasured import without_latency

pytestmark = pytest.mark.hard
ARCH = "benchmarks.datasets.structured_networks:tiny_ssdlite"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detection")
    write_scenes(folder / "data", 40, None, seed=0)
    torch.manual_seed(0)
    detector = tiny_ssdlite()
    for parameter in detector.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter)
    torch.save(detector.state_dict(), folder / "model.pt")
    return folder


@pytest.fixture(scope="module")
def done(place: Path, invoke) -> Result:
    options = ("--target-ratio", 0.6, "--max-evaluations", 4, "--samples", 8, "--precision", "int8")
    with pytest.MonkeyPatch.context() as patch, without_latency():
        patch.chdir(place)
        return invoke("bocompress-export", "model.pt", "--arch", ARCH, "--data", "data", *options, "--out", "out")


def test_its_report(done: Result, place: Path) -> None:
    assert done.exit_code in (0, 3), done.output
    report = Report.model_validate_json((place / "out" / "report.json").read_text())
    assert [output.name for output in report.fidelity.outputs] == ["bbox_regression", "cls_logits"]
    assert report.export_check.outputs == ["bbox_regression", "cls_logits"]
    assert report.export_check.max_rel_error < 1e-4
    assert report.detection is not None
    assert report.detection.kept is not None
    assert report.detection.boxes > 5
    assert report.detection.average_precision is not None
    assert report.images.labelled
    page = render_report(report)
    for words in ("Mean AP", "Detections kept", "with a score of 0.5 and more"):
        assert words in page
    assert "top-1 decisions" not in page
    assert "mean AP" in done.stdout


@pytest.mark.usefixtures("done")
def test_its_script_detects(place: Path) -> None:
    about = {entry.key: entry.value for entry in onnx.load(place / "out" / "model.onnx").metadata_props}
    assert json.loads(about["detector"])["kind"] == "ssd"
    image = place / "data" / "images" / "0000.png"
    command = [sys.executable, place / "out" / "detect.py", image, "--model", place / "out" / "original.onnx"]
    shown = subprocess.run([*command, "--threshold", "0.3"], capture_output=True, text=True, check=True).stdout
    rows = [line.split("\t") for line in shown.splitlines()]
    assert rows
    for file, label, score, *corners in rows:
        assert file == str(image)
        assert label in "123"
        assert 0.3 <= float(score) <= 1
        left, top, right, bottom = map(float, corners)
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 64
