"""ONNX files of strangers: what they refer to is checked, and they are run once in a process of their own, first.

A graph may loop without end, ask for all memory or crash the runtime; in a process of its own it does so alone.

    python -m exporters.strangers FILE SIDE

loads the file and runs it on one input of zeros and one of noise, with SIDE pixels where it leaves its sides open.
"""

import os
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from compressor.errors import BocompressError, InputError, ShortageError
from compressor.failures import SHORT, blaming, explain
from compressor.files import open_regular
from compressor.process.children import python_command
from compressor.text import first_line

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MAX_FILE_BYTES = 2**31  # what protobuf and ORT format can hold
MAX_INPUT_NUMBERS = 2**28  # of one input, as float32 a gigabyte
MAX_SIDE = 224  # pixels of sides that the file leaves open
SECONDS_ALLOWED = 60
MIN_MEMORY_BYTES = 2**32


def external_files(path: Path) -> list[Path]:
    """The files beside an ONNX file that hold its weights, each within its folder.

    Raises:
        InputError: it is no ONNX file, or names a file elsewhere, a device or the like, or more than a file has.
    """
    import onnx
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    with blaming(lambda reason: InputError(f"{path} is not an ONNX network ({reason})")):
        proto = onnx.load(path, load_external_data=False)
        tensors = [tensor for tensor in _get_all_tensors(proto) if uses_external_data(tensor)]
        told = [{entry.key: entry.value for entry in tensor.external_data} for tensor in tensors]
        ends = [int(one.get("offset") or 0) + int(one.get("length") or 0) for one in told]
    folder, found = path.parent.resolve(), dict[Path, None]()
    for one, end in zip(told, ends, strict=True):
        name = one.get("location", "")
        part = path.parent / name
        if Path(name).is_absolute() or not part.resolve().is_relative_to(folder):
            raise InputError(f"{path} keeps weights at {name!r}, outside its folder: that is not read")
        with open_regular(part) as file:
            if end > os.fstat(file.fileno()).st_size:
                raise InputError(f"{path} keeps more weights at {name!r} than there are")
        found[part] = None
    return list(found)


def require_sound(path: Path, side: int | None = None) -> None:
    """Check an ONNX or ORT file that a stranger may have made, in a process of its own that loads and runs it.

    Args:
        path: the file.
        side: pixels of the sides that the file leaves open.

    Raises:
        InputError: there is no such file, it refers to files elsewhere, does not load or run, or not within
            SECONDS_ALLOWED, or crashes the runtime.
        ShortageError: there was too little memory.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            raise InputError(f"{path} is larger than an ONNX file can be")
    command = python_command("exporters.strangers", path, side or MAX_SIDE)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS_ALLOWED)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{path} does not run to its end within {SECONDS_ALLOWED} seconds") from error
    if done.returncode < 0:
        raise InputError(f"{path} crashes ONNX Runtime (signal {-done.returncode})")
    if done.returncode:
        raise _explain_end(path, done.stderr.strip().splitlines() or [f"ONNX Runtime ends with {done.returncode}"])


def _explain_end(path: Path, said: list[str]) -> BocompressError:
    """Why the process ended, by its last line: that the file is at fault, or that there was too little memory."""
    if said[-1].startswith(str(path)):
        return InputError(said[-1])
    if SHORT.search(said[-1]) or any(words in said[-1] for words in ("MemoryError", "too little memory")):
        return ShortageError(f"there is too little memory to run {path} ({first_line(Exception(said[-1]))})")
    return InputError(f"{path} cannot be run: {said[-1]}")


def _run_once(path: Path, side: int) -> None:
    from exporters.session import open_session

    if path.suffix != ".ort":
        external_files(path)
    session = open_session(path, threads=1)
    feed = {each.name: _zeros(path, each, side) for each in session.get_inputs()}
    with blaming(lambda reason: InputError(f"{path} does not run on zeros or noise: {reason}")):
        session.run(None, feed)
        session.run(None, {name: _noise(zeros) for name, zeros in feed.items()})  # what loops may depend on


def _zeros(path: Path, given: Any, side: int) -> Any:
    kinds = {"float": "float32", "double": "float64"}
    name = given.type.removeprefix("tensor(").removesuffix(")")
    shape = [size if isinstance(size, int) else 1 if axis == 0 else side for axis, size in enumerate(given.shape)]
    if len(shape) in (4, 5) and not isinstance(given.shape[1], int):
        shape[1] = 3
    if min(shape, default=1) < 1 or prod(shape) > MAX_INPUT_NUMBERS:
        raise InputError(f"{path} takes inputs of shape {given.shape}: such cannot be made")
    with blaming(lambda _: InputError(f"{path} takes {given.name} of {given.type}: only numbers can be fed")):
        return np.zeros(shape, np.dtype(kinds.get(name, name)))


def _noise(zeros: Any) -> Any:
    """Random numbers in place of an input of zeros, where these may be fractions."""
    if zeros.dtype.kind != "f":
        return zeros
    return np.random.default_rng(0).standard_normal(zeros.shape, dtype=np.float32).astype(zeros.dtype)


def _main(path: Path, side: int) -> str | int:
    """Run the file; the sentence that says why it cannot be, or 0."""
    if resource is not None:  # more than there is would end other processes
        present, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = max(MIN_MEMORY_BYTES, psutil.virtual_memory().available)
        if present == resource.RLIM_INFINITY or present > most:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        _run_once(path, side)
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        return str(sentence)
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), int(sys.argv[2])))
