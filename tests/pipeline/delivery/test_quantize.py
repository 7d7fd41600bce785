"""A run with further precisions: its files, its figures against a recomputation, its words, and what fails."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from compressor import apply_plan
from compressor.data.batches import from_batches
from compressor.data.folders import load_folder
from compressor.data.transforms import Transform
from compressor.errors import BocompressError
from compressor.pipeline.delivery import measure, quantize
from compressor.pipeline.plan import Plan
from compressor.pipeline.settings import Settings
from compressor.pipeline.state import CompressedModel
from compressor.report.console import print_report
from compressor.report.page import read_report
from compressor.report.precision_wording import list_precision_rows

QUICK = {"factors": "weight", "recalibrate": False, "calibration": 0}


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)).eval()


PLAN = {
    "arch": "toy",
    "gamma": 0.01,
    "layers": [{"name": "2", "method": "spatial", "factors": "weight", "rank": 8, "break_even_rank": 24}],
}


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    images = nn.functional.interpolate(torch.randn(100, 3, 4, 4), size=12, mode="bilinear")
    return images, network()(images).argmax(1)  # labels that say nothing are not used


def run(inputs: tuple[torch.Tensor, torch.Tensor], out: Path, model: nn.Module, *precisions: str) -> CompressedModel:
    settings = Settings(precisions=precisions, **QUICK)  # type: ignore[arg-type]
    return apply_plan(model, from_batches([inputs], 100), Plan.model_validate(PLAN), out, settings)


@pytest.fixture(scope="module")
def result(inputs: tuple[torch.Tensor, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> CompressedModel:
    return run(inputs, tmp_path_factory.mktemp("precision") / "out", network(), "fp32", "int8", "fp16")


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (quantize, measure):
        monkeypatch.setattr(module, "latency_beside", lambda *_: {})


@pytest.mark.usefixtures("untimed")
def test_images_beyond_those_held_judge_files_as_they_judge_the_network(digit_images: Path, tmp_path: Path) -> None:
    held = load_folder(digit_images, Transform(12, 12), 60, seed=0)
    settings = Settings(precisions=("fp32", "fp16"), **QUICK)  # type: ignore[arg-type]
    report = apply_plan(network(), held, Plan.model_validate(PLAN), tmp_path / "out", settings).report
    (float16,) = report.precisions
    assert report.images.test_images > 60
    assert float16.fidelity.images == report.fidelity.images == report.images.test_images
    assert float16.fidelity.function_norm == pytest.approx(report.fidelity.function_norm, rel=0.01)


def infer(path: Path, images: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": images})[0]


def test_every_precision_has_its_file_with_where_it_came_from(result: CompressedModel) -> None:
    assert [record.precision for record in result.report.precisions] == ["int8", "fp16"]
    for record in result.report.precisions:
        assert record.file == f"model.{record.precision}.onnx"
        assert record.onnx_bytes == (result.folder / record.file).stat().st_size
        properties = {entry.key: entry.value for entry in onnx.load(result.folder / record.file).metadata_props}
        float32 = {entry.key: entry.value for entry in onnx.load(result.folder / "model.onnx").metadata_props}
        assert properties == float32 | {"precision": record.precision}


def test_figures_are_those_of_the_files_on_the_held_out_images(
    result: CompressedModel, inputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images = from_batches([inputs], 100)
    _, others = images.split(0, 0)
    _, test_images = others.split(50, 0)
    batch = test_images.batch(slice(0, 50)).numpy()
    names = ["original.onnx", "model.onnx", *(record.file for record in result.report.precisions)]
    outputs = {name: infer(result.folder / name, batch).astype(np.float64) for name in names}
    for record in result.report.precisions:
        found = outputs[record.file]
        norms = [np.square(found - outputs[name]).sum(1).mean() for name in ("original.onnx", "model.onnx")]
        assert [record.fidelity.function_norm, record.norm_to_float32] == pytest.approx(norms, rel=1e-3, abs=1e-9)
        agreement = (found.argmax(1) == outputs["model.onnx"].argmax(1)).mean()
        assert record.agreement_to_float32 == pytest.approx(agreement)
        assert record.top1 == pytest.approx((found.argmax(1) == test_images.labels.numpy()).mean())
    int8, fp16 = result.report.precisions
    assert int8.norm_to_float32 > fp16.norm_to_float32
    assert int8.quantization is not None
    assert int8.quantization.layers == 3
    assert set(int8.latency) == set(int8.latency_to_float32) == set(result.report.latency)


def test_table_and_page_put_the_precisions_side_by_side(
    result: CompressedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    print_report(result.report, result.folder)
    printed = capsys.readouterr().out
    assert "│ float32 │" in " ".join(printed.split()) or "float32" in printed
    assert f"{result.report.precisions[0].onnx_bytes:,}" in printed
    assert "layers in int8" in printed
    page = (result.folder / "report.html").read_text()
    for row in list_precision_rows(result.report):
        assert row.name in page
        assert len(row.cells) == 4
    assert "In other precisions" in page
    assert "3 of 3" in page.replace("\u202f", " ")


def test_reports_of_earlier_versions_are_read(result: CompressedModel, tmp_path: Path) -> None:
    stored = json.loads((result.folder / "report.json").read_text())
    del stored["precisions"]
    (tmp_path / "report.json").write_text(json.dumps(stored))
    assert read_report(tmp_path / "report.json").precisions == []


def test_what_overflows_in_fp16_is_said_and_leaves_no_file(
    inputs: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, untimed: None
) -> None:
    model = network()
    with torch.no_grad():
        model[0].weight *= 1e5
        model[6].weight /= 1e5
    report = run(inputs, tmp_path / "out", model, "fp16").report
    assert report.precisions == []
    (warning,) = [line for line in report.warnings if "fp16" in line]
    assert warning.startswith("no model.fp16.onnx: values overflow: ")
    assert {path.name for path in (tmp_path / "out").iterdir()} & {"model.onnx", "model.fp16.onnx"} == {"model.onnx"}


def test_a_network_that_cannot_be_quantized_keeps_its_float_file(
    inputs: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, untimed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BocompressError("the network cannot be quantized to int8 (KeyError: val_3)")

    monkeypatch.setattr(quantize, "quantize_int8", refuse)
    report = run(inputs, tmp_path / "out", network(), "int8").report
    assert report.warnings[-1] == (
        "no model.int8.onnx: the network cannot be quantized to int8 (KeyError: val_3); model.onnx, in float32, is not "
        "affected"
    )
    assert not (tmp_path / "out" / "model.int8.onnx").exists()


@pytest.mark.parametrize("given", ["int4", "fp32,", ""])
def test_unknown_precisions_are_refused(given: str, invoke: Callable[..., object], tmp_path: Path) -> None:
    result = invoke("bocompress-export", "model.pt", "--precision", given, "--out", tmp_path / "out")
    assert result.exit_code == 2
    if given != "fp32,":
        assert "fp32, fp16, int8" in result.output
