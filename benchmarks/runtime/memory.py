"""Peak memory of a fresh process that loads one ONNX file and runs it.

    python -m benchmarks.runtime.memory RUNTIME FILE PROVIDER THREADS SHAPE...

prints the bytes by which the peak resident size of the process grew when the file was loaded and run, after Python,
numpy, the runtime and a network of one operator had been loaded. A GPU's memory is not included.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

from compressor.errors import BocompressError, InputError
from compressor.files import scratch_folder
from compressor.process.children import python_command
from exporters.providers import tiny_model
from exporters.runtimes.registry import ONNX_RUNTIME, open_runtime

RUNS = 3
LINUX_STATUS = Path("/proc/self/status")
SECONDS_ALLOWED = 600


def peak_memory_bytes(
    path: Path, provider: str, threads: int, shape: tuple[int, ...], runtime: str = ONNX_RUNTIME
) -> int | None:
    """Peak resident memory of running a file in a process of its own, above that of an empty one.

    Args:
        path: the file.
        provider: where it runs.
        threads: of the runtime.
        shape: of the inputs, batch first.
        runtime: by its name in the registry of runtimes.

    Returns:
        Bytes; None where the system does not report it (Windows).

    Raises:
        BocompressError: the process failed.
    """
    program = python_command(__name__, runtime, path, provider, threads, *shape)
    try:
        done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=SECONDS_ALLOWED)
    except subprocess.TimeoutExpired as error:
        raise BocompressError(f"measuring the memory of {path} came to no end in {SECONDS_ALLOWED} seconds") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise BocompressError(f"measuring the memory of {path} failed: {reason}")
    grown = int(done.stdout)
    return grown if grown >= 0 else None


def _grow(name: str, path: Path, provider: str, threads: int, shape: tuple[int, ...], scratch: Path) -> int:
    probe = scratch / "probe.onnx"
    probe.write_bytes(tiny_model())
    runtime = open_runtime(name)
    batch = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    runtime.open(probe, np.ones(1, np.float32), provider, threads)
    before = _peak_bytes()
    run = runtime.open(path, batch, provider, threads).run
    for _ in range(RUNS):
        run()
    after = _peak_bytes()
    return -1 if before is None or after is None else after - before


def _peak_bytes() -> int | None:
    if LINUX_STATUS.exists():  # getrusage would log the peak of the process that started this one, if that was larger
        for line in LINUX_STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:
        return None
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # macOS counts bytes


if __name__ == "__main__":
    runtime_name, file, name, count, *sides = sys.argv[1:]
    with scratch_folder() as folder:
        try:
            print(_grow(runtime_name, Path(file), name, int(count), tuple(map(int, sides)), Path(folder)))
        except (BocompressError, InputError) as error:
            sys.exit(str(error))
