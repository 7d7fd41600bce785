"""Noise of the estimates of L, and the images that each evaluation is made on."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from compressor.errors import InputError
from compressor.fidelity.losses import Losses, NoiseSpecification
from compressor.streams import Stream, generator

MIN_NORM = 1e-12


class NoiseModel:
    """Covariance of the estimates of L: Sigma_n of Eqs. (8) to (10), from the per-image losses of all evaluations.

    Two numbers, estimated over all evaluations together, determine the whole matrix: the relative variance of the
    losses, and their correlation between two plans on the same image. An evaluation on m images has the variance
    s^2 relative_variance / m, where s is its function norm to the power `noise_power` (1 for the function norm). Images
    that two evaluations share make their noise correlated,
    cov = s_i s_j relative_variance correlation q_ij |S_i & S_j| / (m_i m_j), where q_ij is the smaller over the larger
    function norm to the power `correlation_decay` (ResNet-18: 0.3 for the function norm).

    The sample covariance estimates every entry by itself, but from a hundred plans on the same 20 images it has rank
    19: most differences between plans would count as known exactly. And the sample variance of an evaluation is low
    where its losses happen to be low, so that such evaluations would have too large a weight.

    Args:
        num_images: images that evaluations are made on.
        noise_spec: how the noise depends on the function norm; by default that of the function norm itself.
    """

    def __init__(self, num_images: int, noise_spec: NoiseSpecification | None = None) -> None:
        self._noise_spec = noise_spec or NoiseSpecification()
        self._norms: list[float] = []
        self._sizes: list[int] = []
        self._indices = np.zeros(0, dtype=np.int64)  # images of all evaluations, one after the other
        self._shared = np.zeros((0, 0))
        # Sums over the evaluations that an image was in
        self._counts = np.zeros(num_images)
        self._relative_squares = np.zeros(num_images)
        self._score_counts = np.zeros(num_images)
        self._scores = np.zeros(num_images)
        self._score_squares = np.zeros(num_images)

    def add(self, losses: Losses) -> None:
        """Add an evaluation."""
        indices, size = losses.indices, len(losses.indices)
        self._append_shared(indices)
        self._norms.append(losses.function_norm)
        deviations = losses.values - losses.mean
        scale, spread = losses.function_norm**self._noise_spec.noise_power, float(deviations.std())
        if scale > 0.0:  # a plan without loss has no noise, and is no evidence of that of others
            self._counts[indices] += 1.0
            self._relative_squares[indices] += (deviations / scale) ** 2 * size / (size - 1)
        if spread > 0.0:
            self._score_counts[indices] += 1.0
            self._scores[indices] += deviations / spread
            self._score_squares[indices] += (deviations / spread) ** 2

    def _append_shared(self, indices: NDArray[np.int64]) -> None:
        """Add a row and a column of |S_i & S_j|."""
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
        """Variance of the losses over s^2, in which each image counts once."""
        seen = self._counts > 0
        return float((self._relative_squares[seen] / self._counts[seen]).mean()) if seen.any() else 0.0

    @property
    def correlation(self) -> float:
        """Correlation of two plans' losses on an image where q is 1, from images in several evaluations."""
        several = self._score_counts > 1
        pairs = (self._scores[several] ** 2 - self._score_squares[several]) / (self._score_counts[several] - 1.0)
        total = float(self._score_squares[several].sum())
        if total <= 0:
            return 0.0
        scattered = np.array(self._norms) > 0.0
        shared = self._shared * np.outer(scattered, scattered)
        shared[np.diag_indices_from(shared)] = 0.0
        mean_decay = float((shared * self._decay()).sum() / shared.sum())
        return float(np.clip(pairs.sum() / total / mean_decay, 0.0, 1.0))

    def _decay(self) -> NDArray[np.float64]:
        """q_ij (n, n)."""
        norms = np.log(np.maximum(self._norms, MIN_NORM))
        return np.exp(-self._noise_spec.correlation_decay * np.abs(norms[:, None] - norms))

    def variance(self, function_norms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Variance (m,) of the losses on one image of plans with these function norms (m,)."""
        return np.asarray(self.relative_variance * function_norms ** (2.0 * self._noise_spec.noise_power))

    def covariance(self, function_norms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Covariance (n, n) of the estimates so far, given the function norms (n,) of their plans."""
        sizes = np.array(self._sizes, dtype=float)
        matrix = self.correlation * self._decay() * self._shared / np.outer(sizes, sizes)
        matrix[np.diag_indices_from(matrix)] = 1.0 / sizes
        scales = function_norms**self._noise_spec.noise_power
        return self.relative_variance * matrix * np.outer(scales, scales)


class ImageSampler:
    """Samples the images of each evaluation without replacement, until too few are left; then all are shuffled again.

    Sample number k depends on the seed and k alone, so that a resumed search has the same images.

    Args:
        num_images: images to sample from.
        samples: images per evaluation; all, where there are fewer.
        seed: of the samples.

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
        """Indices (samples,) of the images of sample `number`."""
        per_epoch = self._num_images // self.samples
        epoch, part = divmod(number, per_epoch)
        order = generator(self._seed, Stream.IMAGES, epoch).permutation(self._num_images)
        return order[part * self.samples : (part + 1) * self.samples]

    def draw_unseen(self, number: int, seen: Collection[int]) -> NDArray[np.int64]:
        """Indices of up to `samples` images other than `seen`, for another evaluation of a plan; none rather than one.

        An image that was seen would give the same loss again, and no new information.
        """
        order = generator(self._seed, Stream.UNSEEN_IMAGES, number).permutation(self._num_images)
        unseen = order[~np.isin(order, list(seen))][: self.samples]
        return unseen if len(unseen) > 1 else unseen[:0]
