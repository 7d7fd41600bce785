"""What the commands make of a finished run: its report, a benchmark, and going on with it."""

import shutil
from pathlib import Path

import pytest

from compressor.report.records import Report
from tests.cli.outcomes import ALL_FILES, SMALL


@pytest.fixture(scope="module")
def finished(tiny_checkpoint, digit_images, tmp_path_factory, invoke) -> Path:
    """A whole small run, one of its images broken."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(digit_images, folder / "images")
    next((folder / "images").rglob("*.png")).write_bytes(b"not an image")
    out = folder / "out"
    result = invoke(
        "bocompress-export", tiny_checkpoint, "--trust-pickle", "--data", folder / "images", *SMALL, "--out", out
    )
    assert result.exit_code == 0, result.output
    assert "1 image could not be read" in result.output
    return out


def test_one_broken_image_is_skipped_and_counted(finished):
    report = Report.model_validate_json((finished / "report.json").read_text())
    assert report.images.unreadable == 1
    assert (report.images.calibration, report.images.search, report.images.test_images) == (35, 42, 42)
    assert any("1 image could not be read" in warning for warning in report.warnings)
    assert {path.name for path in finished.iterdir()} == ALL_FILES


# --- Where to write ----------------------------------------------------------------------------------------


def test_a_folder_that_holds_other_files_is_left_alone(refuse, squeezenet, finished, tmp_path):
    folder = tmp_path / "holiday"
    shutil.copytree(finished, folder)
    (folder / "photo.jpg").touch()
    for command in (
        ("bocompress-export", squeezenet),
        ("bocompress-export", squeezenet, "--resume"),
        ("bocompress", "apply", squeezenet, finished / "plan.json"),
    ):
        sentence = refuse(*command, *SMALL[:2], "--out", folder)
        assert "already holds other files" in sentence
        assert str(folder) in sentence
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refuse("bocompress-export", squeezenet, "--out", tmp_path / "file")


# --- report and benchmark ----------------------------------------------------------------------------------


def test_report_without_figures(refuse, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "report.json").write_text('{"arch": "resnet18"}')
    assert "report.json" in refuse("bocompress", "report", tmp_path / "empty")
    assert "report.json" in refuse("bocompress", "report", tmp_path / "wrong")
    assert "missing" in refuse("bocompress", "report", tmp_path / "missing")


def test_benchmark_of_what_is_no_network(refuse, tmp_path, finished):
    (tmp_path / "text.onnx").write_text("not a network")
    (tmp_path / "empty.onnx").touch()
    for name in ("missing.onnx", "text.onnx", "empty.onnx", "here"):
        assert name in refuse("bocompress", "benchmark", tmp_path / name)
        assert name in refuse("bocompress", "benchmark", finished / "model.onnx", tmp_path / name)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--threads", "1,0", "not a list of whole numbers from 1"),
        ("--threads", "two", "not a list of whole numbers from 1"),
        ("--batch-size", "1,,2", "not a list of whole numbers from 1"),
        ("--batch-size", "4096", "not a list of whole numbers from 1"),
        ("--provider", "cpu,gpu", "not a list of these: cpu, cuda, tensorrt, auto"),
        ("--provider", "tensorrt", "cannot run on tensorrt"),
    ],
)
def test_benchmark_of_settings_that_cannot_be(refuse, finished, option, value, words):
    if value == "tensorrt":
        from exporters.providers import TENSORRT, available_providers

        if TENSORRT in available_providers():
            pytest.skip("TensorRT is here")
    assert words in refuse("bocompress", "benchmark", finished / "model.onnx", option, value)


def test_benchmark_into_a_folder_of_something_else(refuse, finished, tmp_path):
    (tmp_path / "here" / "note.txt").write_text("mine")
    assert "already holds other files" in refuse(
        "bocompress", "benchmark", finished / "model.onnx", "--out", tmp_path / "here"
    )


def test_benchmark_writes_its_pages_and_again(invoke, finished, tmp_path):
    from benchmarks.records import BenchmarkRecord

    files = [finished / "original.onnx", finished / "model.onnx"]
    for batch_sizes in ("1", "1,2,1"):
        arguments = [*files, "--provider", "cpu", "--batch-size", batch_sizes, "--out", tmp_path / "out"]
        result = invoke("bocompress", "benchmark", *arguments)
        assert result.exit_code == 0, result.output
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            "benchmark.json",
            "benchmark.md",
            "benchmark.html",
        }
    record = BenchmarkRecord.model_validate_json((tmp_path / "out" / "benchmark.json").read_text())
    assert [setting.batch_size for setting in record.settings] == [1, 2]
    for words in ("original.onnx", "model.onnx", "interval", "against itself", str(tmp_path / "out")):
        assert words in result.stdout


# --- --resume ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["--seed", 1], "images, search settings"),
        (["--gamma", 2], "gamma"),
        (["--form", "rate"], "form"),
        (["--layers", "4"], "layers"),
        (["--samples", 5], "search settings"),
    ],
)
def test_resuming_with_other_settings_is_refused(refuse, finished, tiny_checkpoint, tmp_path, changes, reason):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(finished / "search.jsonl", out)
    data = finished.parent / "images"
    arguments = [tiny_checkpoint, "--trust-pickle", "--data", data, *SMALL, "--resume", "--out", out]
    sentence = refuse("bocompress-export", *arguments, *changes)
    assert str(out / "search.jsonl") in sentence
    assert reason in sentence


@pytest.mark.parametrize("content", [b"no journal\n", b"{}\n", b"[]\n", b"\xff\n"])
def test_resuming_from_what_is_no_journal(refuse, finished, tiny_checkpoint, tmp_path, content):
    out = tmp_path / "out"
    out.mkdir()
    (out / "search.jsonl").write_bytes(content)
    data = finished.parent / "images"
    arguments = [tiny_checkpoint, "--trust-pickle", "--data", data, *SMALL, "--resume", "--out", out]
    assert "search.jsonl" in refuse("bocompress-export", *arguments)


def test_resuming_after_a_stop_behind_the_search(invoke, finished, tiny_checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("factors.jsonl", "search.jsonl", "plan.json", "compressed.safetensors", "original.onnx"):
        shutil.copy(finished / name, out)
    (out / ".model.onnx.1.tmp").write_bytes(b"half written")
    data = finished.parent / "images"
    arguments = [tiny_checkpoint, "--trust-pickle", "--data", data, *SMALL, "--resume", "--out", out]
    result = invoke("bocompress-export", *arguments)
    assert result.exit_code == 0, result.output
    assert (out / "plan.json").read_text() == (finished / "plan.json").read_text()
    assert {path.name for path in out.iterdir()} == ALL_FILES
