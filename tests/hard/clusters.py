"""Real clusters of Ray and Dask on this machine, each started as people start theirs."""

import importlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent  # workers take the tests' own functions from there


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The address of a real cluster of Ray, of one machine with two processors, and with a token of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield from start_ray()


def start_ray() -> Iterator[str]:
    port = free_port()
    ray = str(Path(sys.executable).with_name("ray"))
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    begin = [ray, "start", "--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false", "--block"]
    process = subprocess.Popen(
        [*begin, "--disable-usage-stats"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        address = importlib.import_module("ray.util").get_node_ip_address()  # Ray takes localhost for that, too
        wait_for_port(address, port, process)
        yield f"{address}:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real cluster of Dask: a scheduler and two workers, each a process started on its own."""
    port, folder = free_port(), tmp_path_factory.mktemp("dask")
    dask = str(Path(sys.executable).with_name("dask"))
    address = f"tcp://127.0.0.1:{port}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    quiet = {"cwd": folder, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"], **quiet
    )
    wait_for_port("127.0.0.1", port, scheduler)
    worker = [dask, "worker", address, "--nthreads", "1", "--no-dashboard", "--memory-limit", "0"]
    workers = [subprocess.Popen(worker, **quiet) for _ in range(2)]
    try:
        yield address
    finally:
        for process in (*workers, scheduler):
            process.terminate()
            process.wait(60)


def wait_for_port(host: str, port: int, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, process.args
        with suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        time.sleep(0.2)
    raise AssertionError(f"nothing listens at {host}:{port}")
