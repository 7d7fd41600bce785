"""Ranges of a network's activations on real images, by the calibrators of ONNX Runtime."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization.calibrate import (
    CalibrationDataReader,
    CalibrationMethod,
    TensorsData,
    create_calibrator,
)
from torch import Tensor

from exporters.records import CalibrationName
from exporters.session import fit_batch, fixed_batch, open_session, split_batches

BATCH_SIZE = 4  # the histograms hold every activation of a batch
PERCENTILE = 99.999  # 99.99 was worse on ResNet-18, 99.9 eight times as bad
CALIBRATORS: dict[CalibrationName, tuple[CalibrationMethod, dict[str, Any]]] = {
    "min-max": (CalibrationMethod.MinMax, {}),
    "percentile": (CalibrationMethod.Percentile, {"percentile": PERCENTILE, "symmetric": False}),
    "entropy": (CalibrationMethod.Entropy, {"symmetric": False}),
}


class _Reader(CalibrationDataReader):
    def __init__(self, feeds: Iterable[dict[str, Any]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def activation_ranges(
    path: Path, images: Tensor, method: CalibrationName, operators: Sequence[str], folder: Path, large: bool = False
) -> TensorsData:
    """Ranges of the inputs and outputs of nodes of the given operators.

    Args:
        path: a float32 ONNX file.
        images: real inputs (N, ...), run `BATCH_SIZE` at a time.
        method: what a range is: from the smallest to the largest value, up to a percentile, or the range of least
            relative entropy.
        operators: types of nodes; empty for all tensors.
        folder: holds temporary files.
        large: the weights lie in a file of their own.
    """
    kind, options = CALIBRATORS[method]
    augmented = str(folder / "augmented.onnx")
    calibrator = create_calibrator(
        path,
        list(operators) or None,
        augmented,
        calibrate_method=kind,
        use_external_data_format=large,
        extra_options=options,
    )
    session = open_session(path, threads=1)
    # One by one: a calibrator keeps all activations it is given.
    for batch in split_batches(images, fixed_batch(session) or BATCH_SIZE):
        calibrator.collect_data(_Reader([fit_batch(session, batch)]))
    return calibrator.compute_data()


def tensor_ranges(path: Path, images: Tensor, folder: Path, large: bool) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of every tensor on the images (N, ...), by the tensor's name.

    Args:
        path: an ONNX file.
        images: its inputs (N, ...).
        folder: for files in between.
        large: whether the weights lie in a file of their own.
    """
    found = activation_ranges(path, images, "min-max", (), folder, large)
    return {name: (float(np.min(data.lowest)), float(np.max(data.highest))) for name, data in found.items()}
