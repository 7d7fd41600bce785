"""The empirical risk as fidelity (Sec. 3.1): cross-entropy or 0/1 loss on labelled images, above the original's.

The loss of an image is the excess l(f~(x), y) - l(f*(x), y). Its mean differs from the risk by a number that no plan
changes, so that the best plan is the same, and most of the risk's variance (some images are hard for any network)
cancels.
"""

from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from compressor.fidelity.decisions import count_classes, decide
from compressor.fidelity.function_norm import MAX_LOSS, FunctionNorm
from compressor.fidelity.labels import require_labels
from compressor.fidelity.losses import Losses, NoiseSpecification
from compressor.fidelity.records import Fidelity
from compressor.schema import Pair

# To first order, losses differ in proportion to the outputs: their deviation grows as the root of the function norm.
# Predictions differ where the outputs differ by more than the margin: the variance grows as that root.
NOISE_POWERS: dict[Fidelity, float] = {"risk": 0.5, "error": 0.25}
# A plan that compresses further makes the changes of a milder one and others: their losses are correlated.
CORRELATION_DECAY = 0.5
MIN_FLOOR = 0.05  # of the loss of guessing: the logarithm of L needs a floor where the original makes no error


class Risk:
    """The excess risk of candidates, on the images of a function norm.

    Args:
        norm: the function norm on the same images, with the original's outputs.
        kind: cross-entropy ("risk") or the share of wrong predictions ("error").

    Attributes:
        labels: the images' labels (n,), on the device.
        uninformative_loss: risk of a network that gives all classes the same probability.

    Raises:
        InputError: the images have no labels that fit the network's outputs.
    """

    def __init__(self, norm: FunctionNorm, kind: Fidelity) -> None:
        self._norm = norm
        self._kind = kind
        num_outputs = norm.targets.shape[1]
        self.labels = require_labels(norm.images, num_outputs, kind).to(norm.targets.device)
        self._original_losses = losses_of(norm.targets, self.labels, kind)
        self.uninformative_loss = loss_of_guessing(kind, num_outputs)

    @property
    def noise_spec(self) -> NoiseSpecification:
        """How the noise depends on the function norm; the floor is the original's risk."""
        floor = max(float(self._original_losses.mean()), MIN_FLOOR * self.uninformative_loss)
        per_norm = self.uninformative_loss / self._norm.uninformative_loss
        return NoiseSpecification(floor, NOISE_POWERS[self._kind], CORRELATION_DECAY, per_norm)

    def losses(self, network: nn.Module, indices: NDArray[np.int64]) -> Losses:
        """Losses above the original's on the images `indices` (m,)."""
        chosen = torch.from_numpy(indices)
        outputs = self._norm.outputs(network, chosen)
        values = (
            losses_of(outputs, self.labels[chosen.to(self.labels.device)], self._kind) - self._original_losses[indices]
        )
        return Losses(indices, values, self._norm.compare(outputs, chosen))


def make_measure(norm: FunctionNorm, kind: Fidelity) -> FunctionNorm | Risk:
    """The fidelity that the search takes for L, on the images of `norm`.

    Raises:
        InputError: a risk is asked for, and the images have no labels that fit the network's outputs.
    """
    return norm if kind == "norm" else Risk(norm, kind)


def losses_of(outputs: Tensor, labels: Tensor, kind: Fidelity) -> NDArray[np.float64]:
    """Losses (m,) of the outputs on each image.

    Args:
        outputs: of the network (m, num_outputs).
        labels: classes (m,).
        kind: "risk" for the cross-entropy in nats, "error" for 1 where the decision is wrong, else 0.
    """
    if kind == "error":
        return (decide(outputs) != labels).double().cpu().numpy()
    values = cross_entropy(outputs.detach().double(), labels).cpu().numpy()
    # A candidate may overflow, as for the function norm.
    return np.minimum(np.nan_to_num(values, nan=MAX_LOSS, posinf=MAX_LOSS), MAX_LOSS)


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropies (m,) of outputs (m, num_outputs) for labels (m,); a single output is the logit of class 1."""
    if outputs.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], labels.to(outputs), reduction="none")
    return functional.cross_entropy(outputs, labels, reduction="none")


def compare_risks(targets: Tensor, outputs: Tensor, labels: Tensor) -> Pair[float]:
    """Mean cross-entropy, in nats, of the original and of the compressed network.

    Args:
        targets: the original's outputs (m, classes).
        outputs: the compressed network's, likewise.
        labels: classes (m,).
    """
    original, compressed = (float(losses_of(each, labels, "risk").mean()) for each in (targets, outputs))
    return Pair[float](original=original, compressed=compressed)


def loss_of_guessing(kind: Fidelity, num_outputs: int) -> float:
    """Risk of a network that gives all classes the same probability: cross-entropy, or share of wrong predictions."""
    num_classes = count_classes(num_outputs)
    return 1.0 - 1.0 / num_classes if kind == "error" else log(num_classes)
