"""Detectors from the command line: raw outputs in files, average precision in the report, and what runs the files."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import Result
from torch import nn

from benchmarks.datasets.scenes import SHAPES, write_scenes
from benchmarks.datasets.structured_networks import tiny_ssdlite
from compressor.data.boxes.coco import load_with_boxes
from compressor.data.transforms import Transform
from compressor.fidelity.structured.detection import detect_all
from compressor.network.detection.raw import RawDetector
from compressor.report.page import render_report
from compressor.report.records import Report
from tests.network.detection.networks import tiny_maskrcnn
from tests.unmeasured import without_latency, without_measuring

pytestmark = pytest.mark.hard
SSD = "benchmarks.datasets.structured_networks:tiny_ssdlite"
MASKS = "tests.network.detection.networks:tiny_maskrcnn"
SURE = 0.3


def write_boxes(file: Path, detector: RawDetector) -> None:
    """Annotations of what a detector is surest of in the pictures that a file annotates otherwise."""
    content = json.loads(file.read_text())
    found = []
    transform = Transform(input_size=64, resize_size=64)
    images = load_with_boxes(file.parent.parent, transform, 1000, 0, 4)
    numbers = {image["file_name"]: image["id"] for image in content["images"]}
    for name, each in zip(images.files or [], detect_all(detector, images, torch.device("cpu")), strict=True):
        for box, label, score in zip(each["boxes"].tolist(), each["labels"].tolist(), each["scores"], strict=True):
            left, top, right, bottom = box
            if score > SURE and right > left + 1 and bottom > top + 1:
                place = {"image_id": numbers[Path(name).name], "bbox": [left, top, right - left, bottom - top]}
                found.append({"id": len(found) + 1, "category_id": label, "iscrowd": 0, **place})
    assert len(found) > 40
    file.write_text(json.dumps(content | {"annotations": found}))


def make_place(folder: Path, make: Callable[[], nn.Module]) -> Path:
    """A checkpoint of random weights in a folder, and data whose boxes are those that it detects."""
    write_scenes(folder / "data", 60, None, seed=0)
    torch.manual_seed(0)
    detector = make()
    for parameter in detector.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter)
    torch.save(detector.state_dict(), folder / "model.pt")
    write_boxes(folder / "data" / "annotations" / "instances.json", RawDetector(detector).eval())
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("detection"), tiny_ssdlite)


@pytest.fixture(scope="module")
def done(place: Path, invoke) -> Result:
    options = ("--target-ratio", 0.6, "--max-evaluations", 4, "--samples", 8, "--precision", "int8")
    with pytest.MonkeyPatch.context() as patch, without_latency():
        patch.chdir(place)
        return invoke("bocompress-export", "model.pt", "--arch", SSD, "--data", "data", *options, "--out", "out")


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
    assert report.detection.change is not None
    assert report.precisions[0].average_precision == pytest.approx(
        report.detection.average_precision.compressed, abs=0.1
    )
    assert report.images.labelled
    page = render_report(report)
    for words in ("Mean AP", "Detections kept", "with a score of 0.5 and more", "a bootstrap’s"):
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
        assert label in SHAPES
        assert 0.3 <= float(score) <= 1
        left, top, right, bottom = map(float, corners)
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 64


def test_a_drop_in_points_of_average_precision(place: Path, invoke) -> None:
    options = ("--max-drop", 60, "--max-evaluations", 4, "--samples", 8, "--certificate", "pointwise")
    with pytest.MonkeyPatch.context() as patch, without_measuring():
        patch.chdir(place)
        done = invoke("bocompress-export", "model.pt", "--arch", SSD, "--data", "data", *options, "--out", "drop")
    assert done.exit_code in (0, 3), done.output
    report = Report.model_validate_json((place / "drop" / "report.json").read_text())
    assert report.target is not None
    assert (report.target.labelled, report.target.of) == (True, "mean AP")
    assert "points of mean AP" in done.stdout


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory: pytest.TempPathFactory, invoke) -> tuple[Result, Path]:
    place = make_place(tmp_path_factory.mktemp("two_stages"), tiny_maskrcnn)
    options = ("--target-ratio", 0.6, "--max-evaluations", 4, "--samples", 8, "--precision", "int8")
    with pytest.MonkeyPatch.context() as patch, without_latency():
        patch.chdir(place)
        return invoke(
            "bocompress-export", "model.pt", "--arch", MASKS, "--data", "data", *options, "--out", "out"
        ), place


def test_the_whole_detector_of_two_stages(two_stages: tuple[Result, Path]) -> None:
    done, place = two_stages
    assert done.exit_code in (0, 3), done.output
    report = Report.model_validate_json((place / "out" / "report.json").read_text())
    assert report.detection is not None
    assert report.detection.whole is not None
    assert report.detection.whole.detections > 10
    assert "detector.onnx is the whole detector" in render_report(report)
    assert "detector.onnx" in done.stdout
    command = [sys.executable, "out/detect.py", "data/images", "--threshold", "0.2", "--masks", "masks"]
    shown = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True).stdout
    assert {line.split("\t")[1] for line in shown.splitlines()} <= {*SHAPES, "background"}
    assert len(list((place / "masks").glob("*.png"))) == 60
