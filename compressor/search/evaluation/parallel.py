"""Evaluations that do not depend on one another, run by several workers.

Losses come back in the order of the evaluations, so that a search depends on neither the number of workers nor the
backend.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np

from compressor.arrays import Ranks
from compressor.fidelity.losses import Losses
from compressor.search.problem import Evaluate
from compressor.workers.backend import Backend, Prepare, Task
from compressor.workers.registry import DEFAULT_BACKEND, make_backend


class Workers:
    """Runs several evaluations at once; a context manager, which ends at its end what it started.

    Each worker is sent the function to evaluate once, on this machine and in clusters of Ray and Dask; other backends
    get it with every evaluation. Nothing is started before there are several evaluations.

    Args:
        count: number of workers; with one, evaluations run in this process, and `backend` does not matter.
        backend: "loky", "multiprocessing", "threading", "ray", "dask", or another that was registered with joblib.
        prepare: called once in each worker process on this machine, before its first evaluation.
        cluster: address of a cluster of Ray or Dask that runs already.

    Raises:
        InputError: there is no such backend.
    """

    def __init__(
        self,
        count: int = 1,
        backend: str = DEFAULT_BACKEND,
        prepare: Prepare | None = None,
        cluster: str | None = None,
    ) -> None:
        self._made = make_backend(backend, count, cluster, prepare) if count > 1 else None
        self._held = ExitStack()
        self._backend: Backend | None = None
        self._sent: dict[int, tuple[Evaluate, Task]] = {}  # the function is kept, so that its id stays its own

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._sent.clear()
        self._backend = None
        self._held.close()

    def run(self, evaluate: Evaluate, evaluations: Sequence[tuple[Ranks, np.ndarray]]) -> Iterator[Losses]:
        """Losses of every evaluation, in their order, as they come.

        Args:
            evaluate: ranks (d,) and image indices (m,) in, per-image losses out.
            evaluations: the ranks and the image indices of each.

        Raises:
            InputError: the network cannot be sent to other processes, or the cluster cannot be reached.
            BocompressError: a worker died.
        """
        if self._made is None or len(evaluations) < 2:
            yield from (evaluate(ranks, images) for ranks, images in evaluations)
            return
        if self._backend is None:
            self._backend = self._held.enter_context(self._made)
        if id(evaluate) not in self._sent:
            self._sent[id(evaluate)] = evaluate, self._backend.share(evaluate)
        yield from self._backend.run(self._sent[id(evaluate)][1], evaluations)
