"""Latency of ONNX files, measured side by side: whatever disturbs the machine meets all files alike.

Files are opened through the table of runtimes. Everything but opening and timing is a pure function of the samples.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from compressor.cost.machine import core_seconds
from compressor.cost.records import LatencyRecord, RatioRecord
from compressor.errors import InputError
from exporters.runtimes.base import OpenedModel, Run, tile_batch
from exporters.runtimes.registry import ONNX_RUNTIME, open_runtime
from exporters.session import CPU

if TYPE_CHECKING:
    from torch import Tensor

WARM_UP_ROUNDS = 3  # the first runs allocate and touch memory; ONNX Runtime compiles nothing later
MAX_WARM_UP_ROUNDS = 10
STABLE_WITHIN = 0.1  # warm: a round takes no more than a tenth less than the fastest before it
EXTRA_SECONDS = 1.0  # networks of a millisecond get more rounds than asked for, up to this time: they cost nothing
MAX_ROUNDS = 1000
MIN_ROUNDS = 20
MIN_SLOW_ROUNDS = 5
SLOW_FACTOR = 3.0  # `MIN_ROUNDS` may take this many times the time allowed; slower files run `MIN_SLOW_ROUNDS`

# Runs of one session share its memory layout and what else ran at that time: they are not independent.
SESSIONS = 10
MIN_SESSIONS = 2
OPENING_SHARE = 0.5  # of the time allowed for rounds: what opening sessions anew may take on top of it

# Time that other processes take of a core is not counted, but they also empty shared caches and slow memory, not for
# all networks alike: a share s of the machine widens the interval by a factor of exp(DISTURBANCE s) on each side, as
# measured (docs/results.md).
DISTURBANCE = 0.1

RESAMPLES = 2000
CONFIDENCE = 0.95
DECIMALS = 5  # of a millisecond: 10 ns
MAX_TICK = 1e-6  # seconds that a clock of processor time may count in; some count in 1/64

Opener = Callable[[], OpenedModel]
OnStep = Callable[[int, int], None]
CoreUse = tuple[tuple[float, float], float]  # of `core_seconds` and `time.process_time`
Samples = NDArray[np.float64]


@dataclass(frozen=True)
class Rounds:
    """Samples of several files.

    Attributes:
        times_ms: latency of one run (sessions, rounds, files).
        wall_ms: the same by the wall clock.
        load_ms: time to create a session (sessions, files).
        others: share of all cores' time that other processes took; None where the clock did not tick.
    """

    times_ms: Samples
    wall_ms: Samples
    load_ms: Samples
    others: float | None


@dataclass(frozen=True)
class LatencySettings:
    """How a pair of files is timed.

    Attributes:
        provider: one of the runtime's.
        threads: threads within an operator; operators run one after another.
        batch_size: images in one run.
        min_runs: pairs to run; more (up to 1000) where they take less than a second together.
        max_seconds: time for the pairs. At least 20 pairs run even if they take longer, or 5 where 20 would take over
            three times as long.
        seed: of the order within the pairs and of the bootstrap.
        runtime: a name in `exporters.runtimes.registry.RUNTIMES`.
    """

    provider: str = CPU
    threads: int = 1
    batch_size: int = 1
    min_runs: int = 50
    max_seconds: float = 20.0
    seed: int = 0
    runtime: str = ONNX_RUNTIME


def measure_latency(
    original: Path,
    compressed: Path,
    example: "NDArray[Any] | Tensor",
    settings: LatencySettings | None = None,
    on_step: OnStep | None = None,
) -> LatencyRecord:
    """Run two ONNX files in turn and compare their times: `measure_rounds` for a pair.

    Args:
        original: ONNX file of the original network.
        compressed: ONNX file of the compressed network.
        example: real inputs (N, ...), N at least 1; repeated or cut to the batch size.
        settings: by default one image at a time in ONNX Runtime, on one thread of the CPU.
        on_step: called with the numbers of pairs done and planned after every pair.

    Returns:
        Milliseconds for one batch, see `has_core_time`. `runs` is the number of pairs.

    Raises:
        InputError: no images, a number below 1, or a provider that cannot be used.
        BocompressError: a file does not load, or does not run on the images.
    """
    settings = settings or LatencySettings()
    provider, threads, count, seed = settings.provider, settings.threads, settings.batch_size, settings.seed
    require_counts(threads=threads, batch_size=count, min_runs=settings.min_runs)
    batch, runtime = tile_batch(example, count), open_runtime(settings.runtime)
    openers = [partial(runtime.open, Path(path), batch, provider, threads) for path in (original, compressed)]
    rounds = measure_rounds(
        openers,
        has_core_time(provider, threads),
        settings.min_runs,
        settings.max_seconds,
        np.random.default_rng(seed),
        on_step,
    )
    times = rounds.times_ms
    return summarize(times[..., 0], times[..., 1], threads, count, seed, rounds.others or 0.0)


def has_core_time(provider: str, threads: int) -> bool:
    """Whether a run is timed by the processor time of its thread, without what other processes took of the core.

    That is the latency where one thread on the CPU computes it all; on an idle machine it differs from wall time by
    half a per cent. By the wall clock, a run shorter than the scheduler's time slice of a few milliseconds is seldom
    interrupted and a longer one always. ResNet-18 (7 ms) and its compressed form (2.3 ms) beside three busy processes
    on two cores: wall ratios of ten repeats from 0.10 to 0.41 where 0.31 is true, each with a narrow interval.
    """
    precise = time.get_clock_info("thread_time").resolution <= MAX_TICK
    return provider == CPU and threads == 1 and precise


def measure_rounds(
    openers: Sequence[Opener],
    on_core: bool,
    min_rounds: int,
    max_seconds: float,
    rng: np.random.Generator,
    on_step: OnStep | None = None,
) -> Rounds:
    """Time every file once per round, in random order, in several sessions each.

    All files are open at once: a busy neighbour or a falling clock rate meets every part of a round, and the ratios
    within the round are free of it. What is particular to a session (where its memory lies) varies from one to the
    next. A file's turn begins with a run that is not timed, which finds the caches full of the network before it: that
    cost a network of 2.2 ms after one of 7.5 ms 5 to 9 %, while a network in use finds them full of its own data.

    Args:
        openers: one per file, which may occur twice; each call opens a fresh session.
        on_core: take the processor time of this thread, which does all the work, for the latency.
        min_rounds: rounds to run; more where they take less than a second together.
        max_seconds: time for the rounds; warm-up and opening come on top.
        rng: gives the orders.
        on_step: called with the numbers of rounds done and planned after every round.
    """
    began, started = time.perf_counter(), (core_seconds(), time.process_time())
    opened = _open_all(openers, rng)
    round_seconds = 2 * _warm_up([one.run for one in opened], max_seconds)
    planned, fewest = plan_rounds(round_seconds, min_rounds, max_seconds)
    sessions = plan_sessions(planned, time.perf_counter() - began, max_seconds)
    in_session = math.ceil(planned / sessions)
    times: list[list[list[tuple[float, float]]]] = []
    loads: list[list[float]] = []
    for session in range(sessions):
        if session:
            opened = []  # freed first: else two of every network would be held at once
            opened = _open_all(openers, rng)
            _warm_up([one.run for one in opened], max_seconds)
        runs = [one.run for one in opened]
        loads.append([one.load_ms for one in opened])
        times.append([])
        for done in range(1, in_session + 1):
            times[-1].append(_time_round(runs, on_core, rng))
            if on_step is not None:
                on_step(session * in_session + done, sessions * in_session)
        spent_ms = 2 * np.asarray(times)[..., 1].sum()
        if spent_ms > 1e3 * max_seconds and (session + 1) * in_session >= fewest:
            break
    both = np.asarray(times).round(DECIMALS)
    others = share_of_others(started, (core_seconds(), time.process_time()))
    return Rounds(both[..., 0], both[..., 1], np.asarray(loads), others)


# --- statistics: pure functions of the samples ---


def ratio_of(reference_ms: Samples, other_ms: Samples, seed: int = 0, others: float = 0.0) -> RatioRecord:
    """Median of the paired ratios other/reference, and its interval.

    Args:
        reference_ms: milliseconds (sessions, rounds).
        other_ms: likewise, each measured beside the one of the same place.
        seed: of the bootstrap.
        others: share of the machine that other processes took, which widens the interval (see `DISTURBANCE`).
    """
    ratios = _ratios(reference_ms, other_ms)
    low, high = bootstrap_interval(ratios, seed=seed)
    allowance = math.exp(DISTURBANCE * others)
    return RatioRecord(value=float(np.median(ratios)), low=low / allowance, high=high * allowance)


def bootstrap_interval(
    values: ArrayLike, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) for the median of values (sessions, rounds), or (rounds,) of one.

    Sessions are drawn with replacement, then rounds within each of them. A percentile interval of few sessions is too
    narrow: its tails are moved outwards by as much as Student's t is wider than the normal distribution (Hesterberg
    2015, "expanded percentile interval").

    Args:
        values: (sessions, rounds), or (rounds,) of one session.
        confidence: that the interval covers the median, from 0 to 1.
        resamples: how many medians are drawn.
        seed: of the draws.
    """
    sample = np.atleast_2d(np.asarray(values, dtype=np.float64))
    sessions, rounds = sample.shape
    rng = np.random.default_rng(seed)
    picked = rng.integers(sessions, size=(resamples, sessions, 1))
    within = rng.integers(rounds, size=(resamples, sessions, rounds))
    medians = np.median(sample[picked, within].reshape(resamples, -1), axis=1)
    tail = 100.0 * _tail((1.0 - confidence) / 2, sessions)
    low, high = np.percentile(medians, [tail, 100.0 - tail])
    return float(low), float(high)


