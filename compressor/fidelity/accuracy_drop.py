"""The drop in top-1 accuracy of a compressed network: its estimate on images, and a bound of it as a power of L.

Without labels the drop is the function norm in per cent of the output energy.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from compressor.fidelity.decisions import count_classes, margins
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.losses import MIN_LOSS
from compressor.fidelity.records import DropUnit
from compressor.streams import Stream, generator

DEVIATIONS = 1.6449  # of a normal distribution: 95 % lie below
# Decisions change where the original's two best outputs lie close together, beside what two outputs move apart by at
# this L, the root of 2 L / C: in six ResNet-18 of L from 0.04 to 0.19 none changed beyond 7.2 of that. Those within are
# evaluated in full, up to the closest 30 % (larger drops are larger beside their noise), of the others a few, which
# count for all.
MARGIN_DEVIATIONS = 8.0  # an image is close if its margin is at most this many deviations of the margin's error
MAX_CLOSE = 0.3  # of the images are close at most
SHARE_OF_OTHERS = 0.1  # of the images that are not close is sampled
DROP_EXPONENT = 0.55  # the drop in top-1 grows as this power of the function norm


@dataclass(frozen=True)
class Measurement:
    """A network's function norm, and the drop on every image (n,), in percentage points of top-1 or per cent."""

    loss: float
    scores: np.ndarray

    @property
    def drop(self) -> float:
        """The mean over the images."""
        return float(self.scores.mean())


class DropEstimator:
    """The drop of a network against the original, on images that neither its factors nor its weights were fitted to.

    With labels that fit the outputs, the drop is in percentage points of top-1; without, it is the function norm in per
    cent of the output energy.

    Args:
        norms: function norms on one or more sets of these images.

    Attributes:
        num_images: images in all sets.
        is_labelled: whether all sets have labels that fit the outputs.
        energy: output energy of the original, over all sets.
        of: what points of the drop are of, with labels.
    """

    of: DropUnit = "top-1"

    def __init__(self, norms: Sequence[FunctionNorm]) -> None:
        self._norms = norms
        self.num_images = sum(len(norm.images) for norm in norms)
        self.is_labelled = all(norm.labels is not None for norm in norms)
        self.energy = sum(norm.output_energy * len(norm.images) for norm in norms) / self.num_images
        self._weights = np.ones(self.num_images)

    @property
    def exponent(self) -> float:
        """The power of the function norm by which the drop grows."""
        return DROP_EXPONENT if self.is_labelled else 1.0

    def informative(self, measured: Sequence[Measurement]) -> list[Measurement]:
        """Those of the measurements that tell how the drop grows."""
        return list(measured)

    def importance_sampled(self, loss: float, seed: int) -> "DropEstimator":
        """An estimator that evaluates fewer images; itself without labels.

        It takes all images whose decision a network of this L may change, and a sample of the others.

        Args:
            loss: L of the networks to be measured.
            seed: seed of the sample.
        """
        if not self.is_labelled:
            return self
        part, targets = copy.copy(self), torch.cat([norm.targets for norm in self._norms])
        part._weights = sampling_weights(targets, loss, generator(seed, Stream.DROP_SAMPLE))
        return part

    @property
    def image_passes(self) -> int:
        """Images that one measurement evaluates."""
        return int((self._weights > 0).sum())

    def measure(self, network: nn.Module) -> Measurement:
        """Function norm and drop of a network on these images."""
        losses, scores, start = 0.0, np.zeros(self.num_images), 0
        for norm in self._norms:
            weights = self._weights[start : start + len(norm.images)]
            chosen = np.flatnonzero(weights)
            found = norm.losses(network, chosen)
            losses += float(weights[chosen] @ found.values)
            each = found.flips if self.is_labelled and found.flips is not None else found.values / self.energy
            scores[start + chosen] = 100.0 * weights[chosen] * each
            start += len(norm.images)
        return Measurement(max(losses / self.num_images, MIN_LOSS), scores)


def sampling_weights(targets: Tensor, loss: float, rng: np.random.Generator) -> np.ndarray:
    """Weights (n,) of the images in means, 0 where an image is left out, for networks with function norm `loss`.

    Images on which the original decides by a small margin have weight 1; of the others a sample stands for all.
    Weighted means are unbiased wherever decisions change (Horvitz and Thompson 1952).

    Args:
        targets: the original's outputs (n, num_outputs).
        loss: function norm of the networks.
        rng: draws the sample.
    """
    gaps = margins(targets.double()).cpu().numpy()
    reach = MARGIN_DEVIATIONS * (2.0 * loss / count_classes(targets.shape[1])) ** 0.5
    close = gaps <= min(reach, np.quantile(gaps, MAX_CLOSE))
    others = rng.permutation(np.flatnonzero(~close))
    some = others[: int(np.ceil(SHARE_OF_OTHERS * len(others)))]
    weights = close.astype(float)
    weights[some] = len(others) / max(1, len(some))
    return weights


class DropCurve:
    """An upper bound, with 95 % confidence, of the drop as a power of L.

    Its factor comes from all measurements, which are on the same images. With labels, scores are -100, 0 or 100 where
    images have weight 1: one more image that gains and one that loses keep the bound valid where few images change
    (Agresti and Min 2005, for differences of paired proportions). It is too low where much is lost on images that are
    left out of the sample.

    Args:
        measured: measurements of networks on the same images.
        labelled: whether they are of an accuracy.
        exponent: the power.
    """

    def __init__(self, measured: Sequence[Measurement], labelled: bool, exponent: float = DROP_EXPONENT) -> None:
        self._exponent = exponent if labelled else 1.0
        powers = [each.loss**self._exponent for each in measured]
        rows = np.mean([each.scores / power for each, power in zip(measured, powers, strict=True)], axis=0)
        if labelled:
            rows = np.append(rows, np.array([100.0, -100.0]) * np.mean([1 / power for power in powers]))
        self.factor = float(rows.mean() + DEVIATIONS * rows.std(ddof=1) / len(rows) ** 0.5)

    def at_most(self, loss: float) -> float:
        """The bound of the drop of networks with this L."""
        return float(self.factor * loss**self._exponent)

    def limit(self, asked: float) -> float:
        """The L at which the bound is `asked`; infinite where no drop was measured."""
        return float((asked / self.factor) ** (1.0 / self._exponent)) if self.factor > 0 else np.inf
