"""Whole runs on a small network: the same seed, kill and resume, plans applied again."""

import json
import os
import shlex
import signal
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from compressor.pipeline.plan import Plan
from compressor.report.records import Report
from tests.end_to_end.runs import FILES, infer

# A delta and an epsilon so small that only the number of evaluations ends the search.


LONG = ("--max-evaluations", 30, "--samples", 6, "--candidates", 2, "--delta", 1e-6, "--epsilon", 1e-9)


@pytest.fixture(scope="module")
def tiny_run(tiny_checkpoint, digit_images, invoke, tmp_path_factory) -> Path:
    """A search without interruption, by one worker."""
    folder = tmp_path_factory.mktemp("tiny-run") / "out"
    result = invoke("bocompress-export", *tiny_arguments(tiny_checkpoint, digit_images, folder))
    assert result.exit_code == 0, result.output
    return folder


def tiny_arguments(checkpoint: Path, images: Path, out: Path) -> list[object]:
    return [checkpoint, "--trust-pickle", "--data", images, "--input-size", 32, *LONG, "--out", out]


def test_a_search_of_two_workers_killed_goes_on_as_if_nothing_had_happened(
    tiny_run, tiny_checkpoint, digit_images, start_command, invoke, tmp_path
):
    out = tmp_path / "out"
    journal = out / "search.jsonl"
    expected = (tiny_run / "search.jsonl").read_text()
    arguments = tiny_arguments(tiny_checkpoint, digit_images, out)
    process = start_command("bocompress-export", *arguments, "--workers", 2)
    try:
        # After the sensitivities of single layers, in the middle of the plans.
        middle = len(expected.splitlines()) - 25
        while process.poll() is None and not (journal.exists() and journal.read_text().count("\n") >= middle):
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = journal.read_text()
    assert middle <= left.count("\n") < expected.count("\n")
    assert {path.name for path in out.iterdir()} == {"factors.jsonl", "search.jsonl"}
    # The last row may have been cut in two.
    journal.write_text(left + '{"evaluation": 99, "ran')
    result = invoke("bocompress-export", *arguments, "--resume")
    assert result.exit_code == 0, result.output
    assert journal.read_text() == expected
    assert (out / "plan.json").read_text() == (tiny_run / "plan.json").read_text()
    first, again = (Report.model_validate_json((f / "report.json").read_text()).search for f in (tiny_run, out))
    assert again.history == first.history
    assert (again.evaluations, again.image_passes) == (first.evaluations, first.image_passes)
    assert again.certificate == first.certificate


def test_a_resumed_search_needs_as_many_candidates_at_once(tiny_run, tiny_checkpoint, digit_images, invoke):
    arguments = tiny_arguments(tiny_checkpoint, digit_images, tiny_run)
    result = invoke("bocompress-export", *arguments, "--candidates", 3, "--resume")
    assert result.exit_code == 2
    assert "was written with other search settings; --resume needs the same" in result.stderr


def test_an_unknown_backend_is_refused_before_the_search(tiny_checkpoint, digit_images, invoke, tmp_path):
    arguments = tiny_arguments(tiny_checkpoint, digit_images, tmp_path / "out")
    result = invoke("bocompress-export", *arguments, "--workers", 2, "--backend", "nobody")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: --backend nobody cannot be used")
    assert not (tmp_path / "out").exists()


def test_ctrl_c_says_how_to_go_on(tiny_checkpoint, digit_images, start_command, tmp_path):
    journal = tmp_path / "out" / "search.jsonl"
    arguments = tiny_arguments(tiny_checkpoint, digit_images, tmp_path / "out")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
    try:
        process = start_command("bocompress-export", *arguments, "--overwrite")
    finally:
        signal.signal(signal.SIGINT, before)
    while process.poll() is None and not (journal.exists() and journal.read_text().count("\n") >= 4):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (130, "")
    first, second = stderr.splitlines()[-2:]
    assert first == f"stopped; {journal} is kept, go on with:"
    assert shlex.split(second) == ["bocompress-export", *map(str, arguments), "--resume"]
    assert journal.read_text().count("\n") >= 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"search.jsonl", "factors.jsonl"}


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
