"""Fidelity as a U-statistic: mean, variance and covariance of per-image losses (Sec. 3.1, Eq. 5)."""

import copy
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.errors import InputError
from compressor.images import ImageSet
from compressor.labels import fitting_labels

BATCH_SIZE = 64
HUGE = 1e12
SMALLEST_NORM = 1e-12
IMAGE_STREAM, UNSEEN_STREAM = 1, 2  # keep the random streams of one seed apart


@dataclass(frozen=True)
class Losses:
    """Per-image losses of one candidate on the images `indices`; both (m,).

    l_i = ||f~(x_i) - f*(x_i)||^2, or another loss; then `squares` (m,) holds these squared distances. With labels,
    `harms` (m,) are 1 where only the original decides rightly, -1 where only the candidate does, else 0.
    """

    indices: NDArray[np.int64]
    values: NDArray[np.float64]
    squares: NDArray[np.float64] | None = None
    harms: NDArray[np.float64] | None = None

    @property
    def mean(self) -> float:
        """The estimate of L."""
        return float(self.values.mean())

    @property
    def variance(self) -> float:
        """Variance of the estimate: sample variance over m."""
        return float(self.values.var(ddof=1) / len(self.values))

    @property
    def distances(self) -> NDArray[np.float64]:
        """The squared distances of the outputs (m,), whatever the loss is."""
        return self.values if self.squares is None else self.squares

    @property
    def function_norm(self) -> float:
        """The function norm on these images, whatever the loss is."""
        return float(self.distances.mean())

    def on(self, indices: NDArray[np.int64]) -> "Losses":
        """Those on the images `indices` (k,), in the order they have here."""
        return self._where(np.isin(self.indices, indices))

    def without(self, indices: NDArray[np.int64]) -> "Losses":
        """Those on other images than `indices` (k,)."""
        return self._where(~np.isin(self.indices, indices))

    def _where(self, chosen: NDArray[np.bool_]) -> "Losses":
        squares, harms = (None if values is None else values[chosen] for values in (self.squares, self.harms))
        return Losses(self.indices[chosen], self.values[chosen], squares, harms)


@dataclass(frozen=True)
class LossLaw:
    """How a loss behaves, as far as a search needs to know beforehand.

    `floor`: what the loss of the original itself is taken to be, so that L + `floor` is positive.
    `noise_power`: the deviation of the losses grows as this power of the function norm.
    `likeness_power`: two plans' losses on an image are the less alike the more their function norms differ: the
    correlation goes with this power of the smaller over the larger.
    `per_norm`: a first guess of how much L comes with a function norm of 1.
    """

    floor: float = 0.0
    noise_power: float = 1.0
    likeness_power: float = 0.3
    per_norm: float = 1.0


