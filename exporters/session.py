"""Sessions of ONNX Runtime: opened on the provider asked for or not at all, and run batch by batch.

Nothing here imports torch: `bocompress benchmark` measures the memory of processes that hold ONNX Runtime alone.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from compressor.errors import InputError, VerificationError
from compressor.text import first_line

if TYPE_CHECKING:
    from torch import Tensor

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
FALLBACKS = {TENSORRT: [CUDA]}  # what TensorRT cannot run stays on the GPU
LOG_FATAL_ONLY = 4  # ONNX Runtime's severity: failures are raised, they need not be printed too

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
        session = ort.InferenceSession(model, options or session_options(threads), providers)
    except Exception as error:
        raise VerificationError(f"ONNX Runtime cannot load {model_name(model)}: {first_line(error)}") from error
    used = session.get_providers()[0]
    if used != provider:
        raise InputError(f"{provider} cannot be used here: ONNX Runtime fell back to {used}")
    return session


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


def describe_input(path: Path) -> tuple[str, int | None]:
    """The architecture in the file's metadata (empty if it has none), and the side of its square input, if fixed.

    Raises:
        InputError: the file cannot be loaded, or does not take one batch of float32 images.
    """
    try:
        session = open_session(Path(path), threads=1)
    except VerificationError as error:
        raise InputError(str(error)) from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
        raise InputError(f"{path} does not take one batch of float32 images")
    side = inputs[0].shape[-1]
    return session.get_modelmeta().custom_metadata_map.get("architecture", ""), side if isinstance(side, int) else None


def run_batches(session: ort.InferenceSession, path: Path, images: "Tensor", size: int) -> Logits:
    """The first output (N, ...) for images (N, ...), run in batches of `size`; `path` names the file in errors.

    Raises:
        VerificationError: the network does not run on them.
    """
    name = session.get_inputs()[0].name
    try:
        outputs = [session.run(None, {name: batch})[0] for batch in split_batches(images, size)]
    except Exception as error:
        raise VerificationError(f"{path} does not run on batches of {size}: {first_line(error)}") from error
    return np.concatenate(outputs)


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
