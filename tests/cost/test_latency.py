"""Paired latency: the statistics on cases with known answers, the measurement on real files."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import ArrayLike
from torch import nn

from compressor.cost import latency
from compressor.cost.latency import (
    SESSIONS,
    LatencySettings,
    bootstrap_interval,
    has_core_time,
    measure_latency,
    measure_rounds,
    plan_rounds,
    plan_sessions,
    ratio_of,
    share_of_others,
    summarize,
)
from compressor.cost.machine import core_seconds
from compressor.cost.records import LatencyRecord
from compressor.errors import BocompressError, InputError
from exporters.onnx import export_onnx
from exporters.runtimes.base import OpenedModel
from exporters.session import CPU, CUDA


def paired_ratio(original_ms: ArrayLike, compressed_ms: ArrayLike) -> float:
    """Median of the ratios compressed/original over pairs measured together; both in the same order."""
    return float(np.median(np.asarray(compressed_ms) / np.asarray(original_ms)))


IMAGES = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """SqueezeNet, and one layer in its place: hundreds of times less work."""
    folder = tmp_path_factory.mktemp("latency")
    networks = {
        "original.onnx": torchvision.models.squeezenet1_1(num_classes=10),
        "compressed.onnx": nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(12, 10)),
    }
    for name, network in networks.items():
        export_onnx(network, torch.from_numpy(IMAGES), folder / name, {})
    return folder / "original.onnx", folder / "compressed.onnx"


# --- statistics ---


def test_the_ratio_is_that_of_pairs_and_not_of_medians() -> None:
    original, compressed = [1.0, 10.0, 100.0], [0.5, 5.0, 90.0]
    assert paired_ratio(original, compressed) == 0.5
    assert paired_ratio(original, original) == 1.0


def test_a_drift_of_the_machine_cancels() -> None:
    drift = np.exp(np.random.default_rng(0).standard_normal(50).cumsum())
    assert paired_ratio(drift, 0.4 * drift) == pytest.approx(0.4)
    assert bootstrap_interval(0.4 * drift / drift) == pytest.approx((0.4, 0.4))


def test_the_interval_covers_the_true_median_as_often_as_it_should() -> None:
    rng = np.random.default_rng(0)
    trials = 400
    samples = rng.lognormal(mean=0.0, sigma=0.5, size=(trials, 50))  # median exactly 1
    intervals = [bootstrap_interval(sample, resamples=500, seed=seed) for seed, sample in enumerate(samples)]
    covered = np.mean([low <= 1.0 <= high for low, high in intervals])
    assert 0.92 <= covered <= 0.98  # 0.95 and three standard errors of 400 trials


@pytest.mark.parametrize("sessions", [5, 10])
def test_the_interval_covers_when_sessions_differ(sessions: int) -> None:
    """Each session is off by an amount of its own, several times what its rounds scatter by."""
    rng = np.random.default_rng(sessions)
    trials = 300
    samples = rng.normal(scale=0.03, size=(trials, sessions, 1)) + rng.normal(scale=0.02, size=(trials, sessions, 10))
    covered = np.mean([low <= 0 <= high for low, high in (bootstrap_interval(one, resamples=500) for one in samples)])
    alone = [bootstrap_interval(one.ravel(), resamples=500) for one in samples]
    assert 0.92 <= covered <= 0.995
    assert np.mean([low <= 0 <= high for low, high in alone]) < 0.75  # taking the rounds for independent


def test_the_interval_is_reproducible_and_narrows() -> None:
    values = np.random.default_rng(0).lognormal(size=1000)
    low, high = bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) == (low, high)
    assert low < np.median(values) < high
    few_low, few_high = bootstrap_interval(values[:30], seed=3)
    assert few_high - few_low > high - low
    half_low, half_high = bootstrap_interval(values, confidence=0.5, seed=3)
    assert half_high - half_low < high - low


def test_the_summary_holds_the_figures_of_its_samples() -> None:
    original = np.arange(1.0, 101.0)
    record = summarize(original, original / 2, threads=2, batch_size=4)
    assert (record.original_ms, record.compressed_ms, record.ratio) == (50.5, 25.25, 0.5)
    assert (record.ratio_low, record.ratio_high) == (0.5, 0.5)
    assert record.original_p90_ms == pytest.approx(90.1)
    assert record.original_p99_ms == pytest.approx(99.01)
    assert (record.runs, record.threads, record.batch_size) == (100, 2, 4)
    assert LatencyRecord.model_validate_json(record.model_dump_json()) == record


def test_a_busy_core_widens_the_interval() -> None:
    rng = np.random.default_rng(0)
    reference, other = rng.normal(10, 0.1, (10, 20)), rng.normal(3, 0.1, (10, 20))
    quiet, busy = ratio_of(reference, other), ratio_of(reference, other, others=0.5)
    assert quiet.value == busy.value
    assert quiet.low / busy.low == pytest.approx(np.exp(0.05))
    assert busy.high / quiet.high == pytest.approx(np.exp(0.05))


@pytest.mark.parametrize(
    ("round_seconds", "planned", "fewest"),
    [
        (0.001, 1000, 20),  # a second of pairs
        (0.1, 50, 20),  # as many as asked for
        (0.5, 40, 20),  # as many as fit
        (2.0, 20, 20),  # twenty all the same
        (10.0, 5, 5),  # very slow
    ],
)
def test_how_many_rounds_run(round_seconds: float, planned: int, fewest: int) -> None:
    assert plan_rounds(round_seconds, min_rounds=50, max_seconds=20.0) == (planned, fewest)


# --- measurement ---


@pytest.mark.parametrize("example", [IMAGES, torch.from_numpy(IMAGES)])
def test_two_files_are_measured(files: tuple[Path, Path], example: np.ndarray | torch.Tensor) -> None:
    steps: list[tuple[int, int]] = []
    record = measure_latency(
        *files,
        example,
        LatencySettings(CPU, batch_size=2, min_runs=20, max_seconds=0.5),
        on_step=lambda *step: steps.append(step),
    )
    assert record.runs == len(record.original_samples_ms) == len(record.compressed_samples_ms) >= 20
    assert 0 < record.ratio_low <= record.ratio <= record.ratio_high < 1
    assert record.original_ms == float(np.median(record.original_samples_ms))
    assert record.ratio == paired_ratio(record.original_samples_ms, record.compressed_samples_ms)
    assert [done for done, _ in steps] == list(range(1, record.runs + 1))
    assert len({planned for _, planned in steps}) == 1


class FakeFile:
    """Takes `seconds` on the fake clock, and `slower` more in every later session; runs are noted in the log."""

    def __init__(self, name: str, clock: list[float], log: list[str], seconds: float, slower: float = 0.0) -> None:
        self.name, self.clock, self.log, self.seconds, self.slower = name, clock, log, seconds, slower
        self.opened = 0

    def __call__(self) -> OpenedModel:
        seconds = self.seconds + self.slower * self.opened
        self.opened += 1

        def run() -> None:
            self.clock[0] += seconds
            self.log.append(self.name)

        return OpenedModel(run, load_ms=1.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: seconds[0])
    monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: round(seconds[0] * 1e9))
    monkeypatch.setattr(latency.time, "thread_time_ns", lambda: round(seconds[0] * 0.6e9))
    return seconds


def test_every_round_runs_all_files_in_an_order_of_its_own(clock: list[float]) -> None:
    def orders(seed: int) -> list[str]:
        log: list[str] = []
        files = [FakeFile(name, clock, log, seconds) for name, seconds in (("a", 0.1), ("b", 0.2), ("c", 0.3))]
        rounds = measure_rounds(files, False, 60, 120.0, np.random.default_rng(seed))
        assert np.allclose(rounds.times_ms, [100, 200, 300])
        return re.findall("(?:aa|bb|cc){3}", "".join(log))  # the first run of a turn is not timed; warm-ups are "abc"

    first, again, other = orders(0), orders(0), orders(1)
    assert first == again != other
    assert len(first) == 60
    assert {turn[::2] for turn in first} == {"abc", "acb", "bac", "bca", "cab", "cba"}


def test_files_are_opened_anew_and_every_session_counts(clock: list[float]) -> None:
    files = [FakeFile("a", clock, [], 0.1), FakeFile("b", clock, [], 0.1, slower=0.01)]
    rounds = measure_rounds(files, False, 40, 20.0, np.random.default_rng(0))
    assert rounds.times_ms.shape == (SESSIONS, 4, 2)
    assert rounds.load_ms.shape == (SESSIONS, 2)
    assert [file.opened for file in files] == [SESSIONS] * 2
    assert np.allclose(rounds.times_ms[:, :, 1], 100 + 10 * np.arange(SESSIONS)[:, None])
    ratio = ratio_of(rounds.times_ms[..., 0], rounds.times_ms[..., 1])
    assert ratio.low < 1.3 < ratio.value < 1.6 < ratio.high


def test_the_time_limit_holds_but_a_few_slow_rounds_run(clock: list[float]) -> None:
    slow = [FakeFile(name, clock, [], 10.0) for name in "ab"]
    rounds = measure_rounds(slow, False, 50, 20.0, np.random.default_rng(0))
    assert rounds.times_ms.shape == (2, 3, 2)  # opening takes longer than the time allowed: two sessions


def test_opening_takes_no_more_than_half_the_time_beside_the_rounds() -> None:
    assert plan_sessions(planned=200, opening_seconds=0.1, max_seconds=20.0) == SESSIONS
    assert plan_sessions(planned=200, opening_seconds=2.5, max_seconds=20.0) == 4
    assert plan_sessions(planned=200, opening_seconds=60.0, max_seconds=20.0) == 2
    assert plan_sessions(planned=5, opening_seconds=0.1, max_seconds=20.0) == 5


def test_one_thread_on_the_cpu_is_timed_by_its_core(clock: list[float]) -> None:
    """Another process holds the core for two fifths of the fake clock's time."""
    rounds = measure_rounds([FakeFile("a", clock, [], 0.1)], True, 20, 20.0, np.random.default_rng(0))
    assert np.allclose(rounds.times_ms, 60)
    assert np.allclose(rounds.wall_ms, 100)
    on_wall = measure_rounds([FakeFile("a", clock, [], 0.1)], False, 20, 20.0, np.random.default_rng(0))
    assert np.allclose(on_wall.times_ms, 100)
    assert has_core_time(CPU, 1)
    assert not has_core_time(CPU, 2)
    assert not has_core_time(CUDA, 1)


