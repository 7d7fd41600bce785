"""Workers of Dask: a cluster that runs already, or one of this machine's processes."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from compressor.files import scratch_folder
from compressor.process.children import safe_children
from compressor.text import first_line
from compressor.workers.backend import ClusterBackend, Prepare, Task, call, cannot_use, not_sendable, worker_died

SECONDS_TO_CONNECT = 30


class DaskBackend(ClusterBackend):
    """Runs tasks in Dask's workers; a task whose worker is lost begins anew in another, three times.

    Args:
        count: tasks at once; None for the cluster's threads.
        address: of a scheduler, such as tcp://host:8786; None starts a cluster on this machine.
        prepare: called once in each worker process of a cluster started here.

    Raises:
        InputError: Dask's `distributed` is not installed.
    """

    def __init__(self, count: int | None, address: str | None = None, prepare: Prepare | None = None) -> None:
        self._count = count
        self._address = address
        self._prepare = prepare if address is None else None
        self._held = ExitStack()
        try:
            import dask
            import distributed
        except ImportError as error:
            raise cannot_use("dask", first_line(error)) from error
        self._dask: Any = dask
        self._distributed: Any = distributed

    def __enter__(self) -> "DaskBackend":
        """Connect to the cluster, or start one.

        Raises:
            InputError: no scheduler answers at the address.
        """
        with self._held as held:
            try:
                self._client = self._connect(held)
            except Exception as error:  # OSError, ValueError: whatever an address may lead to
                raise cannot_use("dask", first_line(error)) from error
            if self._prepare is not None:
                self._client.run(self._prepare)
            self.size = self._count or max(1, sum(self._client.ncores().values()))
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the cluster; one that was started here ends."""
        self._held.close()

    def _connect(self, held: ExitStack) -> Any:
        options = {"timeout": SECONDS_TO_CONNECT}
        if self._address is not None:
            return held.enter_context(self._distributed.Client(self._address, **options))
        folder = held.enter_context(scratch_folder())
        with safe_children(), self._dask.config.set(temporary_directory=str(folder)):
            cluster = self._distributed.LocalCluster(
                n_workers=self._count or os.cpu_count(),
                threads_per_worker=1,
                memory_limit=None,
                dashboard_address=None,
                host="127.0.0.1",
                silence_logs="ERROR",
            )
        return held.enter_context(self._distributed.Client(held.enter_context(cluster), **options))

    def share(self, task: Task) -> Task:
        """See `Backend.share`: every worker keeps the task in its memory."""
        try:
            return _Scattered(self._client.scatter([task], broadcast=True, hash=False)[0])
        except Exception as error:  # whatever keeps a user's network from being pickled
            raise not_sendable(error) from error

    def submit(self, task: Task, item: tuple[Any, ...]) -> Any:
        """See `ClusterBackend.submit`."""
        what = task.future if isinstance(task, _Scattered) else task
        return self._client.submit(call, what, *item, pure=False)

    def wait(self, handles: Sequence[Any]) -> Any:
        """See `ClusterBackend.wait`."""
        done = self._distributed.wait(list(handles), return_when="FIRST_COMPLETED").done
        return next(handle for handle in handles if handle in done)

    def result(self, handle: Any) -> Any:
        """See `ClusterBackend.result`."""
        try:
            return handle.result()
        except self._distributed.KilledWorker as error:
            raise worker_died(error) from error

    def cancel(self, handles: Sequence[Any]) -> None:
        """See `ClusterBackend.cancel`; tasks that have begun run to their end in a cluster that goes on."""
        self._client.cancel(list(handles))


@dataclass(frozen=True)
class _Scattered:
    """A task that workers have; it is run through its future."""

    future: Any
