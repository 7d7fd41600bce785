"""Sessions of ONNX Runtime: opened on the provider asked for or not at all, and run batch by batch.

Nothing here imports torch: `bocompress benchmark` measures the memory of processes that hold ONNX Runtime alone.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from compressor.errors import InputError, VerificationError
from compressor.failures import explain_shortage
from compressor.text import first_line, join_words
from exporters.strangers import require_sound

if TYPE_CHECKING:
    from torch import Tensor

ort.disable_telemetry_events()

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
FALLBACKS = {TENSORRT: [CUDA]}  # what TensorRT cannot run stays on the GPU
LOG_FATAL_ONLY = 4  # ONNX Runtime's severity: failures are raised, they need not be printed too

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
}
CHANNELS = (1, 3, 4)

Logits = NDArray[np.floating[Any]]


def open_session(
    model: Path | bytes,
    provider: str = CPU,
    threads: int | None = None,
    options: ort.SessionOptions | None = None,
    tf32: bool = False,
) -> ort.InferenceSession:
    """A session on an ONNX file, or on the content of one, that really runs on the provider.

    Args:
        model: path of the file, or its content.
        provider: ONNX Runtime's name of the execution provider. Where it does not work, ONNX Runtime would fall back
            to the CPU without a word; here that is an error.
        threads: within an operator; None: as many as torch uses.
        options: stand in for `session_options(threads)`.
        tf32: let CUDA round to TensorFloat-32, its own default, which is 1e-3 away from torch by design.

    Raises:
        InputError: there is no such file, or the provider cannot be used.
        VerificationError: ONNX Runtime cannot load the model.
    """
    if isinstance(model, Path) and not model.is_file():
        raise InputError(f"there is no file {model}")
    if provider not in ort.get_available_providers():
        raise InputError(f"this ONNX Runtime has no {provider}")
    exact: dict[str, dict[str, str]] = {} if tf32 else {CUDA: {"use_tf32": "0"}}
    providers = [(name, exact.get(name, {})) for name in (provider, *FALLBACKS.get(provider, []))]
    try:
        session = ort.InferenceSession(_openable(model), options or session_options(threads), providers)
    except Exception as error:
        if shortage := explain_shortage(error):
            raise shortage from error
        raise VerificationError(f"ONNX Runtime cannot load {model_name(model)}: {first_line(error)}") from error
    used = session.get_providers()[0]
    if used != provider:
        raise InputError(f"{provider} cannot be used here: ONNX Runtime fell back to {used}")
    return session


def _openable(model: Path | bytes) -> Path | bytes:
    """The path, or the content of a file whose name is no UTF-8, which ONNX Runtime cannot be told."""
    if isinstance(model, bytes):
        return model
    try:
        os.fsencode(model).decode("utf-8")
    except UnicodeDecodeError:
        return model.read_bytes()
    return model


def session_options(threads: int | None = None) -> ort.SessionOptions:
    """Options of a quiet session with `threads` within an operator (None: torch's); operators run one after another."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = _torch_threads() if threads is None else threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_FATAL_ONLY
    # A session's idle threads spin after its run and take cores from the session that runs next, and from busy
    # neighbours. ResNet-18 and its compressed form at 64 px with two threads on two busy cores: medians of 40 and 15 ms
    # spinning, 8 and 3 ms not; the fastest runs 5.2 and 1.4 ms spinning, 5.7 and 2.0 ms not, so waking sleepers costs
    # the small network more. One thread has no pool: nothing changes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@dataclass(frozen=True)
class ModelInput:
    """What a file takes: one batch of images (batch, channels, height, width), or clips with frames before the height.

    Attributes:
        dtype: numpy's, of the input.
        shape: sizes, None where the file leaves one open.
        metadata: the file's own properties.
    """

    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    metadata: Mapping[str, str]


def describe_input(path: Path) -> ModelInput:
    """What a file takes that a stranger may have made.

    Raises:
        InputError: the file is not sound, does not take one batch of images, channels first, or gives no numbers.
    """
    require_sound(path)
    session = open_session(Path(path), threads=1)
    kind = session.get_outputs()[0].type
    if not is_numbers(kind):
        raise InputError(f"{path} gives {kind} as its first output, where a tensor of numbers can be compared")
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) not in (4, 5) or inputs[0].type not in DTYPES:
        given = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs) or "nothing"
        raise InputError(f"{path} does not take one batch of images of numbers, but {given}")
    shape = tuple(side if isinstance(side, int) else None for side in inputs[0].shape)
    channels, last = shape[1], shape[-1]
    if channels not in (*CHANNELS, None) and last in CHANNELS:
        raise InputError(
            f"{path} takes images with channels last, {inputs[0].shape}: only channels first (N, C, H, W) can be fed"
        )
    if channels not in (*CHANNELS, None):
        raise InputError(
            f"{path} takes {channels} channels, and images have {join_words([str(count) for count in CHANNELS], 'or')}"
        )
    return ModelInput(np.dtype(DTYPES[inputs[0].type]), shape, session.get_modelmeta().custom_metadata_map)


