"""SurrogateFitter sample paths of J by pathwise conditioning, and their maxima over the lattice of ranks.

Wilson et al. 2020, "Efficiently Sampling Functions from Gaussian Process Posteriors" (Sec. 3.2), and 2021, "Pathwise
Conditioning of Gaussian Processes": a path of the prior in random Fourier features, corrected by Matheron's rule,

    f(x) + k(x, X) (K + Sigma)^-1 (y - f(X) - e),    e ~ N(0, Sigma),

is a function that can be evaluated, and climbed, anywhere. Only the prior is approximated, the update uses the exact
kernel and the whole noise matrix, so that the error of the features fades where there are data.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.arrays import Array, Ranks
from compressor.search.surrogate.base import Posterior
from compressor.search.surrogate.gp import SPECTRAL_FREEDOM, GaussianProcess, correlation_of, squared_distances

NUM_FEATURES = 512  # pairs of cosine and sine
NUM_LEVELS = 17  # ranks tried per layer in a climb, evenly spaced in theta
# and beside a good plan's rank, in theta: of the failures that lines of 65 ranks find, evenly spaced ranks alone find 7
# of 10, with these 97 of 100 (ResNet-18): most are plans much like the incumbent.
NEARBY = np.array([-4, -3, -2, -1, 0, 1, 2, 3, 4]) / 64
LOCAL_SEARCH_SWEEPS = 4
HOPE = 2.0  # in rises of the last sweep: how much higher a path may still come
Single = NDArray[np.float32]
Turns = NDArray[np.complex64]


class LatentSamplePaths:
    """Draws (p of them) of the Gaussian process itself, given its data, as functions of theta.

    Args:
        process: the posterior; one without observations gives draws of the prior.
        count: p.
        num_features: frequencies; all paths of one object share them, so that the error of the approximated prior is
            common to them: take several objects.
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
        # Single precision from here on: a path's own uncertainty is far larger than its rounding.
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

    def _kernel(self, points: Single) -> Single:
        squares = squared_distances(points / self.length_scales, self.scaled_data)
        return self.signal_variance * correlation_of(squares)


def turn(angles: Single) -> Turns:
    """exp(-i angles), any shape; quicker than numpy's complex exponential."""
    factors = np.empty(angles.shape, np.complex64)
    factors.real = np.cos(angles)
    factors.imag = -np.sin(angles)
    return factors


@dataclass(frozen=True)
class Line:
    """What a climb tries for one layer: ranks (r,), their theta (r,), and the factors (r, features) that these turn
    features by; `sines` (2 features, r) holds cosines and sines in turn, as complex numbers lie in memory."""

    ranks: Ranks
    thetas: Single
    turns: Turns
    sines: Single


class SamplePaths:
    """p draws of J from a belief, as functions of the ranks; climbs look more closely around the plan `centre` (d,)."""

    def __init__(
        self,
        posterior: Posterior,
        count: int,
        rng: np.random.Generator,
        num_features: int = NUM_FEATURES,
        centre: Ranks | None = None,
    ) -> None:
        self.posterior = posterior
        self._near = None if centre is None else posterior.space.encode(centre[None])[0]
        self.latent = LatentSamplePaths(posterior.process, count, rng, num_features)
        self._lines: dict[int, Line] = {}

    def __call__(self, ranks: Ranks) -> Array:
        """J (m, p) of every path at ranks (m, d)."""
        return self.posterior.objective_of(ranks[:, None, :], self.latent(self.posterior.space.encode(ranks)))

    def line(self, layer: int) -> Line:
        """The line of a layer."""
        if layer not in self._lines:
            near = None if self._near is None else self._near[layer] + NEARBY
            ranks, thetas = self.posterior.space.levels(layer, NUM_LEVELS, near)
            single = thetas.astype(np.float32)
            turns = turn(single[:, None] * self.latent.frequencies[:, layer])
            self._lines[layer] = Line(ranks, single, turns, np.ascontiguousarray(turns.conj().view(np.float32).T))
        return self._lines[layer]


def local_search(
    paths: SamplePaths,
    chosen: NDArray[np.int64],
    points: Ranks,
    sweeps: int = LOCAL_SEARCH_SWEEPS,
    goals: Array | None = None,
    heights: Array | None = None,
) -> tuple[Ranks, Array]:
    """Local maxima (k, d) and their values (k,) of the paths `chosen` (k,), from `points` (k, d), all at once.

    Coordinate by coordinate: a path on a whole line of the lattice is one product of matrices, because along a
    coordinate a feature changes by a factor alone. A path that did not rise in a sweep is done; with `goals` (k,) one
    that lies above its own, too, and one that rose by too little to come there: from the points' `heights` (k,), where
    these are known.
    """
    found, values = points.copy(), np.full(len(points), -np.inf) if heights is None else heights.copy()
    active = np.arange(len(points))
    for _ in range(sweeps):
        if not len(active):
            break
        risen, reached = _sweep(paths, chosen[active], found[active])
        goes_on = (risen != found[active]).any(1)
        if goals is not None:
            left = goals[active] - reached
            goes_on &= (left >= 0) & (left < HOPE * (reached - values[active]))
        found[active], values[active] = risen, reached
        active = active[goes_on]
    return found, values


def _sweep(paths: SamplePaths, chosen: NDArray[np.int64], points: Ranks) -> tuple[Ranks, Array]:
    """Each coordinate (in order) set to the best rank of its line; the points (k, d) and their values (k,)."""
    posterior, latent = paths.posterior, paths.latent
    updates = latent.signal_variance * latent.updates[chosen][:, :, None]
    theta = posterior.space.encode(points).astype(np.float32)
    features = latent.weights[chosen] * turn(theta @ latent.frequencies.T)  # their real parts sum to the prior's value
    squares = squared_distances(theta / latent.length_scales, latent.scaled_data)
    rows, best = np.arange(len(points)), np.full(len(points), -np.inf)
    for layer in range(posterior.space.num_dims):
        line, scale, data = paths.line(layer), latent.length_scales[layer], latent.scaled_data[:, layer]
        own, which = np.unique(theta[:, layer], return_inverse=True)  # few: most lie on the line already
        stripped = features * turn(-own[:, None] * latent.frequencies[:, layer])[which]
        # The point itself comes first, so that a tie leaves it where it is.
        prior = np.concatenate([features.real.sum(1)[:, None], stripped.view(np.float32) @ line.sines], axis=1)
        steps = (line.thetas[:, None] / scale - data) ** 2
        rest = np.maximum(squares - ((own / scale)[:, None] - data)[which] ** 2, 0.0)
        distances = np.concatenate([squares[:, None, :], rest[:, None, :] + steps], axis=1)
        values = (prior + (correlation_of(distances) @ updates)[:, :, 0]) + latent.mean
        candidates = np.repeat(points[:, None, :], len(line.ranks) + 1, axis=1)
        candidates[:, 1:, layer] = line.ranks
        values = posterior.objective_of(candidates, values)
        taken = values.argmax(1)
        points, best = candidates[rows, taken], values[rows, taken]
        moved = np.flatnonzero(taken)
        level = taken[moved] - 1
        features[moved] = stripped[moved] * line.turns[level]
        theta[moved, layer] = line.thetas[level]
        squares[moved] = rest[moved] + steps[level]
    return points, best