class FunctionNorm:
    """L(f~, f*) on a fixed set of images; the teacher's outputs are computed once. `labels` (n,) are the images', where
    they fit the outputs.

    Raises:
        InputError: fewer than two images, or the network's outputs are not one finite tensor.
    """

    def __init__(self, teacher: nn.Module, images: ImageSet, device: torch.device) -> None:
        if len(images) < 2:
            raise InputError(f"at least two images are needed to know the noise, got {len(images)}")
        self.images = images
        self._device = device
        self.targets = self.outputs(teacher, torch.arange(len(images)))
        if not torch.isfinite(self.targets).all():
            raise InputError("the network's outputs on these images are not finite")
        self.teacher_energy = _energy(self.targets)
        self.labels = fitting_labels(images, self.targets.shape[1])

    @property
    def law(self) -> LossLaw:
        """Losses of different plans scatter alike relative to L."""
        return LossLaw()

    @property
    def loss_when_lost(self) -> float:
        """L of a network that says nothing."""
        return self.teacher_energy

    def subset(self, count: int) -> "FunctionNorm":
        """The same on the first `count` images, without running the teacher again."""
        part = copy.copy(self)
        part.images = self.images.subset(range(count))
        part.targets = self.targets[:count]
        part.teacher_energy = _energy(part.targets)
        part.labels = None if self.labels is None else self.labels[:count]
        return part

    def outputs(self, network: nn.Module, indices: Tensor) -> Tensor:
        """Outputs (m, num_outputs) of `network` on the images `indices` (m,)."""
        with torch.inference_mode():
            batches = [
                _as_rows(network(self.images.batch(part).to(self._device))) for part in indices.split(BATCH_SIZE)
            ]
        return torch.cat(batches)

    def inputs_and_targets(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The images `indices` (m,) on the device, and the teacher's outputs (m, num_outputs) for them."""
        return self.images.batch(indices).to(self._device), self.targets[indices.to(self.targets.device)]

    def losses(self, network: nn.Module, indices: NDArray[np.int64]) -> Losses:
        """Squared distance to the teacher for each of the images `indices`."""
        chosen = torch.from_numpy(indices)
        outputs = self.outputs(network, chosen)
        return Losses(indices, self.compare(outputs, chosen), harms=self._harms(outputs, chosen))

    def compare(self, outputs: Tensor, indices: Tensor) -> NDArray[np.float64]:
        """Squared distances (m,) of `outputs` (m, num_outputs) to the teacher's on the images `indices` (m,)."""
        differences = outputs - self.targets[indices.to(self.targets.device)]
        values = differences.double().square().sum(1).cpu().numpy()
        # A destroyed candidate may overflow; a huge finite loss keeps the search going and away from it.
        return np.minimum(np.nan_to_num(values, nan=HUGE, posinf=HUGE), HUGE)

    def _harms(self, outputs: Tensor, indices: Tensor) -> NDArray[np.float64] | None:
        if self.labels is None:
            return None
        labels, targets = self.labels[indices], self.targets[indices.to(self.targets.device)]
        before, after = (rows.cpu().argmax(1) == labels for rows in (targets, outputs))
        return (before.double() - after.double()).numpy()


class NoiseModel:
    """Covariance of the estimates of L: Sigma_n of Eqs. (8) to (10), from the per-image losses of all looks.

    Two numbers, estimated over all looks together, stand for the whole matrix: the relative variance of the losses,
    and their correlation between two plans on the same image. A look on m images has the variance
    s^2 relative_variance / m, s being its function norm to the power `noise_power` (1 for the function norm);
    images that two looks share make their noise correlated,
    cov = s_i s_j relative_variance correlation q_ij |S_i & S_j| / (m_i m_j), q_ij being the smaller over the larger
    function norm to the power `likeness_power` (ResNet-18: 0.3 for the function norm).

    The sample covariance has a number of its own for every entry, but a hundred plans on the same 20 images give it
    rank 19: most differences between plans would then count as known exactly. And a look's own sample variance is low
    where by chance its losses are, so that lucky looks would count most. Measured, see docs/method.md.
    """

    def __init__(self, num_images: int, law: LossLaw | None = None) -> None:
        self._law = law or LossLaw()
        self._norms: list[float] = []
        self._sizes: list[int] = []
        self._indices = np.zeros(0, dtype=np.int64)  # of all looks' images, one look after the other
        self._shared = np.zeros((0, 0))
        # Sums over the looks that saw an image
        self._counts = np.zeros(num_images)
        self._relative_squares = np.zeros(num_images)
        self._score_counts = np.zeros(num_images)
        self._scores = np.zeros(num_images)
        self._score_squares = np.zeros(num_images)

    def add(self, losses: Losses) -> None:
        """One more look."""
        indices, size = losses.indices, len(losses.indices)
        self._append_shared(indices)
        self._norms.append(losses.function_norm)
        deviations = losses.values - losses.mean
        scale, spread = losses.function_norm**self._law.noise_power, float(deviations.std())
        if scale > 0.0:  # a plan without any loss has no noise, and says nothing about that of others
            self._counts[indices] += 1.0
            self._relative_squares[indices] += (deviations / scale) ** 2 * size / (size - 1)
        if spread > 0.0:
            self._score_counts[indices] += 1.0
            self._scores[indices] += deviations / spread
            self._score_squares[indices] += (deviations / spread) ** 2

    def _append_shared(self, indices: NDArray[np.int64]) -> None:
        """One more row and column of |S_i & S_j|."""
        seen = np.zeros(len(self._counts))
        seen[indices] = 1.0
        starts = np.cumsum([0, *self._sizes])
        self._sizes.append(len(indices))
        self._indices = np.concatenate([self._indices, indices])
        row = np.add.reduceat(seen[self._indices], starts)
        self._shared = np.pad(self._shared, (0, 1))
        self._shared[-1] = self._shared[:, -1] = row

    @property
    def relative_variance(self) -> float:
        """Variance of the losses over s^2, each image counted once."""
        seen = self._counts > 0
        return float((self._relative_squares[seen] / self._counts[seen]).mean()) if seen.any() else 0.0

    @property
    def correlation(self) -> float:
        """Correlation of two plans' losses on an image where q is 1, over the images that several looks saw."""
        several = self._score_counts > 1
        pairs = (self._scores[several] ** 2 - self._score_squares[several]) / (self._score_counts[several] - 1.0)
        total = float(self._score_squares[several].sum())
        if total <= 0:
            return 0.0
        scattered = np.array(self._norms) > 0.0
        shared = self._shared * np.outer(scattered, scattered)
        shared[np.diag_indices_from(shared)] = 0.0
        likeness = float((shared * self._likeness()).sum() / shared.sum())
        return float(np.clip(pairs.sum() / total / likeness, 0.0, 1.0))

    def _likeness(self) -> NDArray[np.float64]:
        """q_ij (n, n)."""
        norms = np.log(np.maximum(self._norms, SMALLEST_NORM))
        return np.exp(-self._law.likeness_power * np.abs(norms[:, None] - norms))

    def variance(self, function_norms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Variance (m,) of the losses on one image of plans with these function norms (m,)."""
        return np.asarray(self.relative_variance * function_norms ** (2.0 * self._law.noise_power))

    def covariance(self, function_norms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Covariance (n, n) of the looks added so far, which found these function norms (n,)."""
        sizes = np.array(self._sizes, dtype=float)
        matrix = self.correlation * self._likeness() * self._shared / np.outer(sizes, sizes)
        matrix[np.diag_indices_from(matrix)] = 1.0 / sizes
        scales = function_norms**self._law.noise_power
        return self.relative_variance * matrix * np.outer(scales, scales)


class ImageSampler:
    """Draws `samples` images per evaluation, without replacement until too few are left; then all are shuffled anew.

    Draw number k depends on the seed and k alone, so that a resumed search sees the same images.

    Raises:
        InputError: fewer than two images per evaluation: the noise would be unknown.
    """

    def __init__(self, num_images: int, samples: int, seed: int) -> None:
        self._num_images = num_images
        self.samples = min(samples, num_images)
        if self.samples < 2:
            raise InputError(f"at least two images per evaluation are needed, got {self.samples}")
        self._seed = seed

    def draw(self, number: int) -> NDArray[np.int64]:
        """Indices (samples,) of the images of draw `number`."""
        per_epoch = self._num_images // self.samples
        epoch, part = divmod(number, per_epoch)
        order = np.random.default_rng([self._seed, IMAGE_STREAM, epoch]).permutation(self._num_images)
        return order[part * self.samples : (part + 1) * self.samples]

    def draw_unseen(self, number: int, seen: Collection[int]) -> NDArray[np.int64]:
        """Up to `samples` images other than `seen`, for another look at a plan; fewer than two are none.

        The same image gives the same loss again: only new ones can tell more.
        """
        order = np.random.default_rng([self._seed, UNSEEN_STREAM, number]).permutation(self._num_images)
        unseen = order[~np.isin(order, list(seen))][: self.samples]
        return unseen if len(unseen) > 1 else unseen[:0]


def _energy(outputs: Tensor) -> float:
    return float(outputs.double().square().sum(1).mean())


def _as_rows(outputs: object) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise InputError(f"the network must return one tensor, it returns {type(outputs).__name__}")
    return outputs.reshape(len(outputs), -1).float()
