"""Latency of two ONNX files, measured side by side so that the machine's moods strike both alike."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper

from compressor.errors import BocompressError, InputError, first_line
from compressor.records import LatencyRecord

if TYPE_CHECKING:
    from torch import Tensor

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
SILENT = 4  # ONNX Runtime's severity for fatal errors only: failures are raised, they need not be printed too
PROBE_OPSET = 13

WARM_UP_PAIRS = 3  # the first runs allocate and touch memory; ONNX Runtime compiles nothing later
MAX_WARM_UP_PAIRS = 10
STABLE_WITHIN = 0.1  # warm is: a pair takes no more than a tenth less than the fastest before it
SETTLE_SECONDS = 1.0  # networks of a millisecond get more pairs than asked for: they cost nothing
MAX_RUNS = 1000
FEWEST_RUNS = 20
FEWEST_SLOW_RUNS = 5
SLOW_FACTOR = 3.0  # twenty pairs may take this many times the time allowed; if they would not, five do

RESAMPLES = 2000
CONFIDENCE = 0.95
DECIMALS = 5  # of a millisecond: 10 ns

Run = Callable[[], None]
Samples = NDArray[np.float64]


def available_providers() -> list[str]:
    """The ONNX Runtime providers that can be measured here: the CPU, and CUDA where it really works.

    CUDA is listed only if a session opened on it stays on it: ONNX Runtime lists it where its libraries are
    missing, and then falls back to the CPU without an error.
    """
    usable = [CPU]
    if CUDA in ort.get_available_providers() and _opens_on(CUDA):
        usable.append(CUDA)
    return usable


def measure_latency(
    original: Path,
    compressed: Path,
    example: "NDArray[Any] | Tensor",
    provider: str = CPU,
    threads: int = 1,
    batch_size: int = 1,
    min_runs: int = 50,
    max_seconds: float = 20.0,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> LatencyRecord:
    """Run two ONNX files in turn and compare their times.

    Both sessions are open at once and run in pairs, each pair in random order: a busy neighbour or a falling
    clock rate meets both halves of a pair, and their ratio keeps out of it.

    Args:
        original: ONNX file of the original network.
        compressed: ONNX file of the compressed network.
        example: real inputs (N, ...), N at least 1; repeated or cut to `batch_size`.
        provider: one of `available_providers()`.
        threads: threads within an operator; operators run one after another.
        batch_size: images in one run.
        min_runs: pairs to run; more (up to 1000) where they take less than a second together.
        max_seconds: time for the pairs. When it is over, at least 20 pairs have run all the same, or 5 where
            20 would take over three times as long.
        seed: of the order within the pairs and of the bootstrap.
        on_step: called with (pairs done, pairs planned) after every pair.

    Returns:
        Milliseconds for one batch. `runs` is the number of pairs.

    Raises:
        InputError: no images, a number below 1, or a provider that cannot be used.
        BocompressError: a file does not load, or does not run on the images.
    """
    _require_counts(threads=threads, batch_size=batch_size, min_runs=min_runs)
    batch = tile_batch(_to_numpy(example), batch_size)
    runs = [_prepare(Path(path), batch, provider, threads) for path in (original, compressed)]
    samples = _measure_pairs(runs[0], runs[1], min_runs, max_seconds, np.random.default_rng(seed), on_step)
    return summarise(samples[:, 0], samples[:, 1], threads, batch_size, seed)


# --- statistics: pure functions of the samples ---


def paired_ratio(original_ms: ArrayLike, compressed_ms: ArrayLike) -> float:
    """Median of the ratios compressed/original over pairs measured together; both (n,) in the same order."""
    return float(np.median(_ratios(original_ms, compressed_ms)))


def bootstrap_interval(
    values: ArrayLike, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) for the median of independent values (n,)."""
    sample = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(sample), size=(resamples, len(sample)))
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(np.median(sample[picks], axis=1), [tail, 100.0 - tail])
    return float(low), float(high)


def summarise(
    original_ms: Samples, compressed_ms: Samples, threads: int, batch_size: int, seed: int = 0
) -> LatencyRecord:
    """Medians, tails and the paired ratio with its interval, from paired samples (n,) in milliseconds."""
    low, high = bootstrap_interval(_ratios(original_ms, compressed_ms), seed=seed)
    return LatencyRecord(
        original_ms=float(np.median(original_ms)),
        compressed_ms=float(np.median(compressed_ms)),
        ratio=paired_ratio(original_ms, compressed_ms),
        ratio_low=low,
        ratio_high=high,
        original_p90_ms=float(np.percentile(original_ms, 90)),
        compressed_p90_ms=float(np.percentile(compressed_ms, 90)),
        original_p99_ms=float(np.percentile(original_ms, 99)),
        compressed_p99_ms=float(np.percentile(compressed_ms, 99)),
        runs=len(original_ms),
        threads=threads,
        batch_size=batch_size,
        original_samples_ms=original_ms.tolist(),
        compressed_samples_ms=compressed_ms.tolist(),
    )


def plan_runs(pair_seconds: float, min_runs: int, max_seconds: float) -> tuple[int, int]:
    """How many pairs to aim for, and how many to run even when the time is over: (planned, fewest)."""
    fits = int(max_seconds / pair_seconds)
    fewest = FEWEST_RUNS if FEWEST_RUNS * pair_seconds <= SLOW_FACTOR * max_seconds else FEWEST_SLOW_RUNS
    fewest = min(fewest, min_runs)
    wanted = max(min_runs, min(int(SETTLE_SECONDS / pair_seconds), MAX_RUNS))
    return max(min(wanted, fits), fewest), fewest


