"""The PAC acquisition (Eq. 11) maximised on the lattice, and the choice between a new point and another look.

Everything is scored on integer ranks only: a certificate about points that cannot be built says nothing.
"""

import numpy as np
from numpy.typing import NDArray

from compressor.search.belief import Score
from compressor.search.space import Ranks, RankSpace

NUM_RANDOM = 512
NUM_LOCAL = 512
NUM_CLIMBS = 3
MAX_CLIMB_STEPS = 25
LOCAL_SCALES = (0.02, 0.1, 0.3)  # in theta


def maximise(score: Score, space: RankSpace, anchors: Ranks, rng: np.random.Generator) -> tuple[Ranks, float]:
    """The lattice point (d,) of highest score found, and its exact score.

    Random points and perturbations of `anchors` (k, d) first, then coordinate climbing from the best few: one
    step up or down and longer strides, one coordinate at a time.
    """
    pool = np.concatenate([space.sample(NUM_RANDOM, rng), _perturb(space, anchors, rng)])
    scores = score(pool)
    starts = np.argsort(-scores, kind="stable")[:NUM_CLIMBS]
    climbed = np.stack([_climb(score, space, pool[start], scores[start]) for start in starts])
    exact = score.exact(climbed)
    best = int(np.argmax(exact))
    return climbed[best], float(exact[best])


def _perturb(space: RankSpace, anchors: Ranks, rng: np.random.Generator) -> Ranks:
    thetas = space.encode(anchors)[rng.integers(len(anchors), size=NUM_LOCAL)]
    scales = rng.choice(LOCAL_SCALES, size=(NUM_LOCAL, 1))
    moved = rng.random(thetas.shape) < rng.choice([1.0 / space.num_dims, 0.3, 1.0], size=(NUM_LOCAL, 1))
    return space.decode(thetas + moved * scales * rng.standard_normal(thetas.shape))


def _climb(score: Score, space: RankSpace, point: Ranks, value: float) -> Ranks:
    for _ in range(MAX_CLIMB_STEPS):
        neighbours = _neighbours(space, point)
        scores = score(neighbours)
        best = int(np.argmax(scores))
        if not scores[best] > value:
            break
        point, value = neighbours[best], scores[best]
    return point


def _neighbours(space: RankSpace, point: Ranks) -> Ranks:
    """Points (m, d) that differ from `point` in one coordinate: by one step of the lattice, or by a stride in theta."""
    theta = space.encode(point)
    moved = [space.decode(theta + sign * scale) for scale in LOCAL_SCALES for sign in (-1, 1)]
    moved += [space.beside(point, sign) for sign in (-1, 1)]
    values = np.concatenate(moved)
    coordinates = np.tile(np.arange(space.num_dims), len(moved))
    different = values != point[coordinates]
    neighbours = np.repeat(point[None], int(different.sum()), axis=0)
    neighbours[np.arange(len(neighbours)), coordinates[different]] = values[different]
    return neighbours


def measure_again(score: Score, candidate: Ranks, noise: NDArray[np.float64]) -> bool:
    """True if another look at the incumbent says more about the difference than a look at the candidate.

    Each look shrinks var(J(t) - J(incumbent)) by cov(x, difference)^2 / (var(x) + noise(x)); `noise` (2,) holds
    the expected noise variances, in the targets' units, of a look at the candidate and at the incumbent.
    """
    both = np.stack([candidate, score.incumbent])
    _, covariance = score.belief.process.predict(score.belief.space.encode(both))
    difference = score.belief.slopes(both) * np.array([1.0, -1.0])
    excess = score.belief.process.hyper.excess_noise
    gains = (covariance @ difference) ** 2 / (np.diag(covariance) + excess + noise)
    return bool(gains[1] > gains[0])
