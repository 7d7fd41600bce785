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
        steps: seconds of each of its steps in order; one step where it does not count any. Where it counts to another
            number, it is as far through these as through its own.
        before: seconds before its first step.
        may_end_early: whether the number that it counts to is a limit, so that these steps are counted themselves.
    """

    title: str
    steps: Sequence[float]
    before: float = 0.0
    may_end_early: bool = False

    @property
    def seconds(self) -> float:
        """The whole stage."""
        return self.before + sum(self.steps)


@dataclass
class _Running:
    """The stage that is running."""

    expected: ExpectedStage
    steps: Sequence[float]  # expected seconds, of its own where it gave their weights
    total: int | None
    began: float
    counted: float  # when its first step began
    stepped: float  # when the step in progress began
    done: float = 0.0  # expected seconds of the steps done
    next: float = 0.0  # expected seconds of the step in progress


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

    def begin(self, title: str, total: int | None, now: float, weights: Sequence[float] = ()) -> None:
        """A stage begins; stages expected before it are taken to be skipped.

        Args:
            title: as `Progress.stage` has it.
            total: its steps; None where their number is not known.
            now: in seconds, by any clock that is used throughout.
            weights: what the steps cost, relative to one another; empty where it is not known.
        """
        for place, expected in enumerate(self._left):
            if title.startswith(expected.title):
                self._left = self._left[place + 1 :]
                whole = sum(expected.steps) / sum(weights) if sum(weights) else 0.0
                steps = [whole * weight for weight in weights] if whole else expected.steps
                self._running = _Running(expected, steps, total, now, now, now, next=sum(steps[: 1 if total else None]))
                return

    def step(self, done: int, now: float) -> None:
        """So many steps of the running stage are done."""
        running = self._running
        if running is None or not running.total:
            return
        stride = 1.0 if running.expected.may_end_early else len(running.steps) / running.total
        running.done = _sum_to(running.steps, done * stride)
        running.next = _sum_to(running.steps, (done + 1) * stride) - running.done
        running.stepped = now
        if not done:
            running.counted = now

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
        whole, elapsed = sum(running.steps), now - running.began
        weight = OWN_SHARE * whole or 1.0
        speed = (running.stepped - running.counted + weight * self._speed()) / (running.done + weight)
        begun = max(running.next * speed - (now - running.stepped), 0.0)
        return max((whole - running.done - running.next) * speed + begun, MIN_LEFT * elapsed)

    def _speed(self) -> float:
        """Seconds per expected second so far; 1 before anything is done."""
        done, seconds = self._expected_done, self._seconds_done
        if self._running is not None:
            done += self._running.done
            seconds += self._running.stepped - self._running.counted
        prior = PRIOR_SHARE * (done + sum(stage.seconds for stage in self._left))
        return (seconds + prior) / (done + prior) if done + prior else 1.0


def _sum_to(steps: Sequence[float], place: float) -> float:
    """The sum of the first `place` steps, the last of them in part."""
    whole = min(int(place), len(steps))
    part = steps[whole] * (place - whole) if whole < len(steps) else 0.0
    return sum(steps[:whole]) + part


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
