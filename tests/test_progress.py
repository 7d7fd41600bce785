"""Progress: lines for a file or a pipe, nothing for library use, nothing ever on stdout."""

import re
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from compressor import progress
from compressor.progress import PlainProgress, Progress, TerminalProgress, progress_for_stderr


def run_stages(speaker: Progress) -> None:
    with speaker.stage("searching ranks", 20) as stage:
        for done in range(3):
            stage.update(done, f"J {done}")
    with speaker.stage("outputs of the original") as stage:
        stage.update(7)
    speaker.log("note: 2 images could not be read")


def test_plain_lines_in_order(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    run_stages(PlainProgress())
    out, err = capsys.readouterr()
    assert out == ""
    assert re.sub(r"\d+\.\d s", "TIME", err).splitlines() == [
        "searching ranks ...",
        "searching ranks: 0/20 J 0",
        "searching ranks: 1/20 J 1",
        "searching ranks: 2/20 J 2",
        "searching ranks: done in TIME",
        "outputs of the original ...",
        "outputs of the original: 7",
        "outputs of the original: done in TIME",
        "note: 2 images could not be read",
    ]


def test_quick_updates_are_no_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A log must not have a line for each of a thousand layers: by the clock, not by the count."""
    now = 100.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    with PlainProgress().stage("factorizing", 1000) as stage:
        for done in range(1000):
            now += 1 / 32
            stage.update(done)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2] for line in lines[1:-1]] == [f"{done}/1000" for done in range(159, 1000, 160)]
    assert lines[-1] == "factorizing: done in 31.2 s"


@pytest.mark.parametrize("speaker", [PlainProgress, TerminalProgress])
def test_a_failed_stage_is_not_reported_as_done(
    speaker: Callable[[], Progress], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        with speaker().stage("exporting") as stage:
            stage.update(1)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    out, err = capsys.readouterr()
    assert out == ""
    assert "done" not in err
    assert "✓" not in err


def test_library_use_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    run_stages(Progress())
    assert capfd.readouterr() == ("", "")


def test_a_terminal_keeps_one_line_for_each_stage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    run_stages(TerminalProgress())
    out, err = capsys.readouterr()
    assert out == ""
    kept = [line for line in err.splitlines() if line.strip()]
    assert [re.sub(r"\d+\.\d s", "TIME", line) for line in kept[-3:]] == [
        "✓ searching ranks TIME",
        "✓ outputs of the original TIME",
        "note: 2 images could not be read",
    ]


def test_sentences_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """File and layer names may contain brackets, which rich would take for markup."""
    for speaker in (PlainProgress(), TerminalProgress()):
        speaker.log("skipping [bold]x[/bold] and [/]")
    assert capsys.readouterr().err.splitlines() == ["skipping [bold]x[/bold] and [/]"] * 2


@pytest.mark.parametrize(("is_terminal", "expected"), [(True, TerminalProgress), (False, PlainProgress)])
def test_bars_only_where_stderr_is_a_terminal(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, expected: type[Progress]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    assert type(progress_for_stderr()) is expected
