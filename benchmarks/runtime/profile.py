"""Time of a file by operator and node, from ONNX Runtime's profiler."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.records import OperatorRecord, ProfileRecord
from compressor.files import scratch_folder
from exporters.session import open_session, session_options

RUNS = 20
WARM_UP = 3
MAX_EXPENSIVE = 10
SUFFIX = "_kernel_time"

Event = dict[str, Any]


def profile_file(name: str, path: Path, batch: NDArray[Any], provider: str, threads: int) -> ProfileRecord:
    """Run the file on the batch with the profiler on, in a session of its own.

    The profiler adds some microseconds to every node; on a GPU it sees launches, not the kernels' time.

    Args:
        name: what the record calls it.
        path: the file.
        batch: its input (N, ...).
        provider: where it runs.
        threads: of the runtime.

    Raises:
        InputError, BocompressError: as `open_session`.
    """
    with scratch_folder() as folder:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = open_session(path, provider, threads, options, tf32=True)
        feed = {session.get_inputs()[0].name: batch}
        for _ in range(WARM_UP + RUNS):
            session.run(None, feed)
        events: list[Event] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return summarize_events(name, events)


def summarize_events(name: str, events: Iterable[Event]) -> ProfileRecord:
    """Medians over the runs after the warm-up, per node and per operator type; times in `events` are microseconds."""
    runs: list[float] = []
    times: dict[str, list[float]] = defaultdict(list)
    about: dict[str, Event] = {}
    for event in events:
        if event.get("name") == "model_run":
            runs.append(event["dur"] / 1e3)
        elif event.get("cat") == "Node" and event["name"].endswith(SUFFIX):
            key = event["args"]["node_index"]
            times[key].append(event["dur"] / 1e3)
            about[key] = event
    kept = {key: median(values[-RUNS:]) for key, values in times.items()}
    total = sum(kept.values()) or 1.0
    nodes = [_node(about[key], value, value / total) for key, value in kept.items()]
    nodes.sort(key=lambda node: -node.median_ms)
    return ProfileRecord(
        file=name,
        runs=len(runs[-RUNS:]),
        run_ms=float(np.median(runs[-RUNS:])),
        operators=_by_type(nodes),
        nodes=nodes[:MAX_EXPENSIVE],
    )


def _node(event: Event, median_ms: float, share: float) -> OperatorRecord:
    shapes = [shape for output in event["args"].get("output_type_shape", []) for shape in output.values()]
    return OperatorRecord(
        name=event["name"].removesuffix(SUFFIX),
        op_type=event["args"]["op_name"],
        output_shape=shapes[0] if shapes else None,
        median_ms=median_ms,
        share=share,
    )


def _by_type(nodes: Iterable[OperatorRecord]) -> list[OperatorRecord]:
    groups: dict[str, list[OperatorRecord]] = defaultdict(list)
    for node in nodes:
        groups[node.op_type].append(node)
    records = [
        OperatorRecord(
            name=op_type,
            op_type=op_type,
            nodes=len(members),
            median_ms=sum(node.median_ms for node in members),
            share=sum(node.share for node in members),
        )
        for op_type, members in groups.items()
    ]
    return sorted(records, key=lambda record: -record.median_ms)
