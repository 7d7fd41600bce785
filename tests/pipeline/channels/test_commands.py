"""Hidden channels on the command line: MobileNetV2's blocks from checkpoint to verified files, and a plan again."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import Result
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual

from benchmarks.demo.digits import as_inputs, load_digits_images
from compressor.network.macs import count_macs
from compressor.report.records import Report
from tests.unmeasured import without_measuring

INT8 = onnx.TensorProto.INT8
ASKED = 0.7


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """MobileNetV2's blocks, few and thin, with random weights, the norms of digits and a last layer fitted to them."""
    torch.manual_seed(0)
    found = nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU6(),
        *(InvertedResidual(12, 12, stride, expand_ratio=6) for stride in (1, 2, 1)),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(108, 10),
    )
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    images, labels = load_digits_images()
    with torch.no_grad():
        inputs = as_inputs(images[:600])
        found.train()(inputs)
        features = torch.cat([found.eval()[:-1](inputs), torch.ones(len(inputs), 1)], dim=1)
        wanted = 2 * nn.functional.one_hot(torch.from_numpy(labels[:600]), 10) - 0.2
        fitted = torch.linalg.lstsq(features, wanted, driver="gelsd").solution
        found[-1].weight.copy_(fitted[:-1].T)
        found[-1].bias.copy_(fitted[-1])
    return found


@pytest.fixture(scope="module")
def checkpoint(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mobilenet") / "mobilenet.pt"
    torch.save(network, path)
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
        "bocompress-export", checkpoint, "--trust-pickle",
        *("--data", digit_images, "--input-size", 32, "--out", folder, "--seed", 1),
        *("--method", "channels", "--cost", "macs", "--target-macs", asked, "--rank-multiple", 4),
        *("--samples", 8, "--max-evaluations", 12, "--certificate", "pointwise", "--precision", "int8"),
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
    in_int8 = [value.dims for value in onnx.load(run / "model.int8.onnx").graph.initializer if value.data_type == INT8]
    assert all(row.shape_compressed in map(list, in_int8) for row in rows.values() if row.kind == "conv")
    assert "lost channels" in (run / "report.html").read_text()


def test_the_plan_makes_the_same_file_again(
    run: Path, checkpoint: Path, digit_images: Path, invoke: Callable[..., Result], tmp_path: Path
) -> None:
    with without_measuring():
        done = invoke(
            "bocompress", "apply", checkpoint, run / "plan.json", "--trust-pickle",
            *("--data", digit_images, "--input-size", 32, "--out", tmp_path / "out", "--seed", 1),
        )  # fmt: skip
    assert done.exit_code == 0, done.output
    reports = [json.loads((folder / "report.json").read_text()) for folder in (run, tmp_path / "out")]
    assert reports[0]["macs"] == reports[1]["macs"]
    assert reports[1]["fidelity"]["function_norm"] == pytest.approx(reports[0]["fidelity"]["function_norm"], rel=1e-3)


def test_inspect_lists_the_groups(checkpoint: Path, invoke: Callable[..., Result]) -> None:
    arguments = ("bocompress", "inspect", checkpoint, "--trust-pickle", "--input-size", 32)
    rows = {row["name"]: row for row in json.loads(invoke(*arguments, "--json").stdout)}
    assert rows["4.conv.1.0"]["groups"] == ["4.conv.0.0"]
    assert rows["4.conv.1.0"]["method"] == "channels"
    assert rows["4.conv.1.0"]["skipped"] is None
    plain = json.loads(invoke(*arguments, "--json", "--method", "spatial").stdout)
    assert all(row["groups"] == [] for row in plain)


def test_channels_without_images_are_refused_in_a_sentence(
    checkpoint: Path, invoke: Callable[..., Result], tmp_path: Path
) -> None:
    options = ("--trust-pickle", "--input-size", 32, "--method", "channels", "--out", tmp_path / "out")
    done = invoke("bocompress-export", checkpoint, *options)
    assert done.exit_code == 2
    assert "--method channels refits layers to images: synthetic ones will not do, give --data" in done.output
