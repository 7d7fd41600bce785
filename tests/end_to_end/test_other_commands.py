"""The other commands on what a run left, and its plan applied again."""

import json
import shutil

import numpy as np
import onnx
import torch

from benchmarks.records import BenchmarkRecord
from compressor import apply_plan
from compressor.data.folders import load_folder
from compressor.network.checkpoint import Transform
from compressor.pipeline.plan import Plan
from compressor.report.formatting import format_bytes
from compressor.report.records import Report
from tests.end_to_end.runs import FILES, infer


def test_report_writes_the_same_page_again(tiny_run, invoke, tmp_path):
    shutil.copy(tiny_run / "report.json", tmp_path)
    result = invoke("bocompress", "report", tmp_path)
    assert result.exit_code == 0
    assert (tmp_path / "report.html").read_text() == (tiny_run / "report.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.html"}
    assert result.stdout.strip() == str(tmp_path / "report.html")


def test_benchmark_measures_two_files_and_one(tiny_run, invoke):
    both = [tiny_run / "original.onnx", tiny_run / "model.onnx"]
    report = Report.model_validate_json((tiny_run / "report.json").read_text())
    before = {path: path.read_bytes() for path in tiny_run.rglob("*") if path.is_file()}
    result = invoke("bocompress", "benchmark", *both, "--input-size", 32, "--json")
    assert result.exit_code == 0, result.output
    record = BenchmarkRecord.model_validate_json(result.stdout)
    assert [file.onnx_bytes for file in record.files] == list(report.onnx_bytes.model_dump().values())
    assert [file.gzip_bytes for file in record.files] == list(report.gzip_bytes.model_dump().values())
    assert all(timing.median_ms > 0 for setting in record.settings for timing in setting.timings)
    alone = invoke("bocompress", "benchmark", both[1], "--input-size", 32)
    assert alone.exit_code == 0
    assert format_bytes(record.files[1].onnx_bytes) in alone.stdout
    assert {path: path.read_bytes() for path in tiny_run.rglob("*") if path.is_file()} == before


def test_apply_plan_gives_the_run_again(tiny_run, tiny_checkpoint, digit_images, pictures, tmp_path):
    """From Python, with the network itself in place of its checkpoint."""
    plan = Plan.model_validate_json((tiny_run / "plan.json").read_text())
    report = Report.model_validate_json((tiny_run / "report.json").read_text())
    network = torch.load(tiny_checkpoint, weights_only=False)
    images = load_folder(digit_images, Transform(32, 32), 1500, 0)
    result = apply_plan(network, images, plan, tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == FILES
    first, again = (infer(folder / "model.onnx", pictures[0]) for folder in (tiny_run, tmp_path / "again"))
    with torch.inference_mode():
        outputs = result.model(torch.from_numpy(pictures[0])).numpy()
    assert np.abs(again - outputs).max() <= 1e-4 * np.abs(again).max()
    assert np.abs(first - again).max() <= 1e-6 * np.abs(first).max()
    assert result.report.search is None
    assert result.report.params_compressible == report.params_compressible
    assert result.report.params == report.params
    assert result.report.macs == report.macs
    assert result.report.gamma == report.gamma


def test_apply_gives_a_run_again_from_its_plan(tiny_run, tiny_checkpoint, digit_images, invoke, pictures, tmp_path):
    result = invoke(
        "bocompress",
        *("apply", tiny_checkpoint, tiny_run / "plan.json", "--trust-pickle", "--data", digit_images),
        *("--input-size", 32, "--out", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"infer.py"}
    first, again = (infer(folder / "model.onnx", pictures[0]) for folder in (tiny_run, tmp_path / "out"))
    assert np.abs(first - again).max() <= 1e-6 * np.abs(first).max()
    plans = [Plan.model_validate_json((f / "plan.json").read_text()) for f in (tiny_run, tmp_path / "out")]
    assert [(row.name, row.rank) for row in plans[0].layers] == [(row.name, row.rank) for row in plans[1].layers]
    reports = [Report.model_validate_json((f / "report.json").read_text()) for f in (tiny_run, tmp_path / "out")]
    assert reports[0].fidelity == reports[1].fidelity
    assert reports[1].search is None


def test_a_plan_edited_by_hand_is_applied(tiny_run, tiny_checkpoint, digit_images, invoke, tmp_path):
    plan = json.loads((tiny_run / "plan.json").read_text())
    edited = next(row for row in plan["layers"] if row["name"] == "4")
    edited.update(method="spatial", rank=7 if edited["rank"] != 7 else 8)
    removed = plan["layers"].pop(0)
    # A layer that loses rank is in no group that loses channels.
    plan["layers"] = [row for row in plan["layers"] if row["method"] != "channels"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    result = invoke(
        "bocompress",
        *("apply", tiny_checkpoint, tmp_path / "plan.json", "--trust-pickle", "--data", digit_images),
        *("--input-size", 32, "--out", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.output
    shapes = {row.name: list(row.dims) for row in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}.values()
    assert [edited["rank"], 32, 3, 1] in shapes
    assert [32, edited["rank"], 1, 3] in shapes
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_text())
    (row,) = [layer for layer in report.layers if layer.name == removed["name"]]
    assert (row.rank, row.skipped) == (None, "not in the plan")