def is_numbers(kind: str) -> bool:
    """Whether an output's type, as ONNX Runtime names it, is a tensor of numbers; there are sequences, maps, texts."""
    return kind.startswith("tensor(") and kind != "tensor(string)"


def fixed_batch(session: ort.InferenceSession) -> int | None:
    """The one batch size that the session's input has; None where it is free."""
    shape = session.get_inputs()[0].shape
    return shape[0] if shape and isinstance(shape[0], int) else None


Rows = Callable[[Mapping[str, "Tensor"]], "Tensor"]
"""Makes a matrix (N, D) of the outputs for N images, by name."""


def run_batches(
    session: ort.InferenceSession, path: Path, images: "Tensor", size: int, rows: Rows | None = None
) -> Logits:
    """What a file gives for images, as float32 of shape (N, outputs).

    Args:
        session: of the file.
        path: names the file in errors.
        images: (N, ...).
        size: of the batches, where the file does not fix it.
        rows: made of all outputs; None for the first output.

    Raises:
        VerificationError: the network does not run on them.
    """
    names = [output.name for output in session.get_outputs()]
    found = iterate_outputs(session, path, images, size, names if rows else names[:1])
    return np.concatenate([_made_rows(rows, outputs) if rows else _first_flat(outputs) for outputs in found])


def _first_flat(outputs: Mapping[str, NDArray[Any]]) -> Logits:
    first = next(iter(outputs.values()))
    return np.asarray(first, dtype=np.float32).reshape(len(first), -1)


def _made_rows(rows: Rows, outputs: Mapping[str, NDArray[Any]]) -> Logits:
    from torch import from_numpy

    made: Logits = rows({name: from_numpy(value) for name, value in outputs.items()}).numpy()
    return made


def run_within(
    session: ort.InferenceSession, names: Sequence[str] | None, feed: Mapping[str, NDArray[Any]], seconds: float
) -> list[Any]:
    """`session.run`, ended after some seconds: a graph of a stranger may loop without end on what it is fed.

    Raises:
        TimeoutError: it did not come to its end; ONNX Runtime looks at the clock between operators.
    """
    options = ort.RunOptions()
    stop = threading.Timer(seconds, setattr, (options, "terminate", True))
    stop.daemon = True
    stop.start()
    try:
        found: list[Any] = session.run(names, feed, options)
        return found
    except Exception as error:
        if options.terminate:
            raise TimeoutError(f"no end came within {seconds:g} seconds") from error
        raise
    finally:
        stop.cancel()


def iterate_outputs(
    session: ort.InferenceSession,
    path: Path,
    images: "Tensor",
    size: int,
    names: Sequence[str],
    seconds: float | None = None,
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yields outputs by name, batch by batch, each with a row for every image.

    A file whose batch size is fixed runs in batches of its own, the last filled up with copies; one that takes another
    type of numbers gets the images in it.

    Args:
        session: of the file.
        path: names the file in errors.
        images: (N, ...).
        size: of the batches, where the file does not fix it.
        names: of the outputs to compute.
        seconds: that an image may take, of a file that a stranger may have made.

    Raises:
        VerificationError: the network does not run on them.
    """
    size, left = fixed_batch(session) or size, len(images)
    for batch in split_batches(images, size):
        try:
            fed = fit_batch(session, batch)
            found = run_within(session, list(names), fed, seconds * size) if seconds else session.run(list(names), fed)
            outputs = [np.asarray(output) for output in found]
        except Exception as error:
            if shortage := explain_shortage(error):
                raise shortage from error
            raise VerificationError(f"{path} does not run on batches of {size}: {first_line(error)}") from error
        count = len(next(iter(fed.values())))
        wrong = next((each for each in outputs if each.ndim < 1 or len(each) != count), None)
        if wrong is not None:
            raise VerificationError(
                f"{path} gives an output of shape {list(wrong.shape)} for a batch of {count} images"
            )
        yield {name: each[: min(count, left)] for name, each in zip(names, outputs, strict=True)}
        left -= count


def fit_batch(session: ort.InferenceSession, batch: Logits) -> dict[str, NDArray[Any]]:
    """The session's input for images (n, ...): of its own type, and filled up with copies to a batch that is fixed."""
    first = session.get_inputs()[0]
    kind = np.dtype(DTYPES.get(first.type, "float32"))
    if kind == np.uint8:
        batch = np.rint(batch).clip(0, 255)
    count = fixed_batch(session) or len(batch)
    return {first.name: np.ascontiguousarray(batch[np.arange(count) % len(batch)], dtype=kind)}


def split_batches(images: "Tensor", size: int) -> Iterator[Logits]:
    """Images (N, ...) as arrays of up to `size` of them."""
    for batch in images.detach().cpu().split(size):
        yield batch.contiguous().numpy()


def model_name(model: Path | bytes) -> str:
    """The model in an error's sentence."""
    return str(model) if isinstance(model, Path) else "a model in memory"


def _torch_threads() -> int:
    from torch import get_num_threads  # slow to import, and not needed where the number is given

    return get_num_threads()
