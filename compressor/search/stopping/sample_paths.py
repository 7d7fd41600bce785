"""Posterior sample paths of J by pathwise conditioning, and their local maxima over the lattice of ranks.

Wilson et al. 2020, "Efficiently Sampling Functions from Gaussian Process Posteriors" (Sec. 3.2), and 2021, "Pathwise
Conditioning of Gaussian Processes": a path of the prior in random Fourier features, corrected by Matheron's rule,

    f(x) + k(x, X) (K + Sigma)^-1 (y - f(X) - e),    e ~ N(0, Sigma),

is a function that can be evaluated, and maximized, anywhere. Only the prior is approximated; the update uses the exact
kernel and the whole noise matrix, so that the error of the features vanishes where there are data.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.arrays import Array, Ranks, Single
from compressor.search.exchange import Moves
from compressor.search.space import RankSpace
from compressor.search.surrogate.gp import SPECTRAL_FREEDOM, GaussianProcess, correlation_of, squared_distances
from compressor.search.surrogate.posterior import Posterior

NUM_FEATURES = 512  # pairs of cosine and sine
NUM_LEVELS = 17  # ranks per layer that a local search tries, evenly spaced in theta
# Further ranks around those of a given plan, in theta. Of the failures that 65 even levels find on a ResNet-18, 17
# alone find 70 %, and with these 97 %: most failures are plans much like the incumbent.
CENTRE_OFFSETS = np.array([-4, -3, -2, -1, 0, 1, 2, 3, 4]) / 64
MAX_SWEEPS = 4
MAX_FURTHER_GAIN = 2.0  # of a local search, in gains of its last sweep
Rotations = NDArray[np.complex64]


class LatentSamplePaths:
    """Draws of the Gaussian process itself given its data, as functions of theta.

    Args:
        process: the posterior; one without observations gives draws of the prior.
        count: number p of paths.
        rng: draws the paths.
        num_features: number of random frequencies. All paths of one object share these, and with them the error of the
            approximated prior; average over several objects.
    """

    def __init__(
        self, process: GaussianProcess, count: int, rng: np.random.Generator, num_features: int = NUM_FEATURES
    ) -> None:
        hyper = process.hyper
        num_dims = len(hyper.length_scales)
        # Matern 5/2's spectral density is a multivariate t with 5 degrees of freedom (Rasmussen & Williams, Eq. 4.15).
        spread = np.sqrt(SPECTRAL_FREEDOM / rng.chisquare(SPECTRAL_FREEDOM, size=(num_features, 1)))
        frequencies = rng.standard_normal((num_features, num_dims)) * spread / hyper.length_scales
        weights = rng.standard_normal((2, count, num_features)) * np.sqrt(hyper.signal_variance / num_features)
        self.mean = hyper.mean
        self.signal_variance = np.float32(hyper.signal_variance)
        phases = process.thetas @ frequencies.T
        prior = weights[0] @ np.cos(phases).T + weights[1] @ np.sin(phases).T
        residuals = process.targets - hyper.mean - prior - process.draw_noise(count, rng)
        # Single precision from here on: rounding errors are far smaller than the spread of the paths.
        self.updates: Single = process.solve(residuals.T).T.astype(np.float32)
        self.frequencies: Single = frequencies.astype(np.float32)
        self.weights = (weights[0] + 1j * weights[1]).astype(np.complex64)
        self.scaled_data: Single = (process.thetas / hyper.length_scales).astype(np.float32)
        self.length_scales: Single = hyper.length_scales.astype(np.float32)

    def __call__(self, thetas: Array) -> Array:
        """Values (m, p) at thetas (m, d)."""
        points = thetas.astype(np.float32)
        phases = points @ self.frequencies.T
        values = np.cos(phases) @ self.weights.real.T + np.sin(phases) @ self.weights.imag.T
        values += self._kernel(points) @ self.updates.T
        return np.asarray(values + self.mean, dtype=np.float64)

    def on(self, chosen: NDArray[np.int64], thetas: Array) -> Array:
        """Values (k,) at thetas (k, d), each on the path of its own number (k,)."""
        points = thetas.astype(np.float32)
        features = self.weights[chosen] * rotations_of(points @ self.frequencies.T)
        values = features.real.sum(1) + np.einsum("ij,ij->i", self._kernel(points), self.updates[chosen])
        return np.asarray(values + self.mean, dtype=np.float64)

    def _kernel(self, points: Single) -> Single:
        squares = squared_distances(points / self.length_scales, self.scaled_data)
        return self.signal_variance * correlation_of(squares)


def rotations_of(angles: Single) -> Rotations:
    """exp(-i angles), any shape; faster than numpy's complex exponential."""
    factors = np.empty(angles.shape, np.complex64)
    factors.real = np.cos(angles)
    factors.imag = -np.sin(angles)
    return factors


