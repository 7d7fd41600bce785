"""Where the search begins: plans from one-layer-at-a-time sensitivities, or at random as in the paper.

A Gaussian process over twenty ranks is lost without a start. A few images shared by all single-layer probes
rank the ranks well; the probes' trade-off curve is then looked at jointly, because losses of many compressed
layers exceed the sum of the single ones several times.
"""

from collections.abc import Callable

import numpy as np

from compressor.fidelity import Losses
from compressor.objective import Objective
from compressor.search.gp import Array
from compressor.search.space import Ranks, RankSpace

PROBE_RANKS = 8
PROBE_IMAGES = 5
LIGHTEST_WEIGHT = 4.0**-2
CURVE_WEIGHTS = np.array([*LIGHTEST_WEIGHT * 4.0 ** np.arange(6), 0.0])  # 0: rank 1 everywhere
NUM_REFINEMENTS = 3
SPREAD = 0.08  # standard deviation in theta of the points around the best of the curve
LOSS_FLOOR = 1e-12

Probe = Callable[[Ranks], Losses]
Look = Callable[[str, Ranks], float]


def probe_sensitivities(space: RankSpace, probe: Probe) -> list[Array]:
    """Function norm with one layer factorised and all others dense, for every layer at ranks 1..cap (cap,).

    Measured at geometrically spaced ranks, log-linear in between, never increasing with the rank.
    """
    tables = []
    for layer, cap in enumerate(space.caps):
        grid = _geometric(space.choices[layer], cap)
        norms = []
        for rank in grid:
            ranks = space.caps.copy()
            ranks[layer] = rank
            norms.append(probe(ranks).mean)
        falling = np.minimum.accumulate(np.maximum(norms, LOSS_FLOOR))
        every_rank = np.arange(1, cap + 1)
        table = np.exp(np.interp(np.log(every_rank), np.log(grid), np.log(falling)))
        table[-1] = 0.0
        tables.append(table)
    return tables


def _geometric(choices: Ranks, cap: int) -> Ranks:
    """Up to PROBE_RANKS of the lattice's ranks, geometrically spaced, without dense."""
    wanted = np.geomspace(1, cap, PROBE_RANKS + 1)
    nearest = choices[np.abs(choices[:, None] - wanted).argmin(0)]
    return np.unique(nearest[nearest < cap])


def add_up(sensitivities: list[Array], ranks: Ranks) -> Array:
    """Sum over the layers (...,) of the single-layer losses at ranks (..., d)."""
    offsets = np.cumsum([-1, *(len(table) for table in sensitivities[:-1])])
    return np.asarray(np.concatenate(sensitivities)[ranks + offsets].sum(-1))


def allocate(space: RankSpace, sensitivities: list[Array], weight: float) -> Ranks:
    """Ranks (d,) minimising R + weight * sum of single-layer losses, layer by layer (Lagrangian allocation)."""
    costs = [space.layer_ratio(i) + weight * table for i, table in enumerate(sensitivities)]
    best = [choices[np.argmin(cost[choices - 1])] for choices, cost in zip(space.choices, costs, strict=True)]
    return np.array(best, dtype=np.int64)


def look_along_curve(space: RankSpace, objective: Objective, sensitivities: list[Array], look: Look) -> Ranks:
    """Look at plans along the trade-off curve, finer around the best; returns the best by observation."""
    seen: dict[bytes, tuple[float, float, Ranks]] = {}

    def visit(weight: float) -> None:
        ranks = allocate(space, sensitivities, weight * objective.gamma)
        if ranks.tobytes() not in seen:
            seen[ranks.tobytes()] = (look("start", ranks), weight, ranks)

    for weight in CURVE_WEIGHTS:
        visit(weight)
    step = 2.0
    for _ in range(NUM_REFINEMENTS):
        _, best_weight, _ = max(seen.values(), key=lambda row: row[0])
        best_weight = best_weight or LIGHTEST_WEIGHT / step
        visit(best_weight * step)
        visit(best_weight / step)
        step **= 0.5
    return max(seen.values(), key=lambda row: row[0])[2]


def points_around(space: RankSpace, ranks: Ranks, count: int, rng: np.random.Generator) -> Ranks:
    """`count` random points (count, d) around a plan, to tell the Gaussian process its scales."""
    theta = space.encode(ranks[None])
    return space.decode(theta + SPREAD * rng.standard_normal((count, space.num_dims)))