def _tail(share: float, sessions: int) -> float:
    """The share of resampled medians that lie beyond one end of the interval."""
    if sessions == 1:  # the differences between sessions are unknown
        return share
    wider = math.sqrt(sessions / (sessions - 1))
    return float(stats.norm.cdf(wider * stats.t.ppf(share, sessions - 1)))


def summarize(
    original_ms: ArrayLike, compressed_ms: ArrayLike, threads: int, batch_size: int, seed: int = 0, others: float = 0.0
) -> LatencyRecord:
    """Medians, tails and the paired ratio with its interval.

    Args:
        original_ms: milliseconds (sessions, pairs), or (pairs,) of one session.
        compressed_ms: likewise, pair by pair.
        threads: of the runtime, for the record.
        batch_size: images at once, for the record.
        seed: of the bootstrap.
        others: as of `ratio_of`.
    """
    original, compressed = np.atleast_2d(original_ms), np.atleast_2d(compressed_ms)
    ratio = ratio_of(original, compressed, seed, others)
    return LatencyRecord(
        original_ms=float(np.median(original)),
        compressed_ms=float(np.median(compressed)),
        ratio=ratio.value,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        original_p90_ms=float(np.percentile(original, 90)),
        compressed_p90_ms=float(np.percentile(compressed, 90)),
        original_p99_ms=float(np.percentile(original, 99)),
        compressed_p99_ms=float(np.percentile(compressed, 99)),
        runs=original.size,
        threads=threads,
        batch_size=batch_size,
        original_samples_ms=original.ravel().tolist(),
        compressed_samples_ms=compressed.ravel().tolist(),
    )


