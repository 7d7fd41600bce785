"""Maximizes an acquisition function over the lattice of ranks, and decides when to re-measure the incumbent.

All points are integer ranks: a certificate about plans that cannot be built would be worth nothing.
"""

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.search.acquisition.base import AcquisitionFunction
from compressor.search.exchange import Moves
from compressor.search.space import RankSpace
from compressor.search.surrogate.posterior import Posterior

NUM_RANDOM = 512
NUM_LOCAL = 512
NUM_LOCAL_SEARCHES = 3
MAX_LOCAL_STEPS = 25
LOCAL_SCALES = (0.02, 0.1, 0.3)  # in theta


class ExcludedPoints(AcquisitionFunction):
    """An acquisition function that excludes some plans.

    Args:
        acquisition: gives the values of all others.
        plans: ranks (k, d) to exclude.
    """

    def __init__(self, acquisition: AcquisitionFunction, plans: Ranks) -> None:
        self._acquisition = acquisition
        self._plans = plans

    def __call__(self, ranks: Ranks) -> Array:
        return self._exclude(ranks, self._acquisition(ranks))

    def exact(self, ranks: Ranks) -> Array:
        """See `AcquisitionFunction.exact`."""
        return self._exclude(ranks, self._acquisition.exact(ranks))

    def _exclude(self, ranks: Ranks, values: Array) -> Array:
        listed = (ranks[:, None] == self._plans).all(2).any(1)
        return np.where(listed, -np.inf, values)


