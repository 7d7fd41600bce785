"""Sessions of ONNX Runtime as benchmarks want them: on a provider that really works, ready to run one batch."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from compressor.errors import BocompressError, InputError
from compressor.text import first_line, join_words

if TYPE_CHECKING:
    from torch import Tensor

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
PROVIDERS = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}  # as people type them
FALLBACKS = {TENSORRT: [CUDA]}  # what TensorRT cannot run stays on the GPU
SILENT = 4  # ONNX Runtime's severity for fatal errors only: failures are raised, they need not be printed too
PROBE_OPSET = 13

Run = Callable[[], None]


@dataclass(frozen=True)
class Opened:
    """A session on one batch: `run` computes it once, `load_ms` is the time that creating the session took."""

    run: Run
    load_ms: float


def available_providers() -> list[str]:
    """The ONNX Runtime providers that can be measured here: the CPU, CUDA and TensorRT where they really work.

    They are listed only if a session opened on them stays on them: ONNX Runtime lists a provider where its libraries
    are missing, and then falls back to the CPU without an error.
    """
    listed = ort.get_available_providers()
    return [CPU, *(provider for provider in (CUDA, TENSORRT) if provider in listed and _opens_on(provider))]


def open_run(model: Path | bytes, batch: NDArray[Any], provider: str, threads: int) -> Opened:
    """A fresh session on a file, or on what one would hold, which has run once on the batch.

    Raises:
        InputError: no such file, or a provider that cannot be used.
        BocompressError: the model does not load, or does not run on the batch.
    """
    began = time.perf_counter_ns()
    session = open_session(model, provider, threads)
    load_ms = (time.perf_counter_ns() - began) / 1e6
    try:
        run = _bind_on_host(session, batch) if provider == CPU else _bind_on_device(session, batch)
        run()
    except Exception as error:
        shape = list(batch.shape)
        raise BocompressError(f"{_name(model)} does not run on inputs of shape {shape}: {first_line(error)}") from error
    return Opened(run, load_ms)


def open_session(
    model: Path | bytes, provider: str, threads: int, options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    """A session that is really on the provider; `options` stand in for `session_options(threads)`.

    Raises:
        InputError: no such file, or a provider that cannot be used.
        BocompressError: the model does not load.
    """
    if isinstance(model, Path) and not model.is_file():
        raise InputError(f"there is no file {model}")
    if provider not in ort.get_available_providers():
        raise InputError(f"this ONNX Runtime has no {provider}")
    providers = [provider, *FALLBACKS.get(provider, [])]
    try:
        session = ort.InferenceSession(model, options or session_options(threads), providers)
    except Exception as error:
        raise BocompressError(f"ONNX Runtime cannot load {_name(model)}: {first_line(error)}") from error
    used = session.get_providers()[0]
    if used != provider:
        raise InputError(f"{provider} cannot be used here: ONNX Runtime fell back to {used}")
    return session


def explain_absence(asked: Sequence[str]) -> str | None:
    """What is missing to run on the providers asked for by short name; None where nothing is."""
    if set(asked) <= {"cpu"}:
        return None  # without a session on each of the others
    usable = available_providers()
    absent = [name for name in asked if PROVIDERS[name] not in usable]
    if not absent:
        return None
    listed = [name for name in absent if PROVIDERS[name] in ort.get_available_providers()]
    reason = (
        f"it was built for {join_words(listed)}, but the driver or its libraries do not load"
        if listed
        else "that takes the package onnxruntime-gpu, a GPU and its driver and libraries"
    )
    here = join_words([name for name, provider in PROVIDERS.items() if provider in usable])
    return f"this ONNX Runtime {ort.__version__} cannot run on {join_words(absent)}: {reason}; here there is {here}"


def session_options(threads: int) -> ort.SessionOptions:
    """Threads within an operator; operators run one after another."""
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


def probe_model() -> bytes:
    """The smallest network there is: y = relu(x) for one number."""
    from onnx import TensorProto, helper  # slow to import, and only wanted here

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [x], [y])
    opsets = [helper.make_opsetid("", PROBE_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def tile_batch(images: "NDArray[Any] | Tensor", batch_size: int) -> NDArray[Any]:
    """Repeat or cut images (N, ...) to (batch_size, ...), in order.

    Raises:
        InputError: there are no images.
    """
    # Torch is not imported for this: files can be compared where only their runtime is wanted.
    on_host = np.asarray(images if isinstance(images, np.ndarray) else images.detach().cpu())
    if on_host.ndim < 1 or len(on_host) == 0:
        raise InputError("latency needs at least one image to run on")
    return np.ascontiguousarray(on_host[np.arange(batch_size) % len(on_host)])


def _name(model: Path | bytes) -> str:
    return str(model) if isinstance(model, Path) else "a model in memory"


def _opens_on(provider: str) -> bool:
    providers = [provider, *FALLBACKS.get(provider, [])]
    try:
        session = ort.InferenceSession(probe_model(), session_options(threads=1), providers)
    except Exception:
        return False
    return bool(session.get_providers()[0] == provider)


def _bind_on_host(session: ort.InferenceSession, batch: NDArray[Any]) -> Run:
    feed = {session.get_inputs()[0].name: batch}
    return lambda: session.run(None, feed)


def _bind_on_device(session: ort.InferenceSession, batch: NDArray[Any]) -> Run:
    """Inputs and outputs stay on the device: the copy over the bus is the same for all networks."""
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(batch, "cuda", 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda", 0)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run
