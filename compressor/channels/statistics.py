"""Second moments at the layers that read hidden channels: of their inputs, and of the gradients at their outputs.

K-FAC for layers that are applied at many positions takes these as so many samples (Martens and Grosse 2015, Grosse and
Martens 2016). Where later layers average over positions, errors that all of them share count far more. Inputs and
gradients are therefore split into an image's mean over its positions and the deviations from it. The sum over positions
of g x^T is positions * mean g * mean x^T plus that of the deviations: the first is one sample per image ("reduce",
Eschenhagen et al. 2023), the second one per position ("expand"). By the gradients nine tenths and more of the loss are
the means'; with a few hundred images, however, these give too few samples, and the deviations regularize them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from compressor.network.calibration.gradients import OutputGradients
from compressor.network.calibration.moments import MAX_INPUTS, RunningMoments, rows_of_batch
from compressor.network.hooks import OutputPositions, position_generators, sample_positions, watch_batches
from compressor.network.replay import Replay

MAX_ROWS = 32768  # output positions per layer that enter its moments
MEAN_SHARE = 0.3  # of the images' means in the trace of the inputs' covariance; between 0.3 and 0.6 differ little
# The identity that is mixed into the gradients' second moment, as a multiple of its mean diagonal: a few hundred
# gradients tell the matrix badly, and orders by it alone lose more than those by the identity alone.
GRADIENT_FLOOR = 1.0


class SplitMoments:
    """Sums over inputs and targets, of images' means and of the deviations from them apart."""

    def __init__(self) -> None:
        self._means, self._deviations = RunningMoments(1), RunningMoments(1)

    def add(self, rows: Tensor, images: Tensor, targets: Tensor | None = None) -> None:
        """Add inputs of some output positions, and what is wanted there.

        Args:
            rows: inputs of the layer (r, n).
            images: the number of each row's image in its batch (r,).
            targets: wanted outputs (r, m); None where none are.
        """
        centres = _means_of(rows, images)
        self._means.add(centres, None if targets is None else _means_of(targets, images))
        number = images.unique(return_inverse=True)[1]
        spread = None if targets is None else targets - _means_of(targets, images)[number]
        self._deviations.add(rows - centres[number], spread)

    def mean(self) -> Tensor:
        """Mean of the rows (n,), every image having the same weight."""
        return self._means.mean()[0]

    def target_mean(self) -> Tensor:
        """Mean of the targets (m,)."""
        return self._means.target_mean()[0]

    def covariance(self) -> Tensor:
        """Covariance (n, n), float32, of means and deviations weighted to MEAN_SHARE and the rest of the trace.

        Its sums are used up: they take most of the memory.
        """
        of_means, of_deviations = self._weights
        deviation = self._deviations.mean()[0].float()
        total = self._means.covariance(torch.float32, last=True)[0].mul_(of_means)
        total += self._deviations.covariance(torch.float32, last=True)[0].mul_(of_deviations)
        return total.addr_(deviation, deviation, alpha=of_deviations)

    def cross_covariance(self) -> Tensor:
        """Covariance (n, m) with the targets, weighted likewise."""
        of_means, of_deviations = self._weights
        means, deviations = self._means.cross_covariance()[0], self._deviations.cross_covariance()[0]
        return of_means * means + of_deviations * deviations

    @cached_property
    def _weights(self) -> tuple[float, float]:
        traces = [self._means.variance(), self._deviations.variance() + float(self._deviations.mean().square().sum())]
        if min(traces) <= 0.0:
            return 1.0, 1.0
        total = sum(traces)
        return MEAN_SHARE * total / traces[0], (1 - MEAN_SHARE) * total / traces[1]


@dataclass(frozen=True)
class ReaderMoments:
    """Second moments of a layer that reads hidden channels, float64 but for the covariance.

    Attributes:
        covariance: of the inputs of one output position, (n, n) in the order of the weight, of images' means and
            deviations as in `SplitMoments`; float32, as it is the largest. For layers with more inputs than
            `MAX_INPUTS` (c, c) of the units' values, with the inputs within a unit as so many positions.
        mean: of the inputs (n,), or (c,).
        gradients: second moments (Co, Co) of the gradients of the network's outputs at the layer's, per image: of their
            sum over positions plus those of the deviations from their mean position.
    """

    covariance: Tensor
    mean: Tensor
    gradients: Tensor

    def importance(self, weight: Tensor) -> Tensor:
        """W^T G W (n, n), or (c, c), of a weight (Co, ...), in the covariance's precision."""
        columns, gradients = weight.detach().cpu().to(self.covariance).flatten(1), self.gradients.to(self.covariance)
        size = columns.shape[1] // len(self.covariance)
        by_input = columns.unflatten(1, (-1, size)).movedim(2, 0)
        first, *others = by_input
        total = first.T @ (gradients @ first)
        for one in others:
            total.addmm_(one.T, gradients @ one)
        return total


def reader_moments(
    gradients: OutputGradients, readers: Mapping[str, int], replay: Replay | None = None
) -> dict[str, ReaderMoments]:
    """The moments of layers that read hidden channels.

    Args:
        gradients: of the network, on the calibration images.
        readers: by layer name the number of units it reads, in the order of use.
        replay: of their network on these images, for who asks several times; None for whole passes.
    """
    replay = replay or gradients.replay(list(readers))
    inputs = _input_moments(gradients, readers, replay)
    weights = gradients.by_image(list(readers))
    return {
        name: ReaderMoments(moments.covariance(), moments.mean(), _with_identity(weights[name]))
        for name, moments in inputs.items()
    }


def images_of(positions: OutputPositions, output: Tensor) -> Tensor:
    """The number in the batch of the image (rows,) that each position of a layer's output belongs to."""
    if len(positions.indices) == 3:
        return positions.indices[0]
    return positions.indices[0] // max(1, output[0, ..., 0].numel())


def _means_of(rows: Tensor, images: Tensor) -> Tensor:
    """Means (i, n) of the rows of each image."""
    _, number, counts = images.unique(return_inverse=True, return_counts=True)
    sums = rows.new_zeros(len(counts), rows.shape[1]).index_add_(0, number, rows)
    return sums / counts[:, None]


def _input_moments(of: OutputGradients, readers: Mapping[str, int], replay: Replay) -> dict[str, SplitMoments]:
    names = list(readers)
    moments = {name: SplitMoments() for name in names}
    generators = position_generators(of.seed, len(names))
    modules = [of.model.get_submodule(name) for name in names]

    def add(index: int, value: Tensor, output: Tensor, size: int) -> None:
        name, module = names[index], modules[index]
        positions = sample_positions(module, output, rows_of_batch(size, len(of.images), MAX_ROWS), generators[index])
        rows = positions.of_input(module, value)
        numbers = images_of(positions, output)
        if rows.shape[1] > MAX_INPUTS:
            per_unit = rows.shape[1] // readers[name]
            rows, numbers = rows.reshape(len(rows), -1, per_unit).mT.flatten(0, 1), numbers.repeat_interleave(per_unit)
        moments[name].add(rows, numbers)

    replay.advance(of.model, *names)
    watch_batches(of.model, modules, replay.passes(of.model), add)
    return moments


def _with_identity(moments: Tensor) -> Tensor:
    """Second moments (Co, Co) of gradients, mixed with the identity; their trace stays."""
    level = GRADIENT_FLOOR * moments.diagonal().mean()
    return (moments + level * torch.eye(len(moments), dtype=moments.dtype)) / (1 + GRADIENT_FLOOR)
