"""Hidden channels on the command line: a MobileNetV2 from checkpoint to verified files, and back from its plan."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import Result
from torch import nn
from torchvision.models import mobilenet_v2

from benchmarks.demo.digits import as_inputs, load_digits_images
from compressor.network.macs import count_macs
from compressor.report.records import Report

ASKED = 0.7


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A MobileNetV2 of ten classes, its weights random, its norms those of digits."""
    torch.manual_seed(0)
    found = mobilenet_v2(num_classes=10)
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        found.train()(as_inputs(load_digits_images()[0][:200]))
    return found.eval()


@pytest.fixture(scope="module")
def checkpoint(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mobilenet") / "mobilenet.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def run(
    network: nn.Module,
    checkpoint: Path,
    digit_images: Path,
    invoke: Callable[..., Result],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of a run within a number of operations, with an int8 file."""
    folder = tmp_path_factory.mktemp("run") / "out"
    asked = int(ASKED * count_macs(network, torch.zeros(1, 3, 32, 32))[0])
    done = invoke(
        "bocompress-export", checkpoint, *("--data", digit_images, "--input-size", 32, "--out", folder, "--seed", 1),
        *("--method", "channels", "--cost", "macs", "--target-macs", asked, "--rank-multiple", 4),
        *("--samples", 8, "--max-evaluations", 12, "--precision", "int8"),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder


def test_the_files_have_fewer_channels(run: Path) -> None:
    report = Report.model_validate_json((run / "report.json").read_text())
    assert report.target is not None
    assert report.target.met
    assert report.macs.compressed == report.target.reached
    weights = {value.name: list(value.dims) for value in onnx.load(run / "model.onnx").graph.initializer}
    rows = {layer.name: layer for layer in report.layers if layer.shape_compressed}
    assert rows
    shapes = list(weights.values())
    assert all(row.shape_compressed in shapes for row in rows.values() if row.kind == "conv")
    assert (run / "model.int8.onnx").stat().st_size < (run / "model.onnx").stat().st_size
    assert "lost channels" in (run / "report.html").read_text()


def test_the_plan_makes_the_same_file_again(
    run: Path, checkpoint: Path, digit_images: Path, invoke: Callable[..., Result], tmp_path: Path
) -> None:
    done = invoke(
        "bocompress", "apply", run / "plan.json", checkpoint,
        *("--data", digit_images, "--input-size", 32, "--out", tmp_path / "out", "--seed", 1),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    reports = [json.loads((folder / "report.json").read_text()) for folder in (run, tmp_path / "out")]
    assert reports[0]["macs"] == reports[1]["macs"]
    assert reports[1]["fidelity"]["function_norm"] == pytest.approx(reports[0]["fidelity"]["function_norm"], rel=1e-3)


def test_inspect_lists_the_groups(checkpoint: Path, invoke: Callable[..., Result]) -> None:
    arguments = ("bocompress", "inspect", checkpoint, "--input-size", 32)
    done = invoke(*arguments, "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["features.2.conv.1.0"]["groups"] == ["features.2.conv.0.0"]
    assert rows["features.2.conv.1.0"]["method"] == "channels"
    assert rows["features.2.conv.1.0"]["skipped"] is None
    plain = json.loads(
        invoke("bocompress", "inspect", checkpoint, "--input-size", 32, "--json", "--method", "spatial").stdout
    )
    assert all(row["groups"] == [] for row in plain)


def test_channels_without_images_are_refused_in_a_sentence(
    checkpoint: Path, invoke: Callable[..., Result], tmp_path: Path
) -> None:
    done = invoke(
        "bocompress-export", checkpoint, "--input-size", 32, "--method", "channels", "--out", tmp_path / "out"
    )
    assert done.exit_code == 2
    assert "--method channels refits layers to images: synthetic ones will not do, give --data" in done.output
