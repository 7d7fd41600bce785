"""The time that is left of a run, by a fake clock: no test of time measures any."""

from collections.abc import Iterator, Sequence

import pytest

from compressor.progress import PlainProgress
from compressor.remaining import ExpectedStage, RemainingTime, describe_remaining

EXPECTED = [
    ExpectedStage("factorizing layers", [1.0] * 10 + [4.0] * 5 + [20.0] * 3),
    ExpectedStage("searching ranks", [30.0]),
    ExpectedStage("reconstructing layers", [1.0] * 10 + [4.0] * 5 + [20.0] * 3),
    ExpectedStage("exporting and verifying ONNX", [10.0, 10.0]),
]


def estimates(actual: Sequence[Sequence[float]]) -> Iterator[tuple[float, float, float]]:
    """Runs the stages with the actual seconds of their steps; yields time, seconds left by the estimate and in truth
    after every step."""
    remaining, now = RemainingTime(), 0.0
    remaining.expect(EXPECTED)
    whole = sum(map(sum, actual))
    for expected, steps in zip(EXPECTED, actual, strict=True):
        remaining.begin(f"{expected.title} and more", len(steps), now)
        for done, seconds in enumerate(steps, 1):
            now += seconds
            remaining.step(done, now)
            left = remaining.seconds(now)
            assert left is not None
            yield now / whole, left, whole - now
        remaining.end(now)
    assert remaining.seconds(now) is None


@pytest.mark.parametrize("speed", [0.2, 1.0, 5.0])
def test_on_a_machine_of_any_speed_the_time_left_is_right_by_half_from_a_quarter_on(speed: float) -> None:
    actual = [[speed * step for step in stage.steps] for stage in EXPECTED]
    for share, left, truth in estimates(actual):
        if 0.25 <= share <= 0.95:
            assert truth / 1.5 < left < 1.5 * truth


def test_stages_that_cost_half_and_double_are_corrected_as_they_finish() -> None:
    factors = (1.5, 0.5, 2.0, 1.0)
    actual = [[factor * step for step in stage.steps] for factor, stage in zip(factors, EXPECTED, strict=True)]
    for share, left, truth in estimates(actual):
        if 0.2 <= share <= 0.8:
            assert truth / 2 < left < 2 * truth


def test_a_search_that_counts_other_steps_than_expected_is_shared_evenly() -> None:
    remaining = RemainingTime()
    remaining.expect([ExpectedStage("searching ranks", [30.0])])
    remaining.begin("searching ranks", 200, 0.0)
    remaining.step(100, 15.0)
    assert remaining.seconds(15.0) == pytest.approx(15.0)


def test_a_limit_is_not_waited_for() -> None:
    """A search that may make 200 evaluations usually makes 30."""
    remaining = RemainingTime()
    remaining.expect([ExpectedStage("searching ranks", [1.0] * 30, may_end_early=True)])
    remaining.begin("searching ranks", 200, 0.0)
    for done, left in ((10, 20.0), (29, 1.45), (60, 3.0)):
        remaining.step(done, float(done))
        assert remaining.seconds(float(done)) == pytest.approx(left)


def test_a_stage_may_know_its_steps_better() -> None:
    """Of 21 layers 19 are left, the last of them the largest."""
    remaining = RemainingTime()
    remaining.expect([ExpectedStage("reconstructing layers", [10.0] * 3, before=5.0)])
    remaining.begin("reconstructing layers", 2, 0.0, weights=[1.0, 9.0])
    remaining.step(0, 5.0)
    assert remaining.seconds(5.0) == pytest.approx(30.0)
    remaining.step(1, 8.0)
    assert remaining.seconds(8.0) == pytest.approx(27.0)


def test_time_goes_down_within_a_long_step_and_never_below_zero() -> None:
    remaining = RemainingTime()
    remaining.expect([ExpectedStage("evaluating", [30.0])])
    remaining.begin("evaluating on 100 test images", None, 0.0)
    left = [remaining.seconds(now) for now in (0.0, 10.0, 20.0, 29.0, 40.0, 100.0)]
    assert left == pytest.approx([30.0, 20.0, 10.0, 1.45, 2.0, 5.0])


def test_stages_that_are_left_out_are_not_waited_for() -> None:
    remaining = RemainingTime()
    remaining.expect(EXPECTED)
    remaining.begin("something else", 3, 0.0)
    assert remaining.seconds(0.0) == pytest.approx(sum(stage.seconds for stage in EXPECTED))
    remaining.begin("exporting and verifying ONNX", 2, 1.0)
    assert remaining.seconds(1.0) == pytest.approx(20.0)


def test_nothing_is_said_where_nothing_is_expected() -> None:
    assert RemainingTime().seconds(3.0) is None
    assert describe_remaining(None) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "a few seconds left"),
        (23.0, "about 20 s left"),
        (57.0, "about 1 min left"),
        (400.0, "about 7 min left"),
        (4000.0, "about 1 h 07 min left"),
    ],
)
def test_words(seconds: float, words: str) -> None:
    assert describe_remaining(seconds) == words


def test_lines_say_how_long_the_run_still_takes(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress()
    progress.expect(EXPECTED)
    with progress.stage("factorizing layers", 18):
        pass
    assert capsys.readouterr().err.splitlines()[0] == "factorizing layers ... (about 4 min left)"
