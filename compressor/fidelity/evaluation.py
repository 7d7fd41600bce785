"""TODO docstring."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.records import FidelityRecord, Metrics


@dataclass(frozen=True)
class TestOutputs:
    """What was computed on the images outside the search: outputs (N, classes) of the original and of the compressed
    network, the fidelity, and labels (N,) where there are usable ones."""

    targets: Tensor
    outputs: Tensor
    fidelity: FidelityRecord
    labels: Tensor | None


def make_fidelity(squares: Tensor, energy: float, outputs: Tensor, targets: Tensor) -> FidelityRecord:
    """Function norm and agreement from squared distances (N,) and both outputs (N, classes)."""
    return FidelityRecord(
        function_norm=float(squares.mean()),
        stderr=float(squares.std() / len(squares) ** 0.5),
        relative=float(squares.mean() / energy),
        output_energy=energy,
        images=len(squares),
        top1_agreement=agreement(outputs, targets),
    )


def share(hits: Tensor) -> float:
    """The share of true ones."""
    return float(hits.double().mean())


def squared_distances(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).double().square().sum(1)


def agreement(outputs: Tensor, targets: Tensor) -> float:
    return share(outputs.argmax(1) == targets.argmax(1))


class TestEvaluator:
    """Figures of any network on the images outside the search, for the report alone."""

    def __init__(self, norm: FunctionNorm) -> None:
        self._norm = norm

    def evaluate(self, network: nn.Module) -> Metrics:
        """Function norm to the original, and accuracies where there are labels."""
        every = torch.arange(len(self._norm.images))
        outputs = self._norm.outputs(network, every)
        norm = float(self._norm.compare(outputs, every).mean())
        if self._norm.labels is None:
            return Metrics(function_norm=norm)
        hits = outputs.cpu().topk(min(5, outputs.shape[1])).indices == self._norm.labels[:, None]
        return Metrics(
            function_norm=norm,
            top1=share(hits[:, 0]),
            top5=share(hits.any(1)) if outputs.shape[1] > 5 else None,
        )