@dataclass(frozen=True)
class Line:
    """What a local search tries for one layer.

    Attributes:
        ranks: (r,).
        thetas: the same in theta (r,).
        rotations: factors (r, features) by which these ranks rotate the features' phases.
        sines: cosines and sines (2 features, r), interleaved as the parts of complex numbers are in memory.
    """

    ranks: Ranks
    thetas: Single
    rotations: Rotations
    sines: Single


class SamplePaths:
    """Draws of J from its posterior, as functions of ranks.

    Args:
        posterior: over J.
        count: number p of paths.
        rng: draws the paths.
        num_features: see `LatentSamplePaths`.
        centre: a plan (d,) around whose ranks local searches try more of them.
    """

    def __init__(
        self,
        posterior: Posterior,
        count: int,
        rng: np.random.Generator,
        num_features: int = NUM_FEATURES,
        centre: Ranks | None = None,
    ) -> None:
        self.posterior = posterior
        self._centre = None if centre is None else posterior.space.encode(centre[None])[0]
        self.latent = LatentSamplePaths(posterior.process, count, rng, num_features)
        self._lines: dict[int, Line] = {}

    def __call__(self, ranks: Ranks) -> Array:
        """J (m, p) of every path at ranks (m, d)."""
        return self.posterior.objective_of(ranks[:, None, :], self.latent(self.posterior.space.encode(ranks)))

    def on(self, chosen: NDArray[np.int64], ranks: Ranks) -> Array:
        """J (k,) at ranks (k, d), each on the path of its own number (k,)."""
        return self.posterior.objective_of(ranks, self.latent.on(chosen, self.posterior.space.encode(ranks)))

    def line(self, layer: int) -> Line:
        """The line of layer number `layer`, computed once."""
        if layer not in self._lines:
            near = None if self._centre is None else self._centre[layer] + CENTRE_OFFSETS
            ranks, thetas = self.posterior.space.levels(layer, NUM_LEVELS, near)
            single = thetas.astype(np.float32)
            rotations = rotations_of(single[:, None] * self.latent.frequencies[:, layer])
            sines = np.ascontiguousarray(rotations.conj().view(np.float32).T)
            self._lines[layer] = Line(ranks, single, rotations, sines)
        return self._lines[layer]


def local_search(
    paths: SamplePaths,
    chosen: NDArray[np.int64],
    points: Ranks,
    sweeps: int = MAX_SWEEPS,
    goals: Array | None = None,
    heights: Array | None = None,
    limit: float | None = None,
) -> tuple[Ranks, Array]:
    """Local maxima of sample paths by coordinate ascent, all at once.

    Along a coordinate each feature changes by a factor alone, so a path on a whole line of the lattice is one matrix
    product. A search ends after a sweep without a gain. With `goals` it also ends above its goal, and where the last
    sweep gained too little to get there. Within a limit of R, layers exchange ranks in place of a sweep.

    Args:
        paths: the sample paths.
        chosen: index (k,) of the path that each search is on.
        points: where each starts (k, d).
        sweeps: at most so many over all coordinates.
        goals: values (k,).
        heights: values (k,) at `points`, where they are known.
        limit: R is at most this, as it is at `points`.

    Returns:
        Ranks (k, d) and the paths' values there (k,).
    """
    found, values = points.copy(), np.full(len(points), -np.inf) if heights is None else heights.copy()
    active = np.arange(len(points))
    for _ in range(sweeps):
        if not len(active):
            break
        if limit is None:
            moved, reached = _sweep(paths, chosen[active], found[active])
        else:
            moved, reached = _exchange(paths, chosen[active], found[active], limit)
        goes_on = (moved != found[active]).any(1)
        if goals is not None:
            left = goals[active] - reached
            goes_on &= (left >= 0) & (left < MAX_FURTHER_GAIN * (reached - values[active]))
        found[active], values[active] = moved, reached
        active = active[goes_on]
    return found, values


