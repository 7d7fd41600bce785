"""Progress of long stages on stderr: bars on a terminal, plain lines elsewhere, nothing for library use."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

SECONDS_BETWEEN_LINES = 5.0


class ProgressStage(Protocol):
    """A stage whose progress is shown."""

    def update(self, done: int, note: str = "") -> None:
        """Show the number of steps done, and a short note."""


class Progress:
    """Shows nothing; the base of the two that print."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[ProgressStage]:
        """Show a stage of `total` steps (None: unknown) during a with-block."""
        yield _SilentProgressStage()

    def log(self, sentence: str) -> None:
        """Print one line that stays."""


class _SilentProgressStage:
    def update(self, done: int, note: str = "") -> None:
        pass


class PlainProgress(Progress):
    """Lines on stderr, at least SECONDS_BETWEEN_LINES apart."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[ProgressStage]:
        began = time.monotonic()
        self.log(f"{title} ...")
        yield _PlainProgressStage(self, title, total)
        self.log(f"{title}: done in {time.monotonic() - began:.1f} s")

    def log(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)


class _PlainProgressStage:
    def __init__(self, progress: PlainProgress, title: str, total: int | None) -> None:
        self._progress = progress
        self._title = title
        self._of = f"/{total}" if total else ""
        self._last = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self._progress.log(f"{self._title}: {done}{self._of} {note}".rstrip())


class TerminalProgress(Progress):
    """A bar on stderr for the current stage; finished stages stay as lines."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[ProgressStage]:
        began = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn() if total else TextColumn(""),
            TimeElapsedColumn(),
            TimeRemainingColumn() if total else TextColumn(""),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with RichProgress(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(title, total=total, note="")
            yield _TerminalProgressStage(bars, task)
        self._console.print(f"[green]✓[/] {title} [dim]{time.monotonic() - began:.1f} s[/]")

    def log(self, sentence: str) -> None:
        self._console.print(sentence, highlight=False, markup=False)


class _TerminalProgressStage:
    def __init__(self, bars: RichProgress, task: object) -> None:
        self._bars = bars
        self._task = task

    def update(self, done: int, note: str = "") -> None:
        self._bars.update(self._task, completed=done, note=note)  # type: ignore[arg-type]


def progress_for_stderr() -> Progress:
    """Bars if stderr is a terminal, else plain lines."""
    return TerminalProgress() if sys.stderr.isatty() else PlainProgress()
