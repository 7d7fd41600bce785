"""ONNX files compared: bytes, latency, memory and time by operator, in every setting asked for."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.records import BenchmarkedFile, BenchmarkRecord, ProfileRecord, SettingRecord, TimingRecord
from benchmarks.runtime.memory import peak_memory_bytes
from benchmarks.runtime.profile import profile_file
from compressor.cost.latency import Rounds, has_core_time, measure_rounds, ratio_of, require_counts
from compressor.cost.machine import describe_machine, version_of
from compressor.cost.records import MachineRecord, RatioRecord
from compressor.cost.size import file_bytes, gzip_bytes
from compressor.errors import InputError
from compressor.report.formatting import format_percent, format_plural, format_provider
from compressor.text import join_words
from exporters.feeding import transform_of
from exporters.providers import CPU, PROVIDERS, available_providers, explain_absence
from exporters.runtimes.registry import ONNX_RUNTIME, open_runtime
from exporters.session import open_session
from exporters.strangers import require_sound

AUTO = "auto"
MIN_ROUNDS = 200  # ten sessions of twenty
MAX_SECONDS = 20.0  # per setting

# Measured with a third to two thirds of two cores taken by other processes: ratios of one pair spread by 3 to 4 %, the
# reference differed from itself by at most 3 %, and intervals of processor time spanned up to 20 %, of wall time more.
MAX_OTHERS = 0.1  # share of the machine that other processes may take without a warning
MAX_NOISE = 0.05  # log ratio of the reference to itself
MAX_SPAN = 0.15  # log ratio of an interval's ends


class StageReporter(Protocol):
    """Reports how far one stage is; `compressor.progress` implements it."""

    def update(self, done: int, note: str = "") -> None:
        """So many steps are `done`; `note` says more in words."""


class ProgressReporter(Protocol):
    """Announces stages; `compressor.progress` implements it."""

    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[StageReporter]:
        """A stage, named by its title, of `total` steps; None where their number is not known."""


@dataclass(frozen=True)
class BenchmarkSettings:
    """What to measure: every combination of `runtimes`, `providers`, `threads` and `batch_sizes`.

    Providers have their short names; "auto" stands for all that work here. A runtime is measured on those that it has.
    """

    providers: Sequence[str] = (AUTO,)
    threads: Sequence[int] = (1,)
    batch_sizes: Sequence[int] = (1,)
    input_size: int | None = None
    profile: bool = False
    seed: int = 0
    min_rounds: int = MIN_ROUNDS
    max_seconds: float = MAX_SECONDS
    runtimes: Sequence[str] = (ONNX_RUNTIME,)


def benchmark_files(
    paths: Sequence[Path], settings: BenchmarkSettings, progress: ProgressReporter, command: str = ""
) -> BenchmarkRecord:
    """Measure all files, the first being the reference, on random inputs of their shape.

    Args:
        paths: ONNX files, the first being the reference.
        settings: batch sizes, threads, providers, runtimes and time to spend.
        progress: shows the stages.
        command: the command line, for the record.

    Raises:
        InputError: a file is missing, is no ONNX network of one float32 input, takes other inputs than the first, or a
            provider asked for by name does not work here.
        BocompressError: a file does not run.
    """
    require_counts(
        **{"files": len(paths), "--threads": min(settings.threads), "--batch-size": min(settings.batch_sizes)}
    )
    began, created = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    providers, skipped = choose_providers(settings.providers)
    places = choose_places(settings.runtimes, providers)
    shape = common_shape(paths, settings)
    names = name_files(paths)
    files = [_describe_file(name, path) for name, path in zip(names, paths, strict=True)]
    combinations = itertools.product(places, settings.threads, settings.batch_sizes)
    by_name = dict(zip(names, paths, strict=True))
    measured = [
        _Bench(by_name, *place, threads, (batch_size, *shape), settings).measure(progress)
        for place, threads, batch_size in combinations
    ]
    return BenchmarkRecord(
        created=created,
        command=command,
        seed=settings.seed,
        seconds=time.perf_counter() - began,
        input_shape=list(shape),
        files=files,
        settings=measured,
        skipped=skipped,
        machine=_machine_with(settings.runtimes),
    )


def choose_providers(asked: Sequence[str]) -> tuple[list[str], list[str]]:
    """ONNX Runtime's names of the providers to measure, and the short names that "auto" leaves out.

    Raises:
        InputError: a provider asked for by name does not work here.
    """
    usable = available_providers()
    if absence := explain_absence([name for name in asked if name != AUTO]):
        raise InputError(absence)
    wanted = usable if AUTO in asked else [PROVIDERS[name] for name in asked]
    missing = [name for name, provider in PROVIDERS.items() if provider not in usable]
    return list(dict.fromkeys(wanted)), missing if AUTO in asked else []


def choose_places(runtimes: Sequence[str], providers: Sequence[str]) -> list[tuple[str, str]]:
    """Runtimes with the providers, of those asked for, that each has.

    Raises:
        InputError: a runtime is not installed, or has none of them.
    """
    places = []
    for name in runtimes:
        usable = open_runtime(name).providers()
        if not usable:
            raise InputError(f"{open_runtime(name).label} is not installed here: pip install {name}")
        common = [provider for provider in providers if provider in usable]
        if not common:
            has, asked = (join_words([*map(format_provider, each)]) for each in (usable, providers))
            raise InputError(f"{open_runtime(name).label} runs on {has} here, not on {asked}")
        places += [(name, provider) for provider in common]
    return places


def _machine_with(runtimes: Sequence[str]) -> MachineRecord:
    """This machine, with the versions of the runtimes."""
    machine = describe_machine()
    return machine.model_copy(update={"versions": machine.versions | {name: version_of(name) for name in runtimes}})


def common_shape(paths: Sequence[Path], settings: BenchmarkSettings) -> tuple[int, ...]:
    """Shape of one input, without the batch, which all files must share.

    Raises:
        InputError: a file is missing or unsuitable, or two differ.
    """
    shapes = [_input_shape(path, settings) for path in paths]
    for path, shape in zip(paths, shapes, strict=True):
        if shape != shapes[0]:
            raise InputError(f"{paths[0]} takes inputs {shapes[0]} and {path} takes {shape}")
    return shapes[0]


def name_files(paths: Sequence[Path]) -> list[str]:
    """For each path its shortest unique end; a file given twice is numbered."""
    whole = [path.absolute().parts for path in paths]
    names = [_shortest_end(parts, [other for other in whole if other != parts]) for parts in whole]
    return [name if names.count(name) == 1 else f"{name} ({index + 1})" for index, name in enumerate(names)]


def _shortest_end(parts: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> str:
    counts = range(1, len(parts) + 1)
    free = (count for count in counts if all(parts[-count:] != other[-count:] for other in others))
    return "/".join(parts[-next(free, len(parts)) :])


def describe_setting(provider: str, threads: int, batch_size: int, runtime: str = ONNX_RUNTIME) -> str:
    """'CPU, 1 thread, batch 8'; runtimes other than ONNX Runtime are named first.

    Args:
        provider: by its name in ONNX Runtime.
        threads: of the runtime.
        batch_size: images at once.
        runtime: by its name in the registry of runtimes.
    """
    place = f"{format_provider(provider)}, {format_plural(threads, 'thread')}, batch {batch_size}"
    return place if runtime == ONNX_RUNTIME else f"{open_runtime(runtime).label}, {place}"


def find_warnings(noise: RatioRecord, others: float | None, timings: Sequence[TimingRecord]) -> list[str]:
    """What the figures cannot show, one sentence each.

    Args:
        noise: ratio of the reference to itself, opened twice.
        others: share of the machine that other processes took, from 0 to 1; None where it is not known.
        timings: of all files.
    """
    spans = [math.log(timing.ratio.high / timing.ratio.low) for timing in timings if timing.ratio]
    warnings = []
    if others is not None and others > MAX_OTHERS:
        warnings.append(
            f"other processes took {format_percent(others)} of the machine: they slow caches and memory, more for "
            "some files than for others; ratios may differ on an idle machine, and intervals are wider"
        )
    if distance(noise) > MAX_NOISE or max(spans, default=0.0) > MAX_SPAN:
        warnings.append("the machine is too busy to show small differences: stop other programs and measure again")
    if not noise.low <= 1 <= noise.high:
        warnings.append(
            f"the reference, opened twice, differs from itself ({noise.low:.3f} to {noise.high:.3f}): "
            "the ratios may be off by as much"
        )
    alike = [timing.file for timing in timings if timing.ratio and is_alike(timing.ratio, noise)]
    if alike:
        warnings.append(f"{join_words(alike)} cannot be distinguished from the reference here")
    return warnings


def is_alike(ratio: RatioRecord, noise: RatioRecord) -> bool:
    """Whether a ratio is within the noise of the reference, or its interval contains 1."""
    return ratio.low <= 1 <= ratio.high or abs(math.log(ratio.value)) <= distance(noise)


def distance(noise: RatioRecord) -> float:
    """How far the reference may be from itself, as the logarithm of a ratio."""
    return max(abs(math.log(noise.low)), abs(math.log(noise.high)))


@dataclass(frozen=True)
class _Bench:
    """One setting: the files by name, the first being the reference, on batches of `shape`."""

    files: dict[str, Path]
    runtime: str
    provider: str
    threads: int
    shape: tuple[int, ...]
    settings: BenchmarkSettings

    def measure(self, progress: ProgressReporter) -> SettingRecord:
        title = describe_setting(self.provider, self.threads, self.shape[0], self.runtime)
        with progress.stage(f"timing on {title}") as stage:
            rounds = self._time(lambda done, planned: stage.update(done, f"of {planned} rounds"))
        with progress.stage(f"memory on {title}", len(self.files)) as stage:
            memory = [self._memory(path, stage, index) for index, path in enumerate(self.files.values())]
        profiles: list[ProfileRecord] = []
        if self.settings.profile and self.runtime == ONNX_RUNTIME:  # it alone has a profiler that says as much
            with progress.stage(f"operators on {title}", len(self.files)) as stage:
                for name, path in self.files.items():
                    profiles.append(profile_file(name, path, self._batch(), self.provider, self.threads))
                    stage.update(len(profiles))
        return self._summarize(rounds, memory, profiles)

    def _time(self, on_step: Callable[[int, int], None]) -> Rounds:
        """Times of all files; the reference is first and, to be compared with itself, last."""
        paths = [*self.files.values(), next(iter(self.files.values()))]
        runtime = open_runtime(self.runtime)
        openers = [partial(runtime.open, path, self._batch(), self.provider, self.threads) for path in paths]
        rng = np.random.default_rng(self.settings.seed)
        on_core = has_core_time(self.provider, self.threads)
        return measure_rounds(openers, on_core, self.settings.min_rounds, self.settings.max_seconds, rng, on_step)

    def _memory(self, path: Path, stage: StageReporter, index: int) -> int | None:
        stage.update(index)
        return peak_memory_bytes(path, self.provider, self.threads, self.shape, self.runtime)

    def _batch(self) -> NDArray[Any]:
        return np.random.default_rng(self.settings.seed).standard_normal(self.shape, dtype=np.float32)

    def _summarize(self, rounds: Rounds, memory: Sequence[int | None], profiles: list[ProfileRecord]) -> SettingRecord:
        times = rounds.times_ms
        reference, seed = times[..., 0], self.settings.seed
        timings = []
        for index, name in enumerate(self.files):
            samples = times[..., index]
            middle = float(np.median(samples))
            timings.append(
                TimingRecord(
                    file=name,
                    median_ms=middle,
                    wall_ms=float(np.median(rounds.wall_ms[..., index])),
                    p90_ms=float(np.percentile(samples, 90)),
                    p99_ms=float(np.percentile(samples, 99)),
                    images_per_second=1e3 * self.shape[0] / middle,
                    load_ms=float(np.median(rounds.load_ms[:, index])),
                    peak_memory_bytes=memory[index],
                    ratio=ratio_of(reference, samples, seed, rounds.others or 0.0) if index else None,
                    samples_ms=samples.ravel().tolist(),
                )
            )
        noise = ratio_of(reference, times[..., -1], seed)
        return SettingRecord(
            runtime=self.runtime,
            provider=self.provider,
            threads=self.threads,
            batch_size=self.shape[0],
            rounds=reference.size,
            sessions=len(reference),
            noise=noise,
            on_core=has_core_time(self.provider, self.threads),
            others=rounds.others,
            timings=timings,
            profiles=profiles,
            warnings=find_warnings(noise, rounds.others, timings),
        )


def _describe_file(name: str, path: Path) -> BenchmarkedFile:
    return BenchmarkedFile(name=name, path=str(path), onnx_bytes=file_bytes(path), gzip_bytes=gzip_bytes(path))


def _input_shape(path: Path, settings: BenchmarkSettings) -> tuple[int, ...]:
    """Shape of one input, without the batch; open sides are --input-size, or what the file's metadata say."""
    require_sound(path, settings.input_size)
    session = open_session(path, CPU, threads=1)
    inputs, transform = session.get_inputs(), transform_of(session.get_modelmeta().custom_metadata_map)
    if len(inputs) != 1 or inputs[0].type != "tensor(float)":
        raise InputError(f"{path} must take one float32 input")
    batch, *rest = inputs[0].shape or [None]
    others = [size for size in settings.batch_sizes if isinstance(batch, int) and size != batch]
    if others:
        raise InputError(f"{path} takes batches of {batch} only, not of {others[0]}")
    usual = dict(zip(range(len(rest)), transform.shape, strict=False)) if transform else {}
    sides = [
        side if isinstance(side, int) else settings.input_size or usual.get(axis) for axis, side in enumerate(rest)
    ]
    known = [side for side in sides if side is not None]
    if len(known) < len(sides):
        raise InputError(f"{path} leaves its input size open: give --input-size")
    return tuple(known)
