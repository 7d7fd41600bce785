"""Evaluations that do not depend on one another, run by several workers through joblib.

Losses come back in the order of the evaluations, so that a search depends on neither the number of workers nor the
backend.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from joblib import Parallel, delayed, parallel_config

from compressor.arrays import Ranks
from compressor.children import end_with_parent, safe_children
from compressor.errors import BocompressError, InputError
from compressor.fidelity.losses import Losses
from compressor.files import scratch_folder
from compressor.search.problem import Evaluate
from compressor.text import first_line

DEFAULT_BACKEND = "loky"
SAME_MACHINE = ("loky", "multiprocessing")
# Modules of other packages that provide a backend, and their function that registers it with joblib.
REGISTRARS = {"ray": ("ray.util.joblib", "register_ray"), "spark": ("joblibspark", "register_spark")}


class Workers:
    """Runs several evaluations at once; a context manager, which deletes at its end what workers were sent.

    On this machine's backends each worker process loads the function to evaluate once, from a temporary file. Other
    backends get it with every evaluation, and may keep it (dask does).

    Args:
        count: number of workers; with one, evaluations run in this process, and `backend` does not matter.
        backend: name of a joblib backend: "loky", "multiprocessing", "threading", one that was registered, or "ray" or
            "spark", which are registered where their packages are installed.
        prepare: called once in each worker process on this machine, before its first evaluation.

    Raises:
        InputError: joblib has no such backend, or cannot start it.
    """

    def __init__(
        self, count: int = 1, backend: str = DEFAULT_BACKEND, prepare: Callable[[], object] | None = None
    ) -> None:
        self._count = count
        self._backend = backend
        self._prepare = prepare
        self._held = ExitStack()
        self._folder: Path | None = None
        self._sent: dict[int, tuple[Evaluate, Path]] = {}  # the function is kept, so that its id stays its own
        if count > 1:
            _require_backend(backend, count)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._sent.clear()
        self._held.close()

    def run(self, evaluate: Evaluate, evaluations: Sequence[tuple[Ranks, np.ndarray]]) -> Iterator[Losses]:
        """Losses of every evaluation, in their order, as they come.

        Args:
            evaluate: ranks (d,) and image indices (m,) in, per-image losses out.
            evaluations: the ranks and the image indices of each.

        Raises:
            InputError: the network cannot be sent to other processes.
            BocompressError: a worker died.
        """
        if self._count == 1 or len(evaluations) < 2:
            yield from (evaluate(ranks, images) for ranks, images in evaluations)
            return
        task = self._task(evaluate)
        try:
            with safe_children(), parallel_config(backend=self._backend, n_jobs=self._count):
                yield from _parallel()(delayed(task)(ranks, images) for ranks, images in evaluations)
        except BrokenExecutor as error:
            raise BocompressError(
                "a worker ended unexpectedly, for want of memory perhaps: --resume with fewer --workers goes on"
            ) from error

    def _task(self, evaluate: Evaluate) -> Evaluate:
        return _Loaded(str(self._file_of(evaluate)), self._prepare) if self._backend in SAME_MACHINE else evaluate

    def _file_of(self, evaluate: Evaluate) -> Path:
        if id(evaluate) not in self._sent:
            self._folder = self._folder or self._held.enter_context(scratch_folder())
            path = self._folder / str(len(self._sent))
            try:
                path.write_bytes(cloudpickle.dumps(evaluate))
            except OSError as error:
                raise InputError(f"cannot write {path}: {error.strerror}") from error
            except Exception as error:  # whatever keeps a user's network from being pickled
                raise InputError(
                    f"the network cannot be sent to other processes ({first_line(error)}): "
                    "use --backend threading or --workers 1"
                ) from error
            self._sent[id(evaluate)] = evaluate, path
        return self._sent[id(evaluate)][1]


class _Loaded:
    """Loads the function to evaluate from a file; a worker process keeps the last one that it loaded."""

    _path: str | None = None
    _evaluate: Evaluate

    def __init__(self, path: str, prepare: Callable[[], object] | None) -> None:
        self.path = path
        self.prepare = prepare

    def __call__(self, ranks: Ranks, images: np.ndarray) -> Losses:
        if _Loaded._path != self.path:
            if _Loaded._path is None:
                end_with_parent()
            if self.prepare is not None:
                self.prepare()
            _Loaded._evaluate = cloudpickle.loads(Path(self.path).read_bytes())
            _Loaded._path = self.path
        return _Loaded._evaluate(ranks, images)


def _parallel() -> Any:
    """Losses as they come, in order, where the backend can; else all at the end."""
    try:
        return Parallel(batch_size=1, return_as="generator")
    except ValueError:
        return Parallel(batch_size=1)


def _require_backend(backend: str, count: int) -> None:
    try:
        _register(backend)
        with parallel_config(backend=backend, n_jobs=count):
            Parallel()
    except Exception as error:  # joblib's, or that of the backend's own package
        raise InputError(
            f"--backend {backend} cannot be used ({first_line(error)}): loky and threading come with joblib, "
            "others must be installed and registered with it"
        ) from error


def _register(backend: str) -> None:
    if backend in REGISTRARS:
        module, function = REGISTRARS[backend]
        with suppress(ImportError):  # joblib then reports an unknown backend
            getattr(importlib.import_module(module), function)()
