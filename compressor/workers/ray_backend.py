"""Workers of Ray: a cluster that runs already, or one of this machine's processes.

joblib's backend for Ray gives all results at the end, and ends with the first machine that is lost; so tasks are Ray's
own here, which come back one by one and begin anew elsewhere.
"""

import contextlib
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from compressor.files import scratch_folder
from compressor.process.children import safe_children
from compressor.text import first_line
from compressor.workers.backend import ClusterBackend, Prepare, Task, call, cannot_use, not_sendable, worker_died

QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
SECONDS_TO_CONNECT = 10
TOKEN = "RAY_AUTH_TOKEN"
OWN_VARIABLES = (TOKEN, "RAY_AUTH_MODE")  # Ray sets the second where a cluster of its own begins
MAX_SOCKET_FOLDER = 40  # characters; names of sockets below it may have 107 in all


class RayBackend(ClusterBackend):
    """Runs tasks in Ray's workers; a task whose machine is lost begins anew on another.

    Args:
        count: tasks at once; None for the cluster's processors.
        address: of a cluster, as `ray.init` takes it; None starts one on this machine.
        prepare: called once in each worker process of a cluster started here, before its first shared task.

    Raises:
        InputError: Ray is not installed.
    """

    def __init__(self, count: int | None, address: str | None = None, prepare: Prepare | None = None) -> None:
        self._address = address
        self._count = count
        self._prepare = prepare if address is None else None
        self._held = ExitStack()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of every run
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of its next version
        try:
            import ray
        except ImportError as error:
            raise cannot_use("ray", first_line(error)) from error
        self._ray: Any = ray

    def __enter__(self) -> "RayBackend":
        """Connect to the cluster, or start one.

        Raises:
            InputError: the address is not one of a cluster.
        """
        with self._held as held:
            self._connect(held)
            self._remote = self._ray.remote(num_cpus=1, max_retries=3)(call)
            cluster = int(self._ray.cluster_resources().get("CPU", 1))
            self.size = self._count or max(1, cluster)
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the cluster; one that was started here ends."""
        self._held.close()

    def _connect(self, held: ExitStack) -> None:
        if self._ray.is_initialized():
            return
        # Ray's workers look for modules in the folder that the driver is in: an empty one.
        folder = held.enter_context(scratch_folder())
        if self._address is not None:
            _require_answer(self._address)
        options = {"address": self._address} if self._address else self._local(folder, held)
        empty = folder / "empty"
        empty.mkdir()
        held.callback(self._ray.shutdown)
        try:
            with safe_children(), contextlib.chdir(empty):
                self._ray.init(**options, **QUIET)
        except Exception as error:  # ConnectionError, RuntimeError, ValueError: whatever an address may lead to
            hint = "" if self._address is None else "; RAY_AUTH_MODE=token is for clusters that want a token"
            raise cannot_use("ray", first_line(error) + hint) from error

    def _local(self, folder: Path, held: ExitStack) -> dict[str, Any]:
        """A cluster of its own, whatever RAY_ADDRESS says, with a token of its own, which leaves nothing behind."""
        held.callback(_restore_environment, {name: os.environ.get(name) for name in OWN_VARIABLES})
        os.environ.setdefault(TOKEN, _own_token())  # else Ray keeps one in the user's home
        short = {"_temp_dir": str(folder)} if len(str(folder)) <= MAX_SOCKET_FOLDER else {}
        return {"address": "local", "num_cpus": self._count or os.cpu_count(), "_node_ip_address": "127.0.0.1", **short}

    def share(self, task: Task) -> Task:
        """See `Backend.share`: the task lies in Ray's store."""
        try:
            return _Stored(self._ray.put(task), self._prepare)
        except Exception as error:  # whatever keeps a user's network from being pickled
            raise not_sendable(error) from error

    def submit(self, task: Task, item: tuple[Any, ...]) -> Any:
        """See `ClusterBackend.submit`."""
        return self._remote.remote(task, *item)

    def wait(self, handles: Sequence[Any]) -> Any:
        """See `ClusterBackend.wait`."""
        (done, *_), _ = self._ray.wait(list(handles), num_returns=1)
        return done

    def result(self, handle: Any) -> Any:
        """See `ClusterBackend.result`."""
        try:
            return self._ray.get(handle)
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except self._ray.exceptions.RayError as error:
            raise worker_died(error) from error

    def cancel(self, handles: Sequence[Any]) -> None:
        """See `ClusterBackend.cancel`; processes of tasks that have begun are killed."""
        for handle in handles:
            with contextlib.suppress(Exception):  # they are over, or the cluster is
                self._ray.cancel(handle, force=True)


@cache
def _own_token() -> str:
    """The same for all clusters of this process, in which Ray reads it once."""
    return secrets.token_hex(32)


def _restore_environment(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def _require_answer(address: str) -> None:
    """Raise InputError where nothing listens at host:port or ray://host:port; Ray would try for minutes."""
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        if place.hostname and place.port:
            socket.create_connection((place.hostname, place.port), SECONDS_TO_CONNECT).close()
    except (OSError, ValueError) as error:
        raise cannot_use("ray", f"nothing answers at {address}: {first_line(error)}") from error


class _Stored:
    """A task in Ray's store; a worker process keeps the last one that it took from there."""

    _kept: ClassVar[tuple[str, Task] | None] = None

    def __init__(self, reference: Any, prepare: Prepare | None) -> None:
        self.reference = reference
        self.prepare = prepare

    def __call__(self, *arguments: Any) -> Any:
        import ray

        name = self.reference.hex()
        if _Stored._kept is None or _Stored._kept[0] != name:
            if self.prepare is not None:
                self.prepare()
            _Stored._kept = (name, ray.get(self.reference))
        return _Stored._kept[1](*arguments)
