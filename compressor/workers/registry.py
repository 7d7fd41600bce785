"""Backends by name: those of clusters are here, all others are joblib's."""

from compressor.errors import InputError
from compressor.lazy import load_named
from compressor.workers.backend import Backend, Prepare

DEFAULT_BACKEND = "loky"
CLUSTERS = {
    "ray": "compressor.workers.ray_backend:RayBackend",
    "dask": "compressor.workers.dask_backend:DaskBackend",
}


def make_backend(name: str, count: int | None, cluster: str | None = None, prepare: Prepare | None = None) -> Backend:
    """A backend, ready to be entered; nothing is started yet.

    Args:
        name: "ray", "dask", or any of joblib's.
        count: tasks at once; None for as many as a cluster has room for, and for one elsewhere.
        cluster: address of a cluster of Ray or Dask that runs already; None starts one on this machine.
        prepare: called once in each worker process that is started here, before the first shared task.

    Raises:
        InputError: there is no such backend, or an address is given that it has no use for.
    """
    require_cluster(name, cluster)
    if name in CLUSTERS:
        return load_named(CLUSTERS[name])(count, cluster, prepare)
    return load_named("compressor.workers.joblib_backend:JoblibBackend")(name, count or 1, prepare)


def require_cluster(name: str, cluster: str | None) -> None:
    """Raise InputError where the address of a cluster is given for a backend that has none."""
    if cluster is not None and name not in CLUSTERS:
        raise InputError(f"--cluster {cluster} needs --backend ray or dask: {name} runs on this machine")
