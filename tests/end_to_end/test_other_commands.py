"""The other commands on what a run left."""

import shutil

import numpy as np
import torch

from benchmarks.records import BenchmarkRecord
from compressor import apply_plan
from compressor.pipeline.compress import Settings
from compressor.report.formatting import format_bytes
from tests.end_to_end.runs import FILES, infer


def test_report_writes_the_same_page_again(run, invoke, tmp_path):
    shutil.copy(run.folder / "report.json", tmp_path)
    result = invoke("bocompress", "report", tmp_path)
    assert result.exit_code == 0
    assert (tmp_path / "report.html").read_text() == (run.folder / "report.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.html"}
    assert result.stdout.strip() == str(tmp_path / "report.html")


def test_benchmark_measures_two_files_and_one(run, invoke):
    both = [run.folder / "original.onnx", run.folder / "model.onnx"]
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    result = invoke("bocompress", "benchmark", *both, "--input-size", 32, "--json")
    assert result.exit_code == 0, result.output
    record = BenchmarkRecord.model_validate_json(result.stdout)
    assert [file.onnx_bytes for file in record.files] == list(run.report.onnx_bytes.model_dump().values())
    assert [file.gzip_bytes for file in record.files] == list(run.report.gzip_bytes.model_dump().values())
    assert all(timing.median_ms > 0 for setting in record.settings for timing in setting.timings)
    alone = invoke("bocompress", "benchmark", both[1], "--input-size", 32)
    assert alone.exit_code == 0
    assert format_bytes(record.files[1].onnx_bytes) in alone.stdout
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_apply_plan_gives_the_run_again(run, digits, test_images, pictures, tmp_path):
    """From Python, with the torchvision network itself in place of its checkpoint."""
    result = apply_plan(
        digits.model, test_images, run.plan, tmp_path / "again", Settings(factors=None, recalibrate=False)
    )
    assert {path.name for path in (tmp_path / "again").iterdir()} == FILES
    first, again = (infer(folder / "model.onnx", pictures[0]) for folder in (run.folder, tmp_path / "again"))
    assert np.abs(first - again).max() <= 1e-6 * np.abs(first).max()
    with torch.inference_mode():
        outputs = result.model(torch.from_numpy(pictures[0])).numpy()
    assert np.abs(first - outputs).max() <= 1e-4 * np.abs(first).max()
    assert result.report.search is None
    assert result.report.ratio == run.report.ratio
    assert result.report.params == run.report.params
    assert result.report.macs == run.report.macs
    assert result.report.gamma == run.report.gamma