class _Searches:
    """Local searches on sample paths, one at each of the points (k, d).

    Attributes:
        points: where they are (k, d).
    """

    def __init__(self, paths: SamplePaths, chosen: NDArray[np.int64], points: Ranks) -> None:
        latent = paths.latent
        self.points = points
        self._paths = paths
        self._updates = latent.signal_variance * latent.updates[chosen][:, :, None]
        self._theta = paths.posterior.space.encode(points).astype(np.float32)
        # The real parts of the features sum to the prior's value.
        self._features = latent.weights[chosen] * rotations_of(self._theta @ latent.frequencies.T)
        self._squares = squared_distances(self._theta / latent.length_scales, latent.scaled_data)
        self._rows = np.arange(len(points))

    def along(self, layer: int) -> tuple[Ranks, Array]:
        """Plans (k, 1 + r, d) on the line of a layer, each search's own first, and their values (k, 1 + r)."""
        latent, line = self._paths.latent, self._paths.line(layer)
        scale, data = latent.length_scales[layer], latent.scaled_data[:, layer]
        own, which = np.unique(self._theta[:, layer], return_inverse=True)  # few: most lie on the line already
        self._stripped = self._features * rotations_of(-own[:, None] * latent.frequencies[:, layer])[which]
        # The point itself comes first, so that a tie leaves it where it is.
        prior = np.concatenate(
            [self._features.real.sum(1)[:, None], self._stripped.view(np.float32) @ line.sines], axis=1
        )
        self._steps = (line.thetas[:, None] / scale - data) ** 2
        self._rest = np.maximum(self._squares - ((own / scale)[:, None] - data)[which] ** 2, 0.0)
        distances = np.concatenate([self._squares[:, None, :], self._rest[:, None, :] + self._steps], axis=1)
        values = (prior + (correlation_of(distances) @ self._updates)[:, :, 0]) + latent.mean
        candidates = np.repeat(self.points[:, None, :], len(line.ranks) + 1, axis=1)
        candidates[:, 1:, layer] = line.ranks
        return candidates, self._paths.posterior.objective_of(candidates, values)

    def climb(self, layer: int) -> Array:
        """Move to the best rank of the line; returns the values there (k,)."""
        candidates, values = self.along(layer)
        taken, line = values.argmax(1), self._paths.line(layer)
        self.points = candidates[self._rows, taken]
        moved = np.flatnonzero(taken)
        level = taken[moved] - 1
        self._features[moved] = self._stripped[moved] * line.rotations[level]
        self._theta[moved, layer] = line.thetas[level]
        self._squares[moved] = self._rest[moved] + self._steps[level]
        return values[self._rows, taken]


def _sweep(paths: SamplePaths, chosen: NDArray[np.int64], points: Ranks) -> tuple[Ranks, Array]:
    """Set each coordinate in order to the best rank of its line; returns the points (k, d) and their values (k,)."""
    searches, best = _Searches(paths, chosen, points), np.full(len(points), -np.inf)
    for layer in range(paths.posterior.space.num_dims):
        best = searches.climb(layer)
    return searches.points, best


def _exchange(paths: SamplePaths, chosen: NDArray[np.int64], points: Ranks, limit: float) -> tuple[Ranks, Array]:
    """Move each of the points (k, d) by the best exchange between layers within a limit of R; as `_sweep`."""
    space, searches = paths.posterior.space, _Searches(paths, chosen, points)
    lines = [searches.along(layer) for layer in range(space.num_dims)]
    layers = np.repeat(np.arange(space.num_dims), [values.shape[1] - 1 for _, values in lines])
    ranks = np.concatenate([paths.line(layer).ranks for layer in range(space.num_dims)])
    own = lines[0][1][:, 0]
    gains = np.concatenate([values[:, 1:] for _, values in lines], axis=1) - own[:, None]
    ratios = space.ratio(points)
    costs = np.concatenate(
        [_changes(space, points, layer, paths.line(layer).ranks) for layer in range(space.num_dims)], axis=1
    )
    plans = [
        np.concatenate([point[None], space.keeping(Moves(layers, ranks, *row, limit - ratio).plans(point), limit)])
        for point, row, ratio in zip(points, zip(gains, costs, strict=True), ratios, strict=True)
    ]
    counts = np.cumsum([0, *(len(part) for part in plans)])
    values = paths.on(np.repeat(chosen, np.diff(counts)), np.concatenate(plans))
    found = [counts[row] + int(values[counts[row] : counts[row + 1]].argmax()) for row in range(len(points))]
    return np.concatenate(plans)[found], values[found]


def _changes(space: RankSpace, points: Ranks, layer: int, ranks: Ranks) -> Array:
    """How R changes (k, r) where a layer of the points (k, d) takes other ranks (r,)."""
    shares = np.broadcast_to(space.layer_ratio(layer, points), (len(points), len(space.tables[layer])))
    return shares[:, ranks - 1] - np.take_along_axis(shares, points[:, layer, None] - 1, axis=1)
