"""Latency of single layers in ONNX Runtime: a layer and its factorized forms, run in turn.

Measurements are cached by machine, runtime and layer: layers of one shape, and later runs, share them.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from compressor.cost.latency import has_core_time
from compressor.cost.machine import describe_machine
from compressor.errors import InputError
from compressor.files import read_sealed, write_sealed
from exporters.runtimes.registry import ONNX_RUNTIME, open_runtime
from exporters.session import CPU

WARM_UP_ROUNDS = 3
MIN_ROUNDS = 25
MAX_ROUNDS = 200
MAX_SECONDS = 1.0  # for the rounds beyond `MIN_ROUNDS`


class LayerClock:
    """Median milliseconds of ONNX models that take the same input.

    Args:
        threads: threads of ONNX Runtime.
        provider: provider of ONNX Runtime, one of `available_providers()`.
        cache: file that keeps the measurements; None keeps them as long as this object.
    """

    def __init__(self, threads: int = 1, provider: str = CPU, cache: Path | None = None) -> None:
        self._threads = threads
        self._provider = provider
        self._cache = cache

    @cached_property
    def _machine(self) -> str:
        device = torch.cuda.get_device_name() if self._provider != CPU and torch.cuda.is_available() else ""
        runtime = f"{ort.__version__} {self._provider} {device}"  # the package for GPUs has a name of its own
        return f"{describe_machine().model_dump_json()} {self._threads} threads {runtime}"

    @cached_property
    def _known(self) -> dict[str, list[float]]:
        return _read(self._cache)

    def measure(self, key: str, models: Callable[[], Sequence[bytes]], inputs: NDArray[Any]) -> list[float]:
        """Median milliseconds of each model (n,), from the cache where it has them.

        Args:
            key: identifies the models, which are made and timed once only.
            models: gives the contents of the ONNX files.
            inputs: a batch (N, ...) that all of them take.
        """
        text = f"{self._machine} {key} {inputs.shape} {inputs.dtype}"
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        if digest not in self._known:
            self._known[digest] = time_in_turn(models(), inputs, self._threads, self._provider)
            if self._cache is not None:
                with suppress(OSError, InputError):
                    self._cache.parent.mkdir(parents=True, exist_ok=True)
                    write_sealed(self._cache, self._known)
        return self._known[digest]


def time_in_turn(models: Sequence[bytes], inputs: NDArray[Any], threads: int, provider: str = CPU) -> list[float]:
    """Median milliseconds of each model (n,); each is run once per round, in a new order each round.

    Args:
        models: contents of ONNX files that take the same inputs.
        inputs: one batch (N, ...).
        threads: threads of ONNX Runtime.
        provider: provider of ONNX Runtime.
    """
    runtime = open_runtime(ONNX_RUNTIME)
    runs = [runtime.open(model, inputs, provider, threads).run for model in models]
    clock = time.thread_time_ns if has_core_time(provider, threads) else time.perf_counter_ns
    for run in runs:
        for _ in range(WARM_UP_ROUNDS):
            run()
    samples: list[list[float]] = [[] for _ in runs]
    deadline = time.perf_counter() + MAX_SECONDS
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.perf_counter() > deadline:
            break
        for which in np.random.default_rng(number).permutation(len(runs)).tolist():
            began = clock()
            runs[which]()
            samples[which].append((clock() - began) / 1e6)
    return [round(float(np.median(values)), 6) for values in samples]


def _read(cache: Path | None) -> dict[str, list[float]]:
    """Earlier measurements; none where the file is missing, damaged or altered."""
    if cache is None:
        return {}
    try:
        return read_sealed(cache, "cache of latencies")
    except InputError:
        return {}
