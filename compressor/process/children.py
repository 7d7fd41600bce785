"""Processes that we start: nothing of the current folder runs in them, and they do not outlive us."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SECONDS_BETWEEN_CHECKS = 1.0
# Python puts the current folder first where a program is given by -m or -c: `random.py` there would be run.
SAFE_ENVIRONMENT = {"PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "ignore"}
PROGRAM = (
    "import runpy, sys; root = sys.argv.pop(1); root in sys.path or sys.path.append(root); "
    "sys.argv.pop(0); runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def python_command(module: str, *arguments: object) -> list[str]:
    """The command that runs a module of ours in a Python of its own, installed or not."""
    return [sys.executable, "-P", "-c", PROGRAM, str(ROOT), module, *map(str, arguments)]


@contextmanager
def safe_children() -> Iterator[None]:
    """Python processes that libraries start within the block do not run files of the current folder, nor warn."""
    before = {name: os.environ.get(name) for name in SAFE_ENVIRONMENT}
    for name, value in SAFE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)


def end_with_parent() -> None:
    """Let this process end when its parent does, however that ends; asking again changes nothing."""
    _watch_parent(os.getpid())


@cache
def _watch_parent(_process: int) -> None:  # a forked process has its own parent to watch
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_CHECKS)
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