def optimize_acquisition(
    acquisition: AcquisitionFunction,
    space: RankSpace,
    anchors: Ranks,
    rng: np.random.Generator,
    limit: float | None = None,
) -> tuple[Ranks, float]:
    """The best lattice point found.

    Random points and perturbations of the anchors come first; local searches from the best few of them follow, along
    one coordinate or several at a time. Within a limit of R, most points are moved to it first, and coordinates that
    rise are paired with others that fall.

    Args:
        acquisition: what is maximized.
        space: the lattice.
        anchors: good plans (k, d) to search around.
        rng: draws the points.
        limit: R is at most this.

    Returns:
        The ranks (d,) and their exact value; minus infinity where nothing keeps to the limit.
    """
    pool = np.concatenate([space.sample(NUM_RANDOM, rng), perturb(space, anchors, NUM_LOCAL, rng)])
    if limit is not None:
        is_moved = space.ratio(pool) > limit
        is_moved[: NUM_RANDOM // 2] = is_moved[NUM_RANDOM:] = True
        pool[is_moved] = space.fit(pool[is_moved], limit)
    values = _allowed(acquisition(pool), space, pool, limit)
    starts = np.argsort(-values, kind="stable")[:NUM_LOCAL_SEARCHES]
    optima = _local_search(acquisition, space, pool[starts], values[starts], limit)
    exact = _allowed(acquisition.exact(optima), space, optima, limit)
    best = int(np.argmax(exact))
    return optima[best], float(exact[best])


def _allowed(values: Array, space: RankSpace, ranks: Ranks, limit: float | None) -> Array:
    """The values (m,) of plans (m, d), minus infinity beyond the limit."""
    return values if limit is None else np.where(space.ratio(ranks) <= limit, values, -np.inf)


def perturb(space: RankSpace, anchors: Ranks, count: int, rng: np.random.Generator) -> Ranks:
    """Lattice points (count, d) around the anchors (k, d): one, some or all coordinates moved, near or far.

    Args:
        space: of the ranks.
        anchors: lattice points (k, d), each taken at random.
        count: how many points.
        rng: draws them.
    """
    thetas = space.encode(anchors)[rng.integers(len(anchors), size=count)]
    scales = rng.choice(LOCAL_SCALES, size=(count, 1))
    moved = rng.random(thetas.shape) < rng.choice([1.0 / space.num_dims, 0.3, 1.0], size=(count, 1))
    return space.decode(thetas + moved * scales * rng.standard_normal(thetas.shape))


def _local_search(
    acquisition: AcquisitionFunction, space: RankSpace, points: Ranks, values: Array, limit: float | None
) -> Ranks:
    """Each of the points (k, d), of value `values` (k,), moved to its best neighbour until none is better."""
    points, values = points.copy(), values.copy()
    active = np.arange(len(points))
    for _ in range(MAX_LOCAL_STEPS):
        single_moves = [_neighbours(space, points[row]) for row in active]
        single_values = _values_by_part(acquisition, single_moves)
        joint_moves = [
            _combine(points[row], moves, _gains(own, values[row]))
            if limit is None
            else _exchanges(space, points[row], moves, _differences(own, values[row]), limit)
            for row, moves, own in zip(active, single_moves, single_values, strict=True)
        ]
        joint_values = _values_by_part(acquisition, joint_moves)
        all_moves = [np.concatenate(pair) for pair in zip(single_moves, joint_moves, strict=True)]
        all_values = [np.concatenate(pair) for pair in zip(single_values, joint_values, strict=True)]
        improved = []
        for row, moves, own in zip(active, all_moves, all_values, strict=True):
            own = _allowed(own, space, moves, limit)
            best = int(np.argmax(own))
            if own[best] > values[row]:
                points[row], values[row] = moves[best], own[best]
                improved.append(row)
        if not improved:
            break
        active = np.array(improved)
    return points


def _exchanges(space: RankSpace, point: Ranks, neighbours: Ranks, gains: Array, limit: float) -> Ranks:
    """Plans (m, d) by exchanges between layers of a point (d,) whose single moves are `neighbours`."""
    layers = (neighbours != point).argmax(1)
    ratio = float(space.ratio(point[None])[0])
    ranks = neighbours[np.arange(len(neighbours)), layers]
    return Moves(layers, ranks, gains, space.ratio(neighbours) - ratio, limit - ratio).plans(point)


def _values_by_part(acquisition: AcquisitionFunction, parts: list[Ranks]) -> list[Array]:
    """Values of several arrays of plans, computed in one call."""
    return np.split(acquisition(np.concatenate(parts)), np.cumsum([len(part) for part in parts])[:-1])


def _gains(values: Array, own: float) -> Array:
    """By how much `values` (m,) exceed the point's `own`; zero where they do not, as values may be minus infinity."""
    return np.subtract(values, own, out=np.zeros_like(values), where=values > own)


def _differences(values: Array, own: float) -> Array:
    """`values` (m,), some of them minus infinity, less the point's `own`."""
    return np.subtract(values, own, out=np.full_like(values, -np.inf), where=np.isfinite(values))


def _combine(point: Ranks, neighbours: Ranks, gains: Array) -> Ranks:
    """Plans (m, d) that make the best moves of the 2, 4, 8, ... coordinates with the largest gains together."""
    order = np.argsort(-gains, kind="stable")[: int((gains > 0).sum())]
    coordinates = (neighbours[order] != point).argmax(1)
    _, first = np.unique(coordinates, return_index=True)
    best_moves = order[np.sort(first)]
    plans = []
    for count in 2 ** np.arange(1, len(best_moves).bit_length()):
        moved = neighbours[best_moves[:count]]
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


def should_remeasure(posterior: Posterior, incumbent: Ranks, candidate: Ranks, noise: Array) -> bool:
    """Whether evaluating the incumbent again shrinks the variance of their difference more than the candidate would.

    An evaluation at x shrinks var(J(candidate) - J(incumbent)) by cov(x, difference)^2 / (var(x) + noise(x)).

    Args:
        posterior: over J.
        incumbent: ranks (d,).
        candidate: ranks (d,).
        noise: expected noise variances (2,), in the targets' units, of evaluating the candidate and the incumbent.
    """
    both = np.stack([candidate, incumbent])
    _, covariance = posterior.process.predict(posterior.space.encode(both))
    difference = posterior.slopes(both) * np.array([1.0, -1.0])
    gains = (covariance @ difference) ** 2 / (np.diag(covariance) + posterior.process.hyper.excess_noise + noise)
    return bool(gains[1] > gains[0])
