"""Workers by joblib: processes and threads of this machine, and backends that other packages register with it."""

import importlib
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import cloudpickle
from joblib import Parallel, delayed, parallel_config

from compressor.errors import InputError
from compressor.files import scratch_folder
from compressor.process.children import end_with_parent, safe_children
from compressor.text import first_line
from compressor.workers.backend import Backend, Prepare, Task, cannot_use, not_sendable, worker_died

SAME_MACHINE = ("loky", "multiprocessing")
# Modules of other packages that provide a backend, and their function that registers it with joblib.
REGISTRARS = {"spark": ("joblibspark", "register_spark")}


class JoblibBackend(Backend):
    """Runs tasks by a backend of joblib's.

    On this machine's processes a shared task is loaded once in each, from a temporary file. Other backends get it with
    every item.

    Args:
        name: of the backend: "loky", "multiprocessing", "threading", or one that was registered.
        count: number of workers.
        prepare: called once in each worker process on this machine, before the first shared task.

    Raises:
        InputError: joblib has no such backend, or cannot start it.
    """

    def __init__(self, name: str, count: int, prepare: Prepare | None = None) -> None:
        self._name = name
        self._count = count
        self._prepare = prepare
        self._held = ExitStack()
        self._folder: Path | None = None
        self._number = 0
        _require(name, count)

    def __exit__(self, *_: object) -> None:
        """Remove what workers were sent."""
        self._folder = None
        self._held.close()

    def share(self, task: Task) -> Task:
        """See `Backend.share`."""
        if self._name not in SAME_MACHINE:
            return task
        if self._folder is None:
            self._folder = self._held.enter_context(scratch_folder())
        path = self._folder / str(self._number)
        self._number += 1
        try:
            path.write_bytes(cloudpickle.dumps(task))
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        except Exception as error:  # whatever keeps a user's network from being pickled
            raise not_sendable(error) from error
        return _Loaded(str(path), self._prepare)

    def run(self, task: Task, items: Sequence[tuple[Any, ...]], in_order: bool = True) -> Iterator[Any]:
        """See `Backend.run`."""
        try:
            with safe_children(), parallel_config(backend=self._name, n_jobs=self._count):
                yield from _parallel(in_order)(delayed(task)(*item) for item in items)
        except BrokenExecutor as error:
            raise worker_died(error) from error


class _Loaded:
    """Loads a task from a file; a worker process keeps the last one that it loaded."""

    _path: str | None = None
    _task: Task

    def __init__(self, path: str, prepare: Prepare | None) -> None:
        self.path = path
        self.prepare = prepare

    def __call__(self, *arguments: Any) -> Any:
        if _Loaded._path != self.path:
            end_with_parent()
            if self.prepare is not None:
                self.prepare()
            _Loaded._task = cloudpickle.loads(Path(self.path).read_bytes())
            _Loaded._path = self.path
        return _Loaded._task(*arguments)


def _parallel(in_order: bool) -> Any:
    """Results as they come, where the backend can; else all at the end."""
    try:
        return Parallel(batch_size=1, return_as=f"generator{'' if in_order else '_unordered'}")
    except ValueError:
        return Parallel(batch_size=1)


def _require(name: str, count: int) -> None:
    try:
        if name in REGISTRARS:
            module, function = REGISTRARS[name]
            with suppress(ImportError):  # joblib then reports an unknown backend
                getattr(importlib.import_module(module), function)()
        with parallel_config(backend=name, n_jobs=count):
            Parallel()
    except Exception as error:  # joblib's, or that of the backend's own package
        raise cannot_use(name, first_line(error)) from error
