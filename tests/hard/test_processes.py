"""Runs that are killed, stopped, short of disk or memory, beside others, or in a hostile folder."""

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.errors import InputError
from compressor.files import claim_folder, scratch_folder
from compressor.files.folders import remove_leftovers
from compressor.pipeline.outputs import is_output
from compressor.process.children import python_command
from tests.hard.networks import make_network

ROOT = Path(__file__).parent.parent.parent
JOB = [sys.executable, "-W", "ignore", "-m", "tests.hard.job"]
EVIL = "import pathlib, sys; pathlib.Path(__file__).with_name('RAN').touch(); raise SystemExit('the folder ran')\n"
KINDS = {"SEARCH": 2, "RECIPE": 2, "SEARCH EXPORT": 1}  # of jobs, and how many of each are killed
WRITTEN = ("plan.json", "compressed.safetensors")


def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(command, **{"cwd": ROOT, **pipes, **options}, env=environment)


def finish(process: subprocess.Popen[str], seconds: float = 600) -> tuple[int, str]:
    """The exit code, and what was said on stderr."""
    _, said = process.communicate(timeout=seconds)
    return process.returncode, said


# --- one run at a time, and what killed ones leave ---


def test_a_folder_is_held_by_one_run(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with claim_folder(out):
        with pytest.raises(InputError, match=r"another run writes into .*: wait for its end"), claim_folder(out):
            pass
        assert out.is_dir()
    assert not out.parent.exists()  # as it was: nothing was written
    with claim_folder(out):
        (out / "file").touch()
    assert out.is_dir()


def test_leftovers_of_kills_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".plan.json.12.tmp", ".plan.json.0aF.tmp", ".notes.12ab.tmp", ".report.html.0123abcd.tmp", "mine.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".model.onnx.77.tmp").mkdir()
    (tmp_path / ".model.onnx.77.tmp" / "model.onnx").touch()
    remove_leftovers(tmp_path, is_output)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes.12ab.tmp", ".plan.json.0aF.tmp", "mine.tmp"]


def test_scratch_folders_of_dead_processes_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stale, young = tmp_path / "bocompress-stale", tmp_path / "bocompress-young"
    for folder in (stale, young):
        folder.mkdir()
    os.utime(stale, (0, 0))
    with scratch_folder() as held:
        os.utime(held, (0, 0))
        assert not stale.exists()
        with scratch_folder():
            assert held.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bocompress-young"]


Finished = Callable[[str], tuple[Path, float]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished job of a kind, and how long it took in seconds."""

    @functools.cache
    def run(kind: str) -> tuple[Path, float]:
        folder, began = tmp_path_factory.mktemp("job") / "out", time.monotonic()
        code, said = finish(start([*JOB, str(folder), *kind.split()]))
        assert code == 0, said
        return folder, time.monotonic() - began

    return run


@pytest.mark.hard
@pytest.mark.parametrize(("kind", "jobs"), KINDS.items())
def test_jobs_killed_at_any_moment_end_as_if_nothing_had_happened(
    kind: str, jobs: int, undisturbed: Finished, tmp_path: Path, tally: Callable[..., None]
) -> None:
    rng, (expected, seconds) = random.Random(kind), undisturbed(kind)
    kills = 0
    for number in range(jobs):
        out = tmp_path / str(number)
        for _ in range(2):
            process = start([*JOB, str(out), *kind.split(), "RESUME"])
            time.sleep(rng.uniform(0.25, 1.0) * seconds)
            kills += process.poll() is None
            with suppress(ProcessLookupError):  # it was faster than the undisturbed one
                os.killpg(process.pid, signal.SIGKILL)
            finish(process)
        code, said = finish(start([*JOB, str(out), *kind.split(), "RESUME"]))
        assert code == 0, said
        for name in WRITTEN:
            assert (out / name).read_bytes() == (expected / name).read_bytes(), name
        assert not [*out.rglob(".*")]
    tally("jobs killed at random moments", tried=jobs, refused=0, right=jobs)
    assert kills


@pytest.mark.hard
def test_two_runs_into_one_folder_do_not_mix(tmp_path: Path, tally: Callable[..., None]) -> None:
    processes = [start([*JOB, str(tmp_path / "out")]) for _ in range(2)]
    codes, said = zip(*map(finish, processes), strict=True)
    assert sorted(codes) == [0, 1], said
    assert "another run writes into" in said[codes.index(1)] or "already holds other files" in said[codes.index(1)]
    tally("two runs into one folder", tried=2, refused=1, right=1)


# --- signals ---


SIGNALLED = """
import os, signal, sys, time, weakref
import click
from compressor.cli.errors import explain_errors

number, swallowed = int(sys.argv.pop(1)), sys.argv.pop(1) == "True"
signal.signal(number, before := lambda *_: None)

class Target:
    pass

@click.command()
@explain_errors
def wait():
    target = Target()
    reference = weakref.ref(target, lambda _: os.kill(os.getpid(), number) if swallowed else None)
    try:
        if not swallowed:
            os.kill(os.getpid(), number)
        del target  # the interruption is raised in the callback, where Python swallows it
        time.sleep(20)
    finally:
        print("cleaned")

try:
    wait()
finally:
    print(signal.getsignal(number) is before)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_signal_ends_a_command_in_a_sentence(number: signal.Signals, swallowed: bool) -> None:
    process = start([sys.executable, "-P", "-c", SIGNALLED, str(int(number)), str(swallowed)])
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (128 + number, "cleaned\nTrue\n", "stopped\n")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`bocompress-export` of the small network, with synthetic images."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.pt"
    torch.save(make_network(), path)
    program = "from compressor.cli.commands import export; export()"
    options = ["--trust-pickle", "--input-size", "12", "--max-images", "40", "--max-evaluations", "8"]
    return [sys.executable, "-P", "-c", program, str(path), *options]


@pytest.mark.hard
def test_a_termination_says_how_to_go_on_and_leaves_no_worker(tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start([*tiny, "--workers", "2", "--out", str(out), "--max-evaluations", "200", "--delta", "1e-9"])
    wait_for(out / "search.jsonl", process)
    os.kill(process.pid, signal.SIGTERM)
    code, said = finish(process)
    assert code == 128 + signal.SIGTERM, said
    assert f"{out / 'search.jsonl'} is kept, go on with:" in said
    assert not processes_of(process.pid)


@pytest.mark.hard
def test_workers_end_with_a_parent_that_is_killed(tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start([*tiny, "--workers", "2", "--out", str(out), "--max-evaluations", "200", "--delta", "1e-9"])
    wait_for(out / "search.jsonl", process, lines=4)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while processes_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes_of(process.pid)


def wait_for(path: Path, process: subprocess.Popen[str], lines: int = 1) -> None:
    while not (path.exists() and path.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None, finish(process)
        time.sleep(0.05)


def processes_of(group: int) -> list[int]:
    """Processes of the group that are alive and have loaded torch."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, pgrp = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state != "Z" and "libtorch" in (folder / "maps").read_text():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


# --- folders that are hostile, disks that are full ---


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose files stand for modules that programs load."""
    folder = tmp_path / "hostile"
    for name in ("benchmarks", "compressor", "exporters", "numpy"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(EVIL)
    for name in ("random", "runpy", "json", "joblib", "sitecustomize"):
        (folder / f"{name}.py").write_text(EVIL)
    return folder


def test_a_program_of_ours_runs_nothing_of_the_current_folder(hostile: Path) -> None:
    command = python_command("compressor.streams")
    done = subprocess.run(command, cwd=hostile, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not [*hostile.rglob("RAN")]


@pytest.mark.hard
def test_nothing_of_the_current_folder_runs(hostile: Path, tiny: list[str], tmp_path: Path) -> None:
    code, said = finish(start([*tiny, "--workers", "2", "--out", str(tmp_path / "out")], cwd=hostile))
    assert code in (0, 3), said
    program = "from benchmarks.cli import benchmark; benchmark()"
    model = str(tmp_path / "out" / "model.onnx")
    code, said = finish(start([sys.executable, "-P", "-c", program, model], cwd=hostile))
    assert code == 0, said
    assert not [*hostile.rglob("RAN")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kilobytes, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_or_read_only_disk_is_found_at_once(small_disk: Path) -> None:
    with claim_folder(small_disk / "out"):
        pass
    (small_disk / "full").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(InputError, match="No space left on device"), claim_folder(small_disk):
        pass
    (small_disk / "full").unlink()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for folder in (small_disk, small_disk / "out"):
        with pytest.raises(InputError, match="Read-only file system"), claim_folder(folder):
            pass


@pytest.mark.hard
def test_a_disk_that_fills_up_ends_a_job_in_a_sentence(small_disk: Path) -> None:
    code, said = finish(start([*JOB, str(small_disk / "out")]))
    assert (code, said.splitlines()[-1].startswith("refused: cannot write ")) == (1, True), said
    assert "No space left on device" in said
    assert not [*small_disk.rglob(".*.tmp")]


# --- memory, network, streams ---


@pytest.mark.hard
@pytest.mark.parametrize("megabytes", [1500, 2500, 3500, 6000])
def test_short_memory_is_not_blamed_on_the_file(megabytes: int, tiny: list[str], tmp_path: Path) -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    big = {"fc.weight": torch.zeros(200_000, 512), "more": torch.zeros(10**8)}
    torch.save(big, tmp_path / "big.pt")
    program = "from compressor.cli.commands import main; main()"
    command = [sys.executable, "-P", "-c", program, "inspect", str(tmp_path / "big.pt")]
    code, said = finish(start(command, preexec_fn=limit))
    assert code in (1, 2), said
    assert "Traceback" not in said
    assert "damaged" not in said
    assert ("too little memory" in said) == (code == 1), said


NO_NETWORK = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"):
        if not (arguments and isinstance(arguments[-1], str) and arguments[-1].startswith("/")):
            print("NETWORK", event, arguments, file=sys.stderr, flush=True)
            raise OSError("no network here")
sys.addaudithook(refuse)
"""


@pytest.mark.hard
def test_a_whole_job_asks_for_no_network(tiny: list[str], tmp_path: Path) -> None:
    """Python's own sockets are watched; where the system allows it, there is no network below them either."""
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    wall = ["unshare", "--net"]
    alone = subprocess.run([*wall, "true"], capture_output=True, check=False).returncode == 0
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    command = [
        *(wall if alone else []),
        *tiny,
        "--precision",
        "int8",
        "--format",
        "ort",
        "--out",
        str(tmp_path / "out"),
    ]
    code, said = finish(start(command, env={"PYTHONPATH": path}))
    assert code in (0, 3), said
    assert "NETWORK" not in said


@pytest.mark.hard
def test_closed_streams_and_names_that_are_no_utf8_lose_nothing(tiny: list[str], tmp_path: Path) -> None:
    model, out = tmp_path / os.fsdecode(b"m\xff.pt"), tmp_path / os.fsdecode(b"out\xfe")
    shutil.copy(tiny[4], model)
    command = " ".join(["exec", '"$0" "$@"', "2>&-", "<&-"])
    options = [str(model) if word == tiny[4] else word for word in tiny]
    process = start(["sh", "-c", command, *options, "--out", str(out)], errors="surrogateescape")
    stdout, _ = process.communicate(timeout=600)
    assert process.returncode in (0, 3)
    assert (out / "report.html").exists()
    assert "m\\\\xff.pt" in (out / "report.json").read_text()
    assert stdout.splitlines()[-1] == str(out / "model.onnx")  # to the byte, for scripts
