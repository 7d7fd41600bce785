"""How long a run still takes: stages weighted by what they are expected to cost, corrected by what they do cost.

Stages differ by a hundredfold, and steps within a stage, too: a share of the steps says little about the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

PRIOR_SHARE = 0.02  # of all expected seconds: how much must be done before the measured speed counts for half
OWN_SHARE = 0.2  # of a stage's expected seconds: likewise, before its own speed counts for half
MIN_LEFT = 0.05  # of its time so far: what a stage takes beyond what was expected


@dataclass(frozen=True)
class ExpectedStage:
    """What a stage is expected to cost.

    Attributes:
        title: that its title begins with.
        steps: seconds of each of its steps in order; one step where it does not count any.
    """

    title: str
    steps: Sequence[float]

    @property
    def seconds(self) -> float:
        """All its steps."""
        return sum(self.steps)


@dataclass
class _Running:
    """The stage that is running."""

    expected: ExpectedStage
    began: float
    total: int | None
    done: float = 0.0  # expected seconds of the steps done
    next: float = 0.0  # expected seconds of the step after them
    stepped: float = 0.0  # when that began


@dataclass
class RemainingTime:
    """Seconds left of a run, by any clock that its caller reads.

    What is expected may be wrong by a factor: what stages took so far over what was expected of them corrects the
    others, the more so the more of the run is done. Stages that nothing was expected of are left out.
    """

    _left: list[ExpectedStage] = field(default_factory=list)
    _expected_done: float = 0.0
    _seconds_done: float = 0.0
    _running: _Running | None = None

    def expect(self, stages: Sequence[ExpectedStage]) -> None:
        """What is to come, in order, in place of what was expected before."""
        self._left = list(stages)

    def begin(self, title: str, total: int | None, now: float) -> None:
        """A stage of `total` steps begins; stages expected before it are taken to be skipped."""
        for place, expected in enumerate(self._left):
            if title.startswith(expected.title):
                self._left = self._left[place + 1 :]
                self._running = _Running(expected, now, total)
                self.step(0, now)
                return

    def step(self, done: int, now: float) -> None:
        """So many steps of the running stage are done."""
        running = self._running
        if running is None:
            return
        total = running.total or 1
        steps = running.expected.steps
        if len(steps) != total:
            steps = [running.expected.seconds / total] * total
        done = min(done, total) if running.total else 0
        running.done, running.stepped = sum(steps[:done]), now
        running.next = steps[done] if done < total else 0.0

    def end(self, now: float) -> None:
        """The running stage is over."""
        if self._running is not None:
            self._expected_done += self._running.expected.seconds
            self._seconds_done += now - self._running.began
            self._running = None

    def seconds(self, now: float) -> float | None:
        """Seconds left; None where nothing is expected."""
        if self._running is None and not self._left:
            return None
        own = self._own_left(self._running, now) if self._running is not None else 0.0
        return own + sum(stage.seconds for stage in self._left) * self._speed()

    def _own_left(self, running: _Running, now: float) -> float:
        """Seconds left of the running stage: its steps to come at its own speed, the one begun as far as it is."""
        weight = OWN_SHARE * running.expected.seconds or 1.0
        speed = (running.stepped - running.began + weight * self._speed()) / (running.done + weight)
        after = (running.expected.seconds - running.done - running.next) * speed
        begun = max(running.next * speed - (now - running.stepped), 0.0)
        return max(after + begun, MIN_LEFT * (now - running.began))

    def _speed(self) -> float:
        """Seconds per expected second so far; 1 before anything is done."""
        done, seconds = self._expected_done, self._seconds_done
        if self._running is not None:
            done += self._running.done
            seconds += self._running.stepped - self._running.began
        prior = PRIOR_SHARE * (done + sum(stage.seconds for stage in self._left))
        return (seconds + prior) / (done + prior) if done + prior else 1.0


def describe_remaining(seconds: float | None) -> str:
    """'about 3 min left', as precise as it is known."""
    if seconds is None:
        return ""
    if seconds < 10:
        return "a few seconds left"
    if seconds < 55:
        return f"about {10 * round(seconds / 10):d} s left"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {minutes} min left"
    return f"about {minutes // 60} h {minutes % 60:02d} min left"
