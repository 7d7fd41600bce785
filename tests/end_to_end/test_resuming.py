"""Whole runs on a small network that are killed, stopped and resumed."""

import os
import shlex
import signal
import time

import pytest

from compressor.report.records import Report
from compressor.search.optimizer import Search
from tests.end_to_end.runs import tiny_arguments


@pytest.mark.hard
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


def test_an_interrupted_search_says_how_to_go_on(tiny_checkpoint, digit_images, invoke, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    words = ["bocompress-export", *map(str, tiny_arguments(tiny_checkpoint, digit_images, tmp_path / "out"))]
    monkeypatch.setattr(Search, "_test", stop)
    monkeypatch.setattr("sys.argv", words)
    result = invoke(*words)
    assert (result.exit_code, result.stdout) == (130, "")
    first, second = result.stderr.splitlines()[-2:]
    assert first == f"stopped; {tmp_path / 'out' / 'search.jsonl'} is kept, go on with:"
    assert shlex.split(second) == [*words, "--resume"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"search.jsonl", "factors.jsonl"}


@pytest.mark.slow
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
