"""One job in a process of its own, on whatever machine a worker is."""

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from compressor.errors import BocompressError
from compressor.failures import explain
from compressor.files import claim_folder, prepare_folder
from compressor.pipeline.outputs import PAGE, REPORT
from compressor.process.children import SAFE_ENVIRONMENT, end_with_parent, python_command
from compressor.sweep.jobs import LIST
from compressor.version import VERSION

SECONDS_TO_WAIT = 60.0  # for a run of a sweep that was killed, whose last process may not have noticed yet
TAIL_BYTES = 20_000
FINISHED = (0, 3)  # exit codes: a success, and a network that is destroyed or misses its target


@dataclass(frozen=True)
class Order:
    """What a worker is sent; paths are the same on all machines.

    Attributes:
        name: of the job.
        program: module that does what `bocompress-export` does.
        arguments: of it, without --out and --resume.
        folder: to write.
        log: file that the job's output is appended to.
        cwd: the folder that relative paths are seen from.
        threads: of the job, where the environment does not say; None leaves it to the libraries.
        watch: whether the worker is a process of this sweep, which ends with it.
        version: of bocompress.
    """

    name: str
    program: str
    arguments: tuple[str, ...]
    folder: str
    log: str
    cwd: str
    threads: int | None = None
    watch: bool = False
    version: str = VERSION


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended: its exit code, what it said last where it failed, and its seconds."""

    name: str
    code: int
    sentence: str
    seconds: float


def is_finished(folder: Path) -> bool:
    """Whether a job has written all its files; the page is the last."""
    return (folder / PAGE).exists() and (folder / REPORT).exists()


def run_job(order: Order) -> JobOutcome:
    """Do a job, or go on with it; never raises for what is the job's own fault."""
    began = time.monotonic()
    try:
        code, sentence = _run(order)
    except (BocompressError, OSError) as error:
        known = explain(error) or error
        code, sentence = getattr(known, "exit_code", 1), str(known)
    return JobOutcome(order.name, code, sentence, time.monotonic() - began)


def _run(order: Order) -> tuple[int, str]:
    if order.version != VERSION:
        return 1, f"the worker has bocompress {VERSION}, the sweep {order.version}: install the same"
    if order.watch:
        end_with_parent()
    folder, log = Path(order.cwd, order.folder), Path(order.log)
    if not (folder.parent / LIST).exists():
        return 1, f"the worker does not see {folder.parent / LIST}: the sweep's folder must be shared with it"
    with claim_folder(folder, SECONDS_TO_WAIT):
        if is_finished(folder):
            return 0, ""
        resume = ["--resume"] if any(folder.iterdir()) else []
    prepare_folder(log.parent)
    command = python_command(order.program, *order.arguments, "--out", order.folder, *resume)
    begin = log.stat().st_size if log.exists() else 0
    code = _wait(command, order, log)
    return code, "" if code in FINISHED else _last_words(log, begin, code)


def _wait(command: list[str], order: Order, log: Path) -> int:
    """Run a command to its end, which comes with ours; gives its exit code."""
    environment = {**os.environ, **SAFE_ENVIRONMENT}
    if order.threads is not None:
        environment.setdefault("OMP_NUM_THREADS", str(order.threads))
    with open(log, "ab") as said:
        process = subprocess.Popen(
            command,
            cwd=order.cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,  # a Ctrl-C is the sweep's, which ends its jobs
        )
        try:
            return process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise


def _last_words(log: Path, begin: int, code: int) -> str:
    """The sentence that a job ended with, from what it wrote behind `begin` bytes of its log."""
    if code < 0:
        return f"killed by signal {-code}, for want of memory perhaps: --resume with fewer --workers goes on"
    with open(log, "rb") as file:
        file.seek(max(begin, log.stat().st_size - TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").strip().splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"ended with exit code {code}"])[-1]
