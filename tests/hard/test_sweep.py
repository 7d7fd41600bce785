"""Sweeps of real processes: killed at any moment, stopped, and by real clusters of Ray and Dask."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.hard.networks import make_network
from tests.hard.test_processes import finish, processes_of, start

pytestmark = pytest.mark.hard
SWEEP = [sys.executable, "-W", "ignore", "-P", "-m", "tests.hard.sweeping"]
OPTIONS = ["--trust-pickle", "--input-size", "12", "--max-images", "40", "--max-evaluations", "8", "--samples", "4"]
GAMMAS = ["--gammas", "0.1,0.5"]
WRITTEN = ("plan.json", "compressed.safetensors", "search.jsonl")
KILLS = 4
Tally = Callable[..., None]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three networks."""
    folder = tmp_path_factory.mktemp("models")
    for seed in range(3):
        torch.manual_seed(seed)
        torch.save(make_network(), folder / f"net{seed}.pt")
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def undisturbed(models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of six jobs on two workers."""
    folder = tmp_path_factory.mktemp("sweep") / "out"
    code, said = finish(start([*SWEEP, *models, *OPTIONS, *GAMMAS, "--workers", "2", "--out", str(folder)]))
    assert code in (0, 3), said
    assert len([*folder.glob("net*")]) == 6
    return folder


def require_same(out: Path, expected: Path) -> None:
    """Check that all jobs of a sweep ended as those of another."""
    jobs = {path.name for path in out.glob("net*")}
    assert jobs
    assert jobs <= {path.name for path in expected.glob("net*")}
    for job in jobs:
        for name in WRITTEN:
            assert (out / job / name).read_bytes() == (expected / job / name).read_bytes(), (job, name)
    assert not [*out.rglob(".*")]


def test_a_sweep_that_is_killed_four_times_ends_as_if_nothing_had_happened(
    models: list[str], undisturbed: Path, tmp_path: Path, tally: Tally
) -> None:
    rng = random.Random(0)
    command = [*SWEEP, *models, *OPTIONS, *GAMMAS, "--workers", "2", "--resume", "--out", str(tmp_path / "out")]
    for kill in range(KILLS):
        process = start(command)
        wait_for_files(tmp_path / "out", "net*/report.html" if kill else "net*/search.jsonl", kill or 1, process)
        time.sleep(rng.uniform(0.0, 1.0))
        process.kill()  # its workers, and their jobs, notice by themselves
        assert finish(process)[0] == -signal.SIGKILL
    code, said = finish(start(command))
    assert code in (0, 3), said
    require_same(tmp_path / "out", undisturbed)
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert {row["state"] for row in record["rows"]} <= {"done", "no success"}
    assert len(record["rows"]) == 6
    tally("sweeps killed four times", tried=1, refused=0, right=1)


@pytest.mark.parametrize(("backend", "number"), [("loky", signal.SIGTERM), ("threading", signal.SIGINT)])
def test_a_sweep_that_is_stopped_says_how_to_go_on_and_leaves_no_job(
    backend: str, number: signal.Signals, models: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [*SWEEP, *models, *OPTIONS, *GAMMAS, "--workers", "2", "--backend", backend, "--out", str(out)]
    # Also where these tests run in the background, which lets their processes ignore interruptions.
    process = start(command, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))
    wait_for_files(out, "net*/search.jsonl", 1, process)
    os.kill(process.pid, number)
    code, said = finish(process)
    assert code == 128 + number, said
    assert "stopped; " in said
    assert said.splitlines()[-1].endswith("--resume")
    assert "Traceback" not in said
    deadline = time.monotonic() + 10
    while jobs_of(out) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not jobs_of(out)
    assert not processes_of(process.pid)


def wait_for_files(out: Path, pattern: str, count: int, process: subprocess.Popen[str]) -> None:
    while len([*out.glob(pattern)]) < count:
        assert process.poll() is None, finish(process)
        time.sleep(0.1)


def jobs_of(out: Path) -> list[str]:
    """Commands of processes that name the folder, other than this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace")
            if str(out) in words and "tests.unmeasured" in words and int(folder.name) != os.getpid():
                found.append(words)
    return found


# --- clusters ---


@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_a_real_cluster_gives_the_same_jobs(
    backend: str,
    models: list[str],
    undisturbed: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    tally: Tally,
) -> None:
    address = request.getfixturevalue(f"{backend}_cluster")
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no checkpoint")
    where = ["--backend", backend, "--cluster", address, "--out", "out"]
    command = [*SWEEP, *models[:2], broken.name, *OPTIONS, "--gammas", "0.5", *where]
    code, said = finish(start(command, cwd=tmp_path))  # paths are seen from here, wherever workers are
    assert code == 1, said
    assert "error: broken-gamma-0.5-seed-0: " in said
    assert "Traceback" not in said
    (tmp_path / "out" / "net0-gamma-0.5-seed-0" / "plan.json").stat()
    require_same(tmp_path / "out", undisturbed)
    tally(f"jobs by a cluster of {backend.capitalize()}", tried=3, refused=1, right=2)


@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_a_cluster_that_the_sweep_starts_itself(
    backend: str, models: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    where = ["--backend", backend, "--workers", "2", "--out", str(tmp_path / "out")]
    code, said = finish(start([*SWEEP, *models[:2], *OPTIONS, "--gammas", "0.1", *where]))
    assert code in (0, 3), said
    require_same(tmp_path / "out", undisturbed)
    assert not jobs_of(tmp_path / "out")


@pytest.mark.parametrize(("backend", "address"), [("ray", "127.0.0.1:1"), ("dask", "tcp://127.0.0.1:1")])
def test_no_cluster_at_the_address_is_one_sentence(
    backend: str, address: str, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ["--backend", backend, "--cluster", address, "--out", str(tmp_path / "out")]
    code, said = finish(start([*SWEEP, models[0], *OPTIONS, *where]))
    assert code == 2, said
    assert said.splitlines()[-1].startswith(f"error: --backend {backend} cannot be used (")
    assert "Traceback" not in said