def test_others_take_what_the_machine_works_and_this_process_does_not() -> None:
    assert share_of_others(((10.0, 100.0), 5.0), ((16.0, 120.0), 7.0)) == pytest.approx(0.2)
    assert share_of_others(((10.0, 100.0), 5.0), ((11.9, 120.0), 7.0)) == 0.0  # the clocks differ a little
    assert share_of_others(((10.0, 100.0), 5.0), ((10.0, 100.0), 5.0)) is None  # no tick of the clock in between
    first = core_seconds()
    time.sleep(0.05)
    second = core_seconds()
    assert 0 <= second[0] - first[0] <= second[1] - first[1] + 1e-6  # rounding: seconds since the start
    assert second[1] > first[1] > first[0] > 0


def test_processor_time_is_not_the_time_spent_waiting() -> None:
    """The real clocks: a run that sleeps takes no processor time, one that computes takes what the wall says."""

    def compute() -> None:
        began = time.thread_time()
        while time.thread_time() - began < 0.002:
            pass

    files = [lambda: OpenedModel(lambda: time.sleep(0.003), 1.0), lambda: OpenedModel(compute, 1.0)]
    rounds = measure_rounds(files, True, 20, 1.0, np.random.default_rng(0))
    assert np.median(rounds.times_ms[..., 0]) < 1 < 3 <= np.median(rounds.wall_ms[..., 0])
    assert 2 <= np.median(rounds.times_ms[..., 1]) < 2.5


def test_bad_input_is_an_error_in_one_sentence(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        measure_latency(tmp_path / "none.onnx", files[1], IMAGES)
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        measure_latency(*files, IMAGES, LatencySettings(batch_size=0))
    with pytest.raises(InputError, match="NoSuchProvider"):
        measure_latency(*files, IMAGES, LatencySettings("NoSuchProvider"))
    with pytest.raises(BocompressError, match=r"does not run on inputs of shape \[1, 1, 64, 64\]"):
        measure_latency(*files, IMAGES[:, :1])
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no network")
    with pytest.raises(BocompressError, match="cannot load"):
        measure_latency(broken, files[1], IMAGES)
