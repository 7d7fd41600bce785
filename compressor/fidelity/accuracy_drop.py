"""TODO docstring."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.losses import MIN_LOSS
from compressor.streams import Stream, generator

DEVIATIONS = 1.6449  # of a normal distribution, 95 % on one side
REACH, MAX_CLOSE, SHARE_OF_OTHERS = 8.0, 0.3, 0.1
DROP_EXPONENT = 0.55  # of a drop in top-1, in the function norm


@dataclass(frozen=True)
class Measurement:
    """A network's function norm, and what it loses on every image (n,), in points or per cent; the mean is the drop."""

    loss: float
    scores: np.ndarray

    @property
    def drop(self) -> float:
        """The mean loss."""
        return float(self.scores.mean())


class DropEstimator:
    """What a network loses against the original, on images that neither fitted nor recalibrated it.

    With labels that fit the outputs, points of top-1; without, the function norm in per cent of the output energy.

    Args:
        norms: the function norms on these images, one or more sets.
    """

    def __init__(self, norms: Sequence[FunctionNorm]) -> None:
        self._norms = norms
        self.num_images = sum(len(norm.images) for norm in norms)
        self.is_labelled = all(norm.labels is not None for norm in norms)
        self.energy = sum(norm.output_energy * len(norm.images) for norm in norms) / self.num_images
        self._weights = np.ones(self.num_images)

    def importance_sampled(self, loss: float, seed: int) -> "DropEstimator":
        """The same, with labels, from all images where a network of this L may decide otherwise, and some others."""
        if not self.is_labelled:
            return self
        part, targets = copy.copy(self), torch.cat([norm.targets for norm in self._norms])
        part._weights = sampling_weights(targets, loss, generator(seed, Stream.DROP_SAMPLE))
        return part

    @property
    def image_passes(self) -> int:
        """What one measurement takes."""
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
    """How many images each one stands for (n,), by the original's outputs (n, classes), for networks that move them by
    `loss`; 0 where it is left out.

    Horvitz and Thompson (1952): means of weighted values are unbiased, wherever decisions change.
    """
    best = targets.double().topk(2, dim=1).values.cpu().numpy()
    margins = best[:, 0] - best[:, 1]
    reach = REACH * (2.0 * loss / targets.shape[1]) ** 0.5
    close = margins <= min(reach, np.quantile(margins, MAX_CLOSE))
    others = rng.permutation(np.flatnonzero(~close))
    some = others[: int(np.ceil(SHARE_OF_OTHERS * len(others)))]
    weights = close.astype(float)
    weights[some] = len(others) / max(1, len(some))
    return weights


class DropCurve:
    """The drop as a power of L, its factor from all measurements, which are on the same images.

    The bound holds with 95 % confidence. With labels, scores are -100, 0 or 100 where images count for themselves: one
    more that gains and one that loses keep it honest where few images change (Agresti and Min 2005, for differences of
    paired proportions). It is too low where much is lost on images that others stand for.
    """

    def __init__(self, measured: Sequence[Measurement], labelled: bool) -> None:
        self._exponent = DROP_EXPONENT if labelled else 1.0
        powers = [each.loss**self._exponent for each in measured]
        rows = np.mean([each.scores / power for each, power in zip(measured, powers, strict=True)], axis=0)
        if labelled:
            rows = np.append(rows, np.array([100.0, -100.0]) * np.mean([1 / power for power in powers]))
        self.factor = float(rows.mean() + DEVIATIONS * rows.std(ddof=1) / len(rows) ** 0.5)

    def at_most(self, loss: float) -> float:
        """Upper bound of the drop of networks with this L."""
        return float(self.factor * loss**self._exponent)

    def limit(self, asked: float) -> float:
        """The L at which the bound is `asked`; infinite where nothing is lost at all."""
        return float((asked / self.factor) ** (1.0 / self._exponent)) if self.factor > 0 else np.inf
