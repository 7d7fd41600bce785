"""The drop of a compressed network in mean IoU or in mean average precision, where all images count together."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.fidelity.accuracy_drop import DropEstimator, Measurement
from compressor.fidelity.decisions import decide
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.losses import MIN_LOSS
from compressor.fidelity.records import DropUnit
from compressor.fidelity.structured import precision, segmentation
from compressor.fidelity.structured.detection import detect_all, detector_of
from compressor.fidelity.structured.outputs import run_whole
from compressor.fidelity.structured.precision import MatchedDetections
from compressor.fidelity.structured.segmentation import Confusion
from compressor.network.detection.raw import RawDetector
from compressor.outputs.rows import whole
from compressor.outputs.structure import Output

MAX_LOST = 0.5  # of the original's accuracy, from which a measurement tells nothing of smaller drops


class StructuredDrop(DropEstimator, ABC):
    """A drop on images that neither factors nor weights were fitted to; every image is evaluated in full.

    Once half of an accuracy is lost, little is left to lose, and more L costs less: such measurements do not tell how
    the drop grows.

    Args:
        norms: function norms on one or more sets of these images.
        device: where networks run.
    """

    def __init__(self, norms: Sequence[FunctionNorm], device: torch.device) -> None:
        super().__init__(norms)
        self.is_labelled = True
        self._device = device

    def importance_sampled(self, loss: float, seed: int) -> "StructuredDrop":
        """This estimator: what masks and boxes say changes on every image."""
        return self

    def measure(self, network: nn.Module) -> Measurement:
        """Function norm and drop of a network on these images."""
        losses = [norm.losses(network, np.arange(len(norm.images))).values for norm in self._norms]
        loss = float(np.concatenate(losses).mean())
        return Measurement(max(loss, MIN_LOSS), -100.0 * self._changes(network))

    def informative(self, measured: Sequence[Measurement]) -> list[Measurement]:
        """Those that lost less than half of the accuracy, else the one that lost least."""
        few = [each for each in measured if each.drop < 100.0 * MAX_LOST * self._accuracy()]
        return few or [min(measured, key=lambda each: each.drop)]

    @abstractmethod
    def _accuracy(self) -> float:
        """The original's, of 1."""

    @abstractmethod
    def _changes(self, network: nn.Module) -> NDArray[np.float64]:
        """A number for each image, whose mean is the change and whose scatter gives its error."""


class MeanIoUDrop(StructuredDrop):
    """The drop in points of mean IoU, on images with masks.

    Args:
        norms: function norms on one or more sets of these images.
        original: the network before, on `device`.
        output: that gives classes to pixels.
        device: where networks run.
    """

    of: DropUnit = "mean IoU"

    def __init__(
        self, norms: Sequence[FunctionNorm], original: nn.Module, output: Output, device: torch.device
    ) -> None:
        super().__init__(norms, device)
        self._output = output
        self._before = self._run(original)

    def _accuracy(self) -> float:
        return self._before.mean_iou

    def _changes(self, network: nn.Module) -> NDArray[np.float64]:
        return segmentation.changes(self._before, self._run(network))

    def _run(self, network: nn.Module) -> Confusion:
        confusion = Confusion()
        for norm in self._norms:
            assert norm.images.masks is not None
            for indices, tensors in run_whole(whole(network), norm.images, self._device):
                decided = decide(tensors[self._output.name])
                confusion.add(decided, norm.images.masks[indices], max(2, self._output.shape[0]))
        return confusion


class AveragePrecisionDrop(StructuredDrop):
    """The drop in points of COCO's mean average precision, on images with boxes.

    Args:
        norms: function norms on one or more sets of these images.
        original: the detector before, on `device`.
        device: where networks run.

    Raises:
        ImportError: pycocotools is missing.
    """

    of: DropUnit = "mean AP"

    def __init__(self, norms: Sequence[FunctionNorm], original: RawDetector, device: torch.device) -> None:
        super().__init__(norms, device)
        self._boxes: list[Tensor] = [boxes for norm in norms for boxes in norm.images.boxes or ()]
        self._before = self._run(original)

    @property
    def exponent(self) -> float:
        """Twice what is measured for top-1: boxes move with the outputs, and so do scores, by which all are ranked."""
        return 1.0

    def _accuracy(self) -> float:
        return self._before.average_precision

    def _changes(self, network: nn.Module) -> NDArray[np.float64]:
        detector = detector_of(network)
        assert detector is not None
        return precision.changes(self._before, self._run(detector))

    def _run(self, network: RawDetector) -> MatchedDetections:
        found = [each for norm in self._norms for each in detect_all(network, norm.images, self._device)]
        return MatchedDetections(self._boxes, found)
