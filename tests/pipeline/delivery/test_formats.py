"""Files for runtimes: operator sets, external data, the ORT format, zipped files; each computes what it should."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from compressor import apply_plan
from compressor.cost.size import file_bytes, gzip_bytes, list_parts
from compressor.data.batches import from_batches
from compressor.errors import BocompressError, InputError, VerificationError
from compressor.files import replace_files_when_whole
from compressor.pipeline.delivery import formats, measure, quantize
from compressor.pipeline.outputs import OUTPUTS
from compressor.pipeline.plan import Plan
from compressor.pipeline.settings import Settings
from compressor.pipeline.state import CompressedModel
from exporters import onnx as exporter
from exporters import ort_format as edge
from exporters.ort_format import converted_to_ort, zip_file

PLAN = {
    "arch": "toy",
    "gamma": 0.01,
    "prune_fraction": 0.6,
    "layers": [{"name": "2", "method": "spatial", "factors": "weight", "rank": 8, "break_even_rank": 24}],
}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    torch.manual_seed(1)
    return nn.functional.interpolate(torch.randn(60, 3, 4, 4), size=12, mode="bilinear")


@pytest.fixture(scope="module")
def runs(images: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> tuple[CompressedModel, CompressedModel]:
    """A run with every format, and one whose weights do not fit into one file; neither measures latency."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)).eval()
    quick = Settings(factors="weight", recalibrate=False, calibration=0, precisions=("int8", "fp16"), zip=True)
    plan = Plan.model_validate(PLAN)

    def run(name: str, **changes: object) -> CompressedModel:
        out = tmp_path_factory.mktemp(name) / "out"
        return apply_plan(model, from_batches([images], 60), plan, out, replace(quick, **changes))

    with pytest.MonkeyPatch.context() as patch:
        for module in (measure, quantize):
            patch.setattr(module, "latency_beside", lambda *_: {})
        usual = run("usual", formats=("onnx", "ort"), opset=18)
        patch.setattr(exporter, "MAX_WEIGHT_BYTES", 2000)
        return usual, run("large")


def infer(path: Path, images: torch.Tensor) -> np.ndarray:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": images.numpy()})[0]


def test_the_files_have_the_operator_set_asked_for(runs: tuple[CompressedModel, CompressedModel]) -> None:
    for name in ("original.onnx", "model.onnx", "model.int8.onnx"):
        (opset,) = (entry.version for entry in onnx.load(runs[0].folder / name).opset_import if entry.domain == "")
        assert opset == 18


def test_ort_files_run_and_name_their_operators(
    runs: tuple[CompressedModel, CompressedModel], images: torch.Tensor
) -> None:
    run = runs[0]
    files = {record.file: record for record in run.report.files}
    assert {"model.ort", "model.int8.ort", "model.fp16.ort"} <= set(files)
    with torch.no_grad():
        expected = run.model(images).numpy()
    np.testing.assert_allclose(infer(run.folder / "model.ort", images), expected, atol=1e-5)
    int8 = infer(run.folder / "model.int8.onnx", images)
    np.testing.assert_allclose(infer(run.folder / "model.int8.ort", images), int8, atol=0.05 * np.abs(int8).max())
    for name in ("model.ort", "model.int8.ort"):
        record = files[name]
        assert record.size_bytes == (run.folder / name).stat().st_size
        assert record.operators is not None
        lines = (run.folder / record.operators).read_text().splitlines()
        assert lines[0] == f"# Generated from {name}"
        assert any(line.startswith("ai.onnx;") for line in lines[1:])
    assert "QLinearConv" in (run.folder / "model.int8.required_operators.config").read_text()


def test_a_wrong_ort_file_is_not_kept(
    runs: tuple[CompressedModel, CompressedModel], images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The converter is made to convert another network."""
    run = runs[0]
    other = tmp_path / "model.onnx"
    other.write_bytes((run.folder / "original.onnx").read_bytes())
    monkeypatch.setattr(formats, "converted_to_ort", lambda _source: converted_to_ort(other))

    class JobOf:
        folder = tmp_path
        test_images = from_batches([images], 60)
        settings = Settings()

    with pytest.raises(VerificationError, match="does not compute what the torch network computes"):
        formats._write_ort(JobOf, tmp_path / "model.onnx", run.model)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_zipped_files_hold_the_same_and_pruning_shows(runs: tuple[CompressedModel, CompressedModel]) -> None:
    run = runs[0]
    records = {record.file: record for record in run.report.files if record.file.endswith(".gz")}
    assert set(records) == {"model.onnx.gz", "model.int8.onnx.gz", "model.fp16.onnx.gz"}
    for name, record in records.items():
        assert gzip.decompress((run.folder / name).read_bytes()) == (run.folder / record.source).read_bytes()
        assert record.size_bytes == (run.folder / name).stat().st_size
    assert records["model.onnx.gz"].size_bytes < 0.7 * run.report.onnx_bytes.compressed
    before = (run.folder / "model.onnx.gz").read_bytes()
    assert zip_file(run.folder / "model.onnx").read_bytes() == before


def test_a_zipped_file_that_does_not_read_back_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"network")
    monkeypatch.setattr(edge.shutil, "copyfileobj", lambda _source, target: target.write(b"other"))
    with pytest.raises(VerificationError, match="does not unzip"):
        zip_file(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_is_no_network_has_no_ort_format(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no network")
    with pytest.raises(BocompressError, match="cannot convert"), converted_to_ort(tmp_path / "a.onnx"):
        pass


def test_weights_too_large_for_one_file_lie_beside_it(
    runs: tuple[CompressedModel, CompressedModel], images: torch.Tensor
) -> None:
    usual, run = runs
    for name in ("original.onnx", "model.onnx", "model.int8.onnx", "model.fp16.onnx"):
        path = run.folder / name
        parts = list_parts(path)
        assert [part.name for part in parts] in ([name], [name, f"{name}.data"])
        assert file_bytes(path) == sum(part.stat().st_size for part in parts)
        assert gzip_bytes(path) == sum(gzip_bytes(part) for part in parts if part.suffix == ".data") + gzip_alone(path)
        np.testing.assert_allclose(infer(path, images), infer(usual.folder / name, images), rtol=1e-4, atol=1e-3)
    assert (run.folder / "model.onnx.data").stat().st_size > 4000
    assert run.report.onnx_bytes.compressed == file_bytes(run.folder / "model.onnx")
    assert run.report.warnings == []
    assert [record.precision for record in run.report.precisions] == ["int8", "fp16"]
    assert {"model.onnx.gz", "model.onnx.data.gz"} <= {record.file for record in run.report.files}


def gzip_alone(path: Path) -> int:
    return len(gzip.compress(path.read_bytes(), 6, mtime=0))


def test_a_run_leaves_what_may_be_left_and_says_so(runs: tuple[CompressedModel, CompressedModel]) -> None:
    for run in runs:
        names = {path.name for path in run.folder.iterdir()}
        assert names <= set(OUTPUTS)
        page = (run.folder / "report.html").read_text()
        for record in run.report.files:
            assert record.file in page
        assert json.loads((run.folder / "report.json").read_text())["files"]


def test_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    def fail() -> None:
        with replace_files_when_whole(tmp_path / "a") as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with replace_files_when_whole(tmp_path / "a") as partial:
        partial.write_text("whole")
        partial.with_name("a.data").write_text("data")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "whole", "a.data": "data"}
    with pytest.raises(InputError, match="cannot write"), replace_files_when_whole(tmp_path / "no" / "a"):
        pass
