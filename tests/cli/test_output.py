"""Where a command writes, plans that it applies, and output that others read."""

import json
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from compressor.pipeline.plan import Plan
from compressor.report.records import Report
from exporters.providers import CUDA, available_providers
from tests.cli.outcomes import ALL_FILES, SMALL, the_sentence


def test_a_folder_that_cannot_be_made(refuse, squeezenet, digit_images, tmp_path):
    (tmp_path / "file").write_text("in the way")
    sentence = refuse("bocompress-export", squeezenet, "--data", digit_images, *SMALL, "--out", tmp_path / "file/out")
    assert str(tmp_path / "file") in sentence


@contextmanager
def files_of_at_most(size_bytes: int):
    """No file may grow beyond a size, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def write_plan(path: Path, rank: int | None = 3, **changes: object) -> Path:
    """A plan for the third convolution of the tiny network, whose cap is 48."""
    layer = {"name": "4", "method": "spatial", "rank": rank, "break_even_rank": 48} | changes
    path.write_text(json.dumps({"version": 1, "arch": "sequential", "layers": [layer]}))
    return path


@pytest.mark.skipif(CUDA in available_providers(), reason="ONNX Runtime has a GPU here")
def test_a_provider_that_is_not_there_is_refused_before_the_search(refuse, tiny_checkpoint, digit_images, tmp_path):
    arguments = [tiny_checkpoint, "--trust-pickle", "--data", digit_images, *SMALL, "--out", tmp_path / "out"]
    assert "--provider cuda: this ONNX Runtime" in refuse("bocompress-export", *arguments, "--provider", "cuda")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("limit_bytes", "culprit", "whole"),
    [
        (100, "plan.json", set()),
        (5_000, "compressed.safetensors", {"plan.json"}),
        (60_000, "original.onnx", {"plan.json", "compressed.safetensors"}),
    ],
)
def test_a_disk_that_is_full(invoke, tiny_checkpoint, digit_images, tmp_path, limit_bytes, culprit, whole):
    plan, out = write_plan(tmp_path / "plan.json"), tmp_path / "out"
    arguments = ["apply", tiny_checkpoint, plan, "--trust-pickle", "--data", digit_images, "--input-size", 32]
    with files_of_at_most(limit_bytes):
        result = invoke("bocompress", *arguments, "--out", out)
    assert result.exit_code == 2
    assert culprit in the_sentence(result.stderr)
    assert {path.name for path in out.glob("*")} == whole


def test_a_disk_that_is_full_during_the_search(invoke, tiny_checkpoint, digit_images, tmp_path):
    # Without trials of factors their journal is the shorter one.
    chosen = ["--factors", "weight", "--method", "spatial", "--out", tmp_path / "out"]
    arguments = [tiny_checkpoint, "--trust-pickle", "--data", digit_images, *SMALL, *chosen]
    with files_of_at_most(1500):
        result = invoke("bocompress-export", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "search.jsonl" in the_sentence(result.stderr)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"factors.jsonl", "search.jsonl"}
    # The journal ends in a line that was cut off, and the search goes on from it.
    assert not (tmp_path / "out" / "search.jsonl").read_text().endswith("\n")
    result = invoke("bocompress-export", *arguments, "--resume")
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == ALL_FILES


# --- apply -------------------------------------------------------------------------------------------------


def test_plans_that_do_not_fit(refuse, tiny_checkpoint, digit_images, tmp_path):
    plan = tmp_path / "plan.json"
    layer = {"name": "4", "method": "spatial", "rank": 3, "break_even_rank": 48}
    good = {"version": 1, "arch": "sequential", "layers": [layer]}
    cases = [
        ("not JSON", "not valid JSON"),
        (json.dumps([good]), "is not a plan"),
        (json.dumps(good | {"layers": [layer | {"name": "conv9"}]}), "'conv9'"),
        (json.dumps(good | {"layers": [layer | {"name": "1"}]}), "'1'"),
        (json.dumps(good | {"layers": [layer | {"rank": 49}]}), "rank 49, above its break-even rank of 48"),
        (json.dumps(good | {"layers": [layer | {"rank": 0}]}), "layers.0.rank"),
        (json.dumps(good | {"layers": [layer | {"method": "svd"}]}), "wants svd for 4, to which it does not apply"),
        (json.dumps(good | {"layers": [layer | {"factors": "best"}]}), "layers.0.factors"),
        (json.dumps(good | {"layers": [layer, layer]}), "more than once"),
        (json.dumps(good | {"arch": "resnet18"}), "the plan is for resnet18, the checkpoint is sequential"),
        (json.dumps(good | {"speed": 9}), "speed"),
        (json.dumps(good | {"prune_fraction": 1.5}), "prune_fraction"),
    ]
    for text, words in cases:
        plan.write_text(text)
        sentence = refuse(
            "bocompress", "apply", tiny_checkpoint, plan, "--trust-pickle", "--data", digit_images, *SMALL[:2]
        )
        assert words in sentence
    assert "cannot read the plan" in refuse("bocompress", "apply", tiny_checkpoint, tmp_path / "none.json")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b""])
def test_a_plan_that_is_no_text(refuse, tiny_checkpoint, tmp_path, content):
    (tmp_path / "plan.json").write_bytes(content)
    assert "is not a plan" in refuse("bocompress", "apply", tiny_checkpoint, tmp_path / "plan.json")


# --- Output that others read -------------------------------------------------------------------------------


def test_json_on_stdout_is_the_report_and_nothing_else(invoke, tiny_checkpoint, digit_images, tmp_path):
    plan = write_plan(tmp_path / "plan.json", rank=5)
    result = invoke(
        "bocompress",
        *("apply", tiny_checkpoint, plan, "--trust-pickle", "--data", digit_images),
        *(*SMALL[:2], "--json", "--out", tmp_path / "Zwölf Größen ☃"),
    )
    assert result.exit_code == 0, result.output
    report = Report.model_validate_json(result.stdout)
    assert result.stdout == (tmp_path / "Zwölf Größen ☃" / "report.json").read_text()
    assert report.search is None
    assert {layer.name: layer.rank for layer in report.layers if layer.rank} == {"4": 5}
    # 32 channels through 3 x 1 to rank 5, and through 1 x 3 to 32.
    (row,) = [layer for layer in report.layers if layer.name == "4"]
    assert row.params_compressed == 5 * 32 * 3 + 5 * 32 * 3
    assert Plan.model_validate_json((tmp_path / "Zwölf Größen ☃" / "plan.json").read_text()).layers[0].rank == 5
