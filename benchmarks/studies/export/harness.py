"""`bocompress benchmark` compared with an independent harness, and with its own repeats.

    python -m benchmarks.studies.export.harness A.onnx B.onnx --repeats 10

The other harness is torch.utils.benchmark: it decides by itself how often to run, does not know the other file, and
gets a fresh process per file with ONNX Runtime's default session on one thread. It reads the same clock, the processor
time of the thread, and wall time as well.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runtime.compare import BenchmarkSettings, benchmark_files
from benchmarks.studies.study import write_results
from compressor.progress import Progress

SECONDS = 2.0  # of running each file, per clock
CHILD = """
import json, sys, time
import numpy, onnxruntime
from torch.utils.benchmark import Timer

path, seconds, *shape = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
images = numpy.random.default_rng(1).standard_normal([int(side) for side in shape], dtype=numpy.float32)
names = {"session": session, "feed": {session.get_inputs()[0].name: images}}
for _ in range(10):
    session.run(None, names["feed"])
clocks = {"core_ms": time.thread_time, "wall_ms": time.perf_counter}
medians = {}
for name, clock in clocks.items():
    timer = Timer("session.run(None, feed)", timer=clock, globals=names)
    medians[name] = 1e3 * timer.blocked_autorange(min_run_time=float(seconds)).median
print(json.dumps(medians))
"""


def time_alone(path: Path, shape: Sequence[int]) -> dict[str, float]:
    """Medians of torch.utils.benchmark in a fresh process, in milliseconds by both clocks."""
    program = [sys.executable, "-W", "ignore", "-c", CHILD, str(path), str(SECONDS), *map(str, shape)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(paths: Sequence[Path], seed: int, input_size: int | None) -> dict[str, Any]:
    """One repeat: both files by `bocompress benchmark`, then each alone by the other harness."""
    settings = BenchmarkSettings(providers=["cpu"], seed=seed, input_size=input_size)
    record = benchmark_files(paths, settings, Progress())
    (setting,) = record.settings
    first, second = setting.timings
    assert second.ratio is not None
    alone = [time_alone(path, [1, *record.input_shape]) for path in paths]
    return {
        "seed": seed,
        "others": setting.others,
        "median_ms": [first.median_ms, second.median_ms],
        "wall_ms": [first.wall_ms, second.wall_ms],
        "ratio": second.ratio.model_dump(),
        "noise": setting.noise.model_dump(),
        "warnings": len(setting.warnings),
        "other_ms": [one["core_ms"] for one in alone],
        "other_wall_ms": [one["wall_ms"] for one in alone],
        "other_ratio": alone[1]["core_ms"] / alone[0]["core_ms"],
    }


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How often two repeats agree, and how far the other harness is from this one."""
    ratios = [row["ratio"] for row in rows]
    pairs = [(one, other) for one in ratios for other in ratios if one is not other]
    ours = np.array([ratio["value"] for ratio in ratios])
    other = np.array([row["other_ratio"] for row in rows])
    medians, other_ms = (np.array([row[name] for row in rows]) for name in ("median_ms", "other_ms"))
    return {
        "overlap": float(np.mean([a["low"] <= b["high"] and b["low"] <= a["high"] for a, b in pairs])),
        "inside": float(np.mean([a["low"] <= b["value"] <= a["high"] for a, b in pairs])),
        "ratio": float(np.median(ours)),
        "spread": float(np.std(np.log(ours), ddof=1)),
        "other_ratio": float(np.median(other)),
        "other_spread": float(np.std(np.log(other), ddof=1)),
        "ratio_apart": float(np.median(other) / np.median(ours) - 1),
        "first_apart": float(np.median(other_ms[:, 0]) / np.median(medians[:, 0]) - 1),
        "second_apart": float(np.median(other_ms[:, 1]) / np.median(medians[:, 1]) - 1),
    }


def main() -> None:
    """Run the study and write benchmarks/results/NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs=2, type=Path, metavar="FILE")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--input-size", type=int)
    parser.add_argument("--name", default="harness", help="of the file in benchmarks/results")
    arguments = parser.parse_args()
    began = time.perf_counter()
    rows = []
    for seed in range(arguments.repeats):
        rows.append(measure(arguments.files, seed, arguments.input_size))
        print(rows[-1], flush=True)
    about = {"files": [path.name for path in arguments.files], "summary": summarize(rows)}
    print(about["summary"])
    write_results(arguments.name, about, rows, began)


if __name__ == "__main__":
    main()