def tile_batch(images: NDArray[Any], batch_size: int) -> NDArray[Any]:
    """Repeat or cut images (N, ...) to (batch_size, ...), in order.

    Raises:
        InputError: there are no images.
    """
    if images.ndim < 1 or len(images) == 0:
        raise InputError("latency needs at least one image to run on")
    return np.ascontiguousarray(images[np.arange(batch_size) % len(images)])


def _ratios(original_ms: ArrayLike, compressed_ms: ArrayLike) -> Samples:
    return np.asarray(compressed_ms, dtype=np.float64) / np.asarray(original_ms, dtype=np.float64)


# --- the measurement ---


def _measure_pairs(
    original: Run,
    compressed: Run,
    min_runs: int,
    max_seconds: float,
    rng: np.random.Generator,
    on_step: Callable[[int, int], None] | None,
) -> Samples:
    """Times (pairs, 2) in milliseconds: original, compressed."""
    planned, fewest = plan_runs(_warm_up(original, compressed, max_seconds), min_runs, max_seconds)
    samples: list[tuple[float, float]] = []
    deadline = time.perf_counter() + max_seconds
    while len(samples) < planned and (len(samples) < fewest or time.perf_counter() < deadline):
        samples.append(_time_pair(original, compressed, original_first=bool(rng.integers(2))))
        if on_step is not None:
            on_step(len(samples), planned)
    return np.asarray(samples).round(DECIMALS)


def _warm_up(original: Run, compressed: Run, max_seconds: float) -> float:
    """Run pairs until they no longer become faster; returns the seconds that the fastest pair took."""
    deadline = time.perf_counter() + max_seconds
    fastest = sum(_time_pair(original, compressed)) / 1e3
    for pair in range(1, MAX_WARM_UP_PAIRS):
        seconds = sum(_time_pair(original, compressed)) / 1e3
        stable = seconds > (1.0 - STABLE_WITHIN) * fastest
        fastest = min(fastest, seconds)
        if time.perf_counter() > deadline or (stable and pair + 1 >= WARM_UP_PAIRS):
            break
    return fastest


def _time_pair(original: Run, compressed: Run, original_first: bool = True) -> tuple[float, float]:
    if original_first:
        return _time_ms(original), _time_ms(compressed)
    compressed_ms = _time_ms(compressed)
    return _time_ms(original), compressed_ms


def _time_ms(run: Run) -> float:
    start = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start) / 1e6


# --- sessions ---


def _prepare(path: Path, batch: NDArray[Any], provider: str, threads: int) -> Run:
    """A function of no arguments that runs the file once on the batch; it has run once before."""
    session = _open_session(path, provider, threads)
    try:
        run = _bind_on_device(session, batch) if provider == CUDA else _bind_on_host(session, batch)
        run()
    except Exception as error:
        shape = list(batch.shape)
        raise BocompressError(f"{path} does not run on inputs of shape {shape}: {first_line(error)}") from error
    return run


def _bind_on_host(session: ort.InferenceSession, batch: NDArray[Any]) -> Run:
    feed = {session.get_inputs()[0].name: batch}
    return lambda: session.run(None, feed)


def _bind_on_device(session: ort.InferenceSession, batch: NDArray[Any]) -> Run:
    """Inputs and outputs stay on the device: the copy over the bus is the same for both networks."""
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(batch, "cuda", 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda", 0)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def _open_session(path: Path, provider: str, threads: int) -> ort.InferenceSession:
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if provider not in ort.get_available_providers():
        raise InputError(f"this ONNX Runtime has no {provider}")
    try:
        session = ort.InferenceSession(path, _session_options(threads), [provider])
    except Exception as error:
        raise BocompressError(f"ONNX Runtime cannot load {path}: {first_line(error)}") from error
    used = session.get_providers()[0]
    if used != provider:
        raise InputError(f"{provider} cannot be used here: ONNX Runtime fell back to {used}")
    return session


def _session_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = SILENT
    # A session's idle threads spin after its run and take cores from the other session, which runs next, and
    # from busy neighbours. ResNet-18 and its compressed self at 64 px with two threads on two busy cores:
    # medians of 40 and 15 ms spinning, 8 and 3 ms not; the fastest runs 5.2 and 1.4 ms spinning, 5.7 and
    # 2.0 ms not, so waking sleepers costs the small network more. One thread has no pool: nothing changes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _opens_on(provider: str) -> bool:
    try:
        session = ort.InferenceSession(_probe_model(), _session_options(threads=1), [provider])
    except Exception:
        return False
    return session.get_providers()[0] == provider


def _probe_model() -> bytes:
    """The smallest network there is: y = relu(x) for one number."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [x], [y])
    opsets = [helper.make_opsetid("", PROBE_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def _to_numpy(example: "NDArray[Any] | Tensor") -> NDArray[Any]:
    """Torch is not imported for this: files can be compared where only their runtime is wanted."""
    on_host = example if isinstance(example, np.ndarray) else example.detach().cpu()
    return np.asarray(on_host)


def _require_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
