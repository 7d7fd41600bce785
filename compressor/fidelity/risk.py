"""The empirical risk as fidelity (Sec. 3.1): cross-entropy or 0/1 loss on labelled images, over the original's own.

What is searched is the excess l(f~(x), y) - l(f*(x), y), image by image. It differs from the risk by a number that no
plan changes, so that the best plan stays the same, and most of what scatters in a risk (some images are hard for any
network) cancels in it.
"""

from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from compressor.fidelity.function_norm import HUGE, FunctionNorm
from compressor.fidelity.labels import require_labels
from compressor.fidelity.losses import Losses, NoiseSpecification
from compressor.fidelity.records import Fidelity
from compressor.schema import Pair

# Losses of two outputs differ, to first order, as the outputs do: their deviation goes with the root of the function
# norm. Decisions differ where the outputs differ by more than the margin: the variance goes with that root.
NOISE_POWERS: dict[Fidelity, float] = {"risk": 0.5, "error": 0.25}
# What a plan changes in the outputs, one that compresses further changes, too, and more beside it.
LIKENESS_POWER = 0.5
MIN_FLOOR = 0.05  # of the loss of guessing: an original without any error has no logarithm


class Risk:
    """The excess risk of candidates on the images of a function norm.

    Args:
        norm: the function norm on the same images, which holds the original's outputs.
        kind: cross-entropy ("risk") or the share of wrong decisions ("error").

    Raises:
        InputError: the images carry no labels that fit the network's outputs.
    """

    def __init__(self, norm: FunctionNorm, kind: Fidelity) -> None:
        self._norm = norm
        self._kind = kind
        num_outputs = norm.targets.shape[1]
        self.labels = require_labels(norm.images, num_outputs, kind).to(norm.targets.device)
        self._own = losses_of(norm.targets, self.labels, kind)
        self.loss_when_lost = loss_of_guessing(kind, num_outputs)

    @property
    def noise_spec(self) -> NoiseSpecification:
        """The original's own risk is the floor."""
        floor = max(float(self._own.mean()), MIN_FLOOR * self.loss_when_lost)
        per_norm = self.loss_when_lost / self._norm.loss_when_lost
        return NoiseSpecification(floor, NOISE_POWERS[self._kind], LIKENESS_POWER, per_norm)

    def losses(self, network: nn.Module, indices: NDArray[np.int64]) -> Losses:
        """Loss above the original's for each of the images `indices`."""
        chosen = torch.from_numpy(indices)
        outputs = self._norm.outputs(network, chosen)
        values = losses_of(outputs, self.labels[chosen.to(self.labels.device)], self._kind) - self._own[indices]
        return Losses(indices, values, self._norm.compare(outputs, chosen))


def make_measure(norm: FunctionNorm, kind: Fidelity) -> FunctionNorm | Risk:
    """What the search takes for L, on the images of `norm`.

    Raises:
        InputError: a risk is asked for, and the images carry no labels that fit the network's outputs.
    """
    return norm if kind == "norm" else Risk(norm, kind)


def losses_of(outputs: Tensor, labels: Tensor, kind: Fidelity) -> NDArray[np.float64]:
    """Cross-entropy, or 0 and 1, (m,) of outputs (m, classes) for labels (m,)."""
    if kind == "error":
        return (outputs.argmax(1) != labels).double().cpu().numpy()
    values = functional.cross_entropy(outputs.detach().double(), labels, reduction="none").cpu().numpy()
    # A destroyed candidate may overflow, as for the function norm.
    return np.minimum(np.nan_to_num(values, nan=HUGE, posinf=HUGE), HUGE)


def compare_risks(targets: Tensor, outputs: Tensor, labels: Tensor) -> Pair[float]:
    """Mean cross-entropy of the original's outputs (m, classes) and of the compressed network's."""
    original, compressed = (float(losses_of(each, labels, "risk").mean()) for each in (targets, outputs))
    return Pair[float](original=original, compressed=compressed)


def loss_of_guessing(kind: Fidelity, num_classes: int) -> float:
    """Risk of a network that gives all classes the same output: its cross-entropy, or its share of wrong decisions."""
    return 1.0 - 1.0 / num_classes if kind == "error" else log(num_classes)
