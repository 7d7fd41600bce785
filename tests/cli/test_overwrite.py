"""--overwrite and --quiet in whole runs of a tiny network."""

import json
import shutil
from pathlib import Path

import pytest

from tests.unmeasured import without_measuring

PLAN = {
    "version": 1,
    "arch": "sequential",
    "layers": [{"name": "4", "method": "spatial", "rank": 3, "break_even_rank": 48}],
}


@pytest.fixture(scope="module")
def arguments(tiny_checkpoint, digit_images, tmp_path_factory) -> list[object]:
    """`apply` of a plan to the tiny network."""
    plan = tmp_path_factory.mktemp("plan") / "plan.json"
    plan.write_text(json.dumps(PLAN))
    return ["apply", tiny_checkpoint, plan, "--trust-pickle", "--data", digit_images, "--input-size", 32]


@pytest.fixture(scope="module")
def finished(arguments, invoke, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    with without_measuring():
        result = invoke("bocompress", *arguments, "--out", out)
    assert result.exit_code in (0, 3), result.output
    return out


@pytest.fixture
def out(finished, tmp_path) -> Path:
    """A copy of a finished run, one of its files marked."""
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out" / "original.onnx").write_text("of the earlier run")
    return tmp_path / "out"


def test_a_finished_run_is_replaced_and_quiet_says_little(arguments, invoke, out) -> None:
    with without_measuring():
        result = invoke("bocompress", *arguments, "--out", out, "--overwrite", "--quiet")
    assert result.exit_code in (0, 3), result.output
    assert (out / "original.onnx").read_text() != "of the earlier run"
    assert result.stderr == ""
    assert 0 < len(result.stdout.splitlines()) <= 4
    assert str(out) in result.stdout


def test_without_overwrite_the_sentence_names_the_two_ways(arguments, invoke, out) -> None:
    result = invoke("bocompress", *arguments, "--out", out)
    assert result.exit_code == 2
    assert "--resume goes on with the run there, --overwrite replaces it" in result.stderr


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--data", "missing"], "missing"),
        (["--device", "no such"], "'no such'"),
        (["--resume"], "--resume and --overwrite contradict each other"),
        (["--finetune-by", "labels"], "--finetune-by is for fine-tuning"),
        (["--train-data", "missing"], "--train-data"),
    ],
)
def test_nothing_is_lost_before_the_inputs_are_good(arguments, invoke, out, extra, words, monkeypatch) -> None:
    monkeypatch.chdir(out.parent)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    result = invoke("bocompress", *arguments, "--out", out, "--overwrite", *extra)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_plan_within_the_folder_is_not_removed_under_its_own_feet(arguments, invoke, out) -> None:
    command, checkpoint, _, *rest = arguments
    result = invoke("bocompress", command, checkpoint, out / "plan.json", *rest, "--out", out, "--overwrite")
    assert result.exit_code == 2
    assert "lies in" in result.stderr
    assert (out / "plan.json").exists()


def test_errors_show_in_spite_of_quiet(invoke, tmp_path) -> None:
    result = invoke("bocompress-export", tmp_path / "missing.pt", "--quiet")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr
