"""Runs on a GPU from the command line; skipped where there is none."""

import pytest
import torch

from compressor.report.records import Report
from exporters.providers import available_providers
from exporters.session import CUDA

DEVICE = "cuda"
QUICK = ("--input-size", 32, "--samples", 10, "--trust-pickle", "--gamma", 0.05, "--max-evaluations", 20)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
def test_a_plan_searched_and_tuned_on_the_gpu_is_as_good_on_the_cpu(
    invoke, tiny_checkpoint, digit_images, tmp_path
) -> None:
    base = ("bocompress-export", tiny_checkpoint, *QUICK, "--data", digit_images)
    tuned = invoke(*base, "--device", DEVICE, "--finetune", 1, "--autocast", "--out", tmp_path / "gpu")
    assert tuned.exit_code == 0, tuned.stderr
    found = Report.model_validate_json((tmp_path / "gpu" / "report.json").read_text())
    assert found.tuning is not None
    assert found.export_check.max_rel_error < 1e-3  # torch on the GPU against ONNX Runtime on the CPU
    plain = [invoke(*base, "--device", device, "--out", tmp_path / device) for device in (DEVICE, "cpu")]
    assert [done.exit_code for done in plain] == [0, 0]
    reports = [tmp_path / device / "report.json" for device in (DEVICE, "cpu")]
    gpu, cpu = (Report.model_validate_json(path.read_text()) for path in reports)
    assert gpu.ratio == pytest.approx(cpu.ratio, rel=0.2)
    assert gpu.fidelity.function_norm == pytest.approx(cpu.fidelity.function_norm, rel=0.3)


on_gpu = pytest.mark.skipif(CUDA not in available_providers(), reason="no session of ONNX Runtime stays on a GPU here")


@on_gpu
def test_files_are_timed_on_the_gpu(invoke, tiny_checkpoint, digit_images, tmp_path) -> None:
    out = tmp_path / "out"
    assert invoke("bocompress-export", tiny_checkpoint, *QUICK, "--data", digit_images, "--out", out).exit_code == 0
    files = (out / "original.onnx", out / "model.onnx")
    done = invoke("bocompress", "benchmark", *files, "--provider", "cpu,cuda", "--out", tmp_path / "times")
    assert done.exit_code == 0, done.stderr
    assert CUDA in (tmp_path / "times" / "benchmark.json").read_text()


@on_gpu
def test_ranks_are_searched_for_time_on_the_gpu(invoke, tiny_checkpoint, digit_images, tmp_path) -> None:
    time = ("--cost", "latency", "--rank-multiple", "auto", "--provider", "cuda")
    base = ("bocompress-export", tiny_checkpoint, *QUICK, "--data", digit_images)
    done = invoke(*base, *time, "--out", tmp_path / "out")
    # Layers this small may all be slower in two parts, which is an error in one sentence.
    assert done.exit_code == 0 or "times as much time as the layer itself" in done.stderr