def plan_rounds(round_seconds: float, min_rounds: int, max_seconds: float) -> tuple[int, int]:
    """The number of rounds to aim for, and the number to run even when the time is over.

    Args:
        round_seconds: one run of every file.
        min_rounds: as many where the time allows it.
        max_seconds: the time for all rounds.
    """
    fits = int(max_seconds / round_seconds)
    fewest = MIN_ROUNDS if MIN_ROUNDS * round_seconds <= SLOW_FACTOR * max_seconds else MIN_SLOW_ROUNDS
    fewest = min(fewest, min_rounds)
    target = max(min_rounds, min(int(EXTRA_SECONDS / round_seconds), MAX_ROUNDS))
    return max(min(target, fits), fewest), fewest


def plan_sessions(planned: int, opening_seconds: float, max_seconds: float) -> int:
    """How often to open the files.

    Args:
        planned: rounds in all; no session is without one.
        opening_seconds: opening and warming up all files once.
        max_seconds: the time for all rounds, of which opening may take OPENING_SHARE.
    """
    affordable = int(OPENING_SHARE * max_seconds / opening_seconds)
    return min(max(affordable, MIN_SESSIONS), SESSIONS, planned)


def share_of_others(started: CoreUse, ended: CoreUse) -> float | None:
    """The share of all cores' time between two readings that other processes took; None if no time passed."""
    (first, own_before), (last, own_after) = started, ended
    if last[1] <= first[1]:
        return None
    worked = last[0] - first[0] - (own_after - own_before)
    return min(max(worked / (last[1] - first[1]), 0.0), 1.0)


def require_counts(**counts: int) -> None:
    """Raise InputError unless every number is at least 1."""
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")


def _ratios(reference_ms: ArrayLike, other_ms: ArrayLike) -> Samples:
    return np.asarray(other_ms, dtype=np.float64) / np.asarray(reference_ms, dtype=np.float64)


# --- the measurement ---


def _time_round(runs: Sequence[Run], on_core: bool, rng: np.random.Generator) -> list[tuple[float, float]]:
    """(milliseconds, wall milliseconds) of every run, in the order of `runs`."""
    times = [(0.0, 0.0)] * len(runs)
    for index in rng.permutation(len(runs)).tolist():
        runs[index]()  # not timed: it fills the caches
        times[index] = _time_on_core(runs[index]) if on_core else (_time_ms(runs[index]),) * 2
    return times


def _open_all(openers: Sequence[Opener], rng: np.random.Generator) -> list[OpenedModel]:
    """All files, opened in random order: the order decides where their memory lies."""
    opened = {index: openers[index]() for index in rng.permutation(len(openers)).tolist()}
    return [opened[index] for index in range(len(openers))]


def _warm_up(runs: Sequence[Run], max_seconds: float) -> float:
    """Run rounds until they no longer become faster; the seconds that the fastest round took."""
    deadline = time.perf_counter() + max_seconds
    fastest = sum(map(_time_ms, runs)) / 1e3
    for number in range(1, MAX_WARM_UP_ROUNDS):
        seconds = sum(map(_time_ms, runs)) / 1e3
        stable = seconds > (1.0 - STABLE_WITHIN) * fastest
        fastest = min(fastest, seconds)
        if time.perf_counter() > deadline or (stable and number + 1 >= WARM_UP_ROUNDS):
            break
    return fastest


def _time_on_core(run: Run) -> tuple[float, float]:
    """(processor time of this thread, wall time) of one run in milliseconds."""
    wall, core = time.perf_counter_ns(), time.thread_time_ns()
    run()
    core_ms = (time.thread_time_ns() - core) / 1e6
    return core_ms, (time.perf_counter_ns() - wall) / 1e6


def _time_ms(run: Run) -> float:
    """Wall time of one run in milliseconds."""
    start = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start) / 1e6
