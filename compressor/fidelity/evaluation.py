"""Fidelity and accuracy on the test images, for the report; no decision depends on them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.fidelity.decisions import agreement, decide, share
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.records import DetectionRecord, FidelityRecord, FlowRecord, Metrics, SegmentationRecord


@dataclass(frozen=True)
class TestOutputs:
    """What was computed on the test images.

    Attributes:
        targets: outputs of the original (N, classes), or rows of them (N, D).
        outputs: of the compressed network, likewise.
        fidelity: how far they are apart.
        decides: whether outputs are scores of classes.
        labels: labels (N,) where there are labels that fit the outputs.
        segmentation: classes of pixels, where the networks give them.
        detection: detections, where the networks are detectors.
        flow: how far flows are apart, where the networks give them.
    """

    targets: Tensor
    outputs: Tensor
    fidelity: FidelityRecord
    labels: Tensor | None
    decides: bool = True
    segmentation: SegmentationRecord | None = None
    detection: DetectionRecord | None = None
    flow: FlowRecord | None = None


def make_fidelity(
    squares: Tensor, energy: float, outputs: Tensor, targets: Tensor, decides: bool = True
) -> FidelityRecord:
    """The record of two networks' outputs.

    Args:
        squares: squared distances (N,) of the outputs.
        energy: output energy of the original.
        outputs: outputs of the compressed network (N, classes).
        targets: outputs of the original (N, classes).
        decides: whether they are scores of classes.
    """
    return FidelityRecord(
        function_norm=float(squares.mean()),
        stderr=float(squares.std() / len(squares) ** 0.5),
        relative=float(squares.mean() / energy),
        output_energy=energy,
        images=len(squares),
        top1_agreement=agreement(outputs, targets) if decides else None,
        by_sign=decides and outputs.shape[1] == 1,
    )


def squared_distances(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared distances (N,) of two outputs (N, classes), float64."""
    return (outputs - targets).double().square().sum(1)


class TestEvaluator:
    """Function norm and accuracy of any network on the test images, which `norm` holds."""

    def __init__(self, norm: FunctionNorm) -> None:
        self._norm = norm

    def evaluate(self, network: nn.Module) -> Metrics:
        """Function norm against the original, and top-1 and top-5 where there are labels."""
        every = torch.arange(len(self._norm.images))
        outputs = self._norm.outputs(network, every)
        norm = self._norm.of_outputs(outputs)
        if self._norm.labels is None:
            return Metrics(function_norm=norm)
        outputs, labels = outputs.cpu(), self._norm.labels
        among_five = (outputs.topk(5).indices == labels[:, None]).any(1) if outputs.shape[1] > 5 else None
        return Metrics(
            function_norm=norm,
            top1=share(decide(outputs) == labels),
            top5=None if among_five is None else share(among_five),
        )
