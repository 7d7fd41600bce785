#!/usr/bin/env python3
"""Time ONNX (or ORT) files on this device: python measure.py [FILE...] [--threads 1] [--seconds 10].

Without FILE, those beside this script. They take turns, one input of random numbers at a time, so that whatever slows
the device slows all of them. Each line printed is a file, the median of its times in milliseconds, the quartiles, how
many times as fast as the first file it is, and how many times it ran, separated by tabs. Needs onnxruntime and numpy
alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

ort.disable_telemetry_events()

FIRST = "original.onnx"  # what the others are compared with
SUFFIXES = (".onnx", ".ort")
WARM_UP, MIN_ROUNDS = 3, 5
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class Timed:
    """A file and its times so far, in milliseconds."""

    def __init__(self, path: Path, threads: int, provider: str, side: int | None = None) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.path, self.side, self.times = path, side, list[float]()
        self.session = ort.InferenceSession(str(path), options, providers=[provider])
        self.inputs = {each.name: self.random_input(each) for each in self.session.get_inputs()}

    def random_input(self, about: Any) -> Any:
        """Numbers of the input's type and shape; a free batch is 1."""
        first, *others = about.shape
        shape = [first if isinstance(first, int) else 1, *map(self.length, others)]
        if about.type not in TYPES:
            raise ValueError(f"{self.path} takes {about.type}, which cannot be made up")
        return np.random.default_rng(0).uniform(0, 1, shape).astype(TYPES[about.type])

    def length(self, axis: Any) -> int:
        """Of an axis other than the batch: where it is free, as asked for, or as the file's metadata say."""
        if isinstance(axis, int):
            return axis
        metadata = self.session.get_modelmeta().custom_metadata_map
        found = self.side or metadata.get(f"input_{axis}")  # input_height, input_width
        if not found:
            raise ValueError(f"{self.path} takes any {axis}: say which by --side, in pixels")
        return int(found)

    def run(self) -> None:
        """One run more."""
        began = time.perf_counter()
        self.session.run(None, self.inputs)
        self.times.append(1000 * (time.perf_counter() - began))


def measure(files: list[Timed], seconds: float) -> None:
    """Run the files in turn for so many seconds, and a few times at least."""
    for _ in range(WARM_UP):
        for file in files:
            file.run()
    for file in files:
        file.times.clear()
    end = time.perf_counter() + seconds
    while len(files[0].times) < MIN_ROUNDS or time.perf_counter() < end:
        for file in files:
            file.run()


def list_beside(folder: Path) -> list[Path]:
    """The files in a folder, the original first."""
    found = [path for path in folder.iterdir() if path.suffix in SUFFIXES]
    return sorted(found, key=lambda path: (path.name != FIRST, path.name))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time ONNX (or ORT) files on this device.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="left out: those beside this script")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="for all files together")
    parser.add_argument("--side", type=int, help="pixels of an image whose size is free; left out: as the file says")
    parser.add_argument("--provider", default="CPUExecutionProvider", help="one of those that this onnxruntime has")
    options = parser.parse_args()
    try:
        if options.provider not in ort.get_available_providers():
            raise ValueError(f"{options.provider} is not among {', '.join(ort.get_available_providers())}")
        paths = options.files or list_beside(Path(__file__).parent)
        files = [Timed(path, options.threads, options.provider, options.side) for path in paths]
        if not files:
            raise ValueError("there is no file to time")
        measure(files, options.seconds)
    except Exception as error:
        sys.exit(f"error: {error}")
    first = float(np.median(files[0].times))
    for file in files:
        low, middle, high = np.quantile(file.times, (0.25, 0.5, 0.75))
        print(f"{file.path.name}\t{middle:.3f} ms\t{low:.3f} to {high:.3f}\t{first / middle:.2f}x\t{len(file.times)}")


if __name__ == "__main__":
    main()
