"""Progress of long stages on stderr: bars on a terminal, plain lines elsewhere, nothing for library use."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from compressor.remaining import ExpectedStage, RemainingTime, describe_remaining
from compressor.terminal import SafeConsole
from compressor.text import printable

SECONDS_BETWEEN_LINES = 5.0


class ProgressStage(Protocol):
    """A stage whose progress is shown."""

    def update(self, done: int, note: str = "") -> None:
        """Show the number of steps done, and a short note."""


class Progress:
    """Shows nothing; the base of the two that print, which say how long the whole run still takes."""

    def expect(self, stages: Sequence[ExpectedStage]) -> None:
        """What is to come, from which the remaining time is made."""

    @contextmanager
    def stage(self, title: str, total: int | None = None, weights: Sequence[float] = ()) -> Iterator[ProgressStage]:
        """Show a stage during a with-block.

        Args:
            title: what the stage does, in words.
            total: steps of the stage; None where their number is not known.
            weights: what the steps cost, relative to one another; empty where they cost alike or it is not known.
        """
        yield _SilentProgressStage()

    def log(self, sentence: str) -> None:
        """Print one line that stays."""


class _SilentProgressStage:
    def update(self, done: int, note: str = "") -> None:
        pass


class _TimedProgress(Progress):
    """Keeps the remaining time of the run."""

    def __init__(self) -> None:
        self.remaining = RemainingTime()

    def expect(self, stages: Sequence[ExpectedStage]) -> None:
        self.remaining.expect(stages)

    def describe_remaining(self) -> str:
        """'about 3 min left'; empty where nothing is expected."""
        return describe_remaining(self.remaining.seconds(time.monotonic()))


class PlainProgress(_TimedProgress):
    """Lines on stderr, at least SECONDS_BETWEEN_LINES apart."""

    @contextmanager
    def stage(self, title: str, total: int | None = None, weights: Sequence[float] = ()) -> Iterator[ProgressStage]:
        """See `Progress.stage`."""
        began = time.monotonic()
        self.remaining.begin(title, total, began, weights)
        self.log(f"{title} ..." + _in_brackets(self.describe_remaining()))
        yield _PlainProgressStage(self, title, total)
        self.remaining.end(time.monotonic())
        self.log(f"{title}: done in {time.monotonic() - began:.1f} s")

    def log(self, sentence: str) -> None:
        """See `Progress.log`."""
        print(printable(sentence), file=sys.stderr, flush=True)


class _PlainProgressStage:
    def __init__(self, progress: PlainProgress, title: str, total: int | None) -> None:
        self._progress = progress
        self._title = title
        self._of = f"/{total}" if total else ""
        self._last = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        self._progress.remaining.step(done, now)
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            left = _in_brackets(self._progress.describe_remaining())
            self._progress.log(f"{self._title}: {done}{self._of} {note}".rstrip() + left)


def _in_brackets(left: str) -> str:
    return f" ({left})" if left else ""


class TerminalProgress(_TimedProgress):
    """A bar on stderr for the current stage, with the time left of the run; finished stages stay as lines."""

    def __init__(self) -> None:
        super().__init__()
        self._console = SafeConsole(stderr=True)

    @contextmanager
    def stage(self, title: str, total: int | None = None, weights: Sequence[float] = ()) -> Iterator[ProgressStage]:
        """See `Progress.stage`."""
        began = time.monotonic()
        self.remaining.begin(title, total, began, weights)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn() if total else TextColumn(""),
            TimeElapsedColumn(),
            _RemainingColumn(self),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with RichProgress(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(title, total=total, note="")
            yield _TerminalProgressStage(self, bars, task)
        self.remaining.end(time.monotonic())
        self._console.print(f"[green]✓[/] {title} [dim]{time.monotonic() - began:.1f} s[/]")

    def log(self, sentence: str) -> None:
        """See `Progress.log`."""
        self._console.print(sentence, highlight=False, markup=False)


class _RemainingColumn(ProgressColumn):
    """The time left of the run, not of the stage."""

    def __init__(self, progress: TerminalProgress) -> None:
        super().__init__()
        self._progress = progress

    def render(self, task: Task) -> Text:
        return Text(self._progress.describe_remaining(), style="cyan")


class _TerminalProgressStage:
    def __init__(self, progress: TerminalProgress, bars: RichProgress, task: TaskID) -> None:
        self._progress = progress
        self._bars = bars
        self._task = task

    def update(self, done: int, note: str = "") -> None:
        self._progress.remaining.step(done, time.monotonic())
        self._bars.update(self._task, completed=done, note=note)


def progress_for_stderr() -> Progress:
    """Bars if stderr is a terminal, else plain lines."""
    return TerminalProgress() if sys.stderr.isatty() else PlainProgress()
