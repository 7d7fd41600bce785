"""The PAC acquisition (Eq. 11) maximized on the lattice, and the choice between a new point and another look.

Everything is scored on integer ranks only: a certificate about points that cannot be built says nothing.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compressor.arrays import Ranks
from compressor.search.space import RankSpace
from compressor.search.surrogate.base import Score

NUM_RANDOM = 512
NUM_LOCAL = 512
NUM_LOCAL_SEARCHES = 3
MAX_LOCAL_STEPS = 25
LOCAL_SCALES = (0.02, 0.1, 0.3)  # in theta


class AcquisitionFunction(Protocol):
    """What is maximized: quickly everywhere, and exactly at the points found."""

    def __call__(self, ranks: Ranks) -> NDArray[np.float64]: ...

    def exact(self, ranks: Ranks) -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class ExcludedPoints:
    """A criterion that is minus infinity at some plans (k, d)."""

    criterion: AcquisitionFunction
    plans: Ranks

    def __call__(self, ranks: Ranks) -> NDArray[np.float64]:
        """Values (m,) at ranks (m, d)."""
        return self._mask(ranks, self.criterion(ranks))

    def exact(self, ranks: Ranks) -> NDArray[np.float64]:
        """The same without short cuts."""
        return self._mask(ranks, self.criterion.exact(ranks))

    def _mask(self, ranks: Ranks, values: NDArray[np.float64]) -> NDArray[np.float64]:
        listed = (ranks[:, None] == self.plans).all(2).any(1)
        return np.where(listed, -np.inf, values)


def optimize_acquisition(
    score: AcquisitionFunction, space: RankSpace, anchors: Ranks, rng: np.random.Generator
) -> tuple[Ranks, float]:
    """The lattice point (d,) of highest score found, and its exact score.

    Random points and perturbations of `anchors` (k, d) first, then coordinate climbing from the best few: one
    step up or down and longer strides, one coordinate at a time.
    """
    pool = np.concatenate([space.sample(NUM_RANDOM, rng), perturb(space, anchors, NUM_LOCAL, rng)])
    scores = score(pool)
    starts = np.argsort(-scores, kind="stable")[:NUM_LOCAL_SEARCHES]
    climbed = _local_search(score, space, pool[starts], scores[starts])
    exact = score.exact(climbed)
    best = int(np.argmax(exact))
    return climbed[best], float(exact[best])


def perturb(space: RankSpace, anchors: Ranks, count: int, rng: np.random.Generator) -> Ranks:
    """`count` lattice points (count, d) around the anchors (k, d): one, some or all coordinates moved, near or far."""
    thetas = space.encode(anchors)[rng.integers(len(anchors), size=count)]
    scales = rng.choice(LOCAL_SCALES, size=(count, 1))
    moved = rng.random(thetas.shape) < rng.choice([1.0 / space.num_dims, 0.3, 1.0], size=(count, 1))
    return space.decode(thetas + moved * scales * rng.standard_normal(thetas.shape))


def _local_search(score: AcquisitionFunction, space: RankSpace, points: Ranks, values: NDArray[np.float64]) -> Ranks:
    """Each of the points (k, d), whose scores are `values` (k,), moved to its best neighbour until none is better."""
    points, values = points.copy(), values.copy()
    active = np.arange(len(points))
    for _ in range(MAX_LOCAL_STEPS):
        neighbours = [_neighbours(space, points[row]) for row in active]
        scores = _score_parts(score, neighbours)
        together = [
            _combine(points[row], around, _gains(heights, values[row]))
            for row, around, heights in zip(active, neighbours, scores, strict=True)
        ]
        joint_scores = _score_parts(score, together)
        neighbours = [np.concatenate(pair) for pair in zip(neighbours, together, strict=True)]
        scores = [np.concatenate(pair) for pair in zip(scores, joint_scores, strict=True)]
        risen = []
        for row, around, heights in zip(active, neighbours, scores, strict=True):
            best = int(np.argmax(heights))
            if heights[best] > values[row]:
                points[row], values[row] = around[best], heights[best]
                risen.append(row)
        if not risen:
            break
        active = np.array(risen)
    return points


def _score_parts(score: AcquisitionFunction, parts: list[Ranks]) -> list[NDArray[np.float64]]:
    """Scores of several arrays of plans, all at once."""
    return np.split(score(np.concatenate(parts)), np.cumsum([len(part) for part in parts])[:-1])


def _gains(heights: NDArray[np.float64], value: float) -> NDArray[np.float64]:
    """By how much `heights` (m,) lie above `value`; zero where they do not, as scores may be minus infinity."""
    return np.subtract(heights, value, out=np.zeros_like(heights), where=heights > value)


def _combine(point: Ranks, neighbours: Ranks, gains: NDArray[np.float64]) -> Ranks:
    """Plans (m, d) with the best moves of the 2, 4, 8, ... most gaining coordinates made together."""
    order = np.argsort(-gains, kind="stable")[: int((gains > 0).sum())]
    coordinates = (neighbours[order] != point).argmax(1)
    _, first = np.unique(coordinates, return_index=True)
    rising = order[np.sort(first)]
    plans = []
    for count in 2 ** np.arange(1, len(rising).bit_length()):
        moved = neighbours[rising[:count]]
        columns = (moved != point).argmax(1)
        plan = point.copy()
        plan[columns] = moved[np.arange(len(moved)), columns]
        plans.append(plan)
    return np.array(plans, dtype=np.int64).reshape(len(plans), len(point))


def _neighbours(space: RankSpace, point: Ranks) -> Ranks:
    """Points (m, d) that differ from `point` in one coordinate: by one step of the lattice, or by a stride in theta."""
    moves = [table[rank - 1] for table, rank in zip(space.moves(LOCAL_SCALES), point, strict=True)]
    coordinates = np.repeat(np.arange(space.num_dims), [len(ranks) for ranks in moves])
    values = np.concatenate(moves)
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
    _, covariance = score.posterior.process.predict(score.posterior.space.encode(both))
    difference = score.posterior.slopes(both) * np.array([1.0, -1.0])
    excess = score.posterior.process.hyper.excess_noise
    gains = (covariance @ difference) ** 2 / (np.diag(covariance) + excess + noise)
    return bool(gains[1] > gains[0])
