"""Ranges of a network's tensors on real images, by the calibrators of ONNX Runtime."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, TensorsData, create_calibrator
from torch import Tensor

from exporters.onnx import INPUT_NAME
from exporters.records import CalibrationName
from exporters.session import split_batches

BATCH = 4  # the histograms hold every activation of a batch
PERCENTILE = 99.999  # 99.99 was worse on ResNet-18, 99.9 eight times as bad
METHODS: dict[CalibrationName, tuple[CalibrationMethod, dict[str, Any]]] = {
    "min-max": (CalibrationMethod.MinMax, {}),
    "percentile": (CalibrationMethod.Percentile, {"percentile": PERCENTILE, "symmetric": False}),
    "entropy": (CalibrationMethod.Entropy, {"symmetric": False}),
}


class _Reader(CalibrationDataReader):
    def __init__(self, feeds: Iterable[dict[str, Any]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def calibrate(
    path: Path, images: Tensor, method: CalibrationName, operators: Sequence[str], folder: Path, large: bool = False
) -> TensorsData:
    """Ranges of the inputs and outputs of nodes of the given operators (empty: of all tensors).

    Args:
        path: a float32 ONNX file.
        images: real inputs (N, ...), run `BATCH` at a time.
        method: what a range is: smallest and largest value, percentile, or the one of least relative entropy.
        operators: types of nodes.
        folder: for temporary files.
        large: the weights lie outside the file.
    """
    kind, options = METHODS[method]
    augmented = str(folder / "augmented.onnx")
    calibrator = create_calibrator(
        path,
        list(operators) or None,
        augmented,
        calibrate_method=kind,
        use_external_data_format=large,
        extra_options=options,
    )
    for batch in split_batches(images, BATCH):  # one by one: a calibrator keeps all activations that it is given
        calibrator.collect_data(_Reader([{INPUT_NAME: batch}]))
    return calibrator.compute_data()


def tensor_ranges(path: Path, images: Tensor, folder: Path, large: bool) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of every tensor on the images."""
    found = calibrate(path, images, "min-max", (), folder, large)
    return {name: (float(np.min(data.lowest)), float(np.max(data.highest))) for name, data in found.items()}
