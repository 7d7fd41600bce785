"""One layer at a time: the loss of each layer alone is measured at some ranks, and plans are made from these tables.

Three such searches: AIMET's (nine cost ratios per layer and one threshold on the loss, common to all layers; AIMET
bisects it for a given size, here J chooses it), Lagrangian allocation on twelve linear ranks, and the same on eight
geometric ranks and five images. A layer is evaluated on the same images at all its ranks: on fewer than 50 where 50
would not leave a tenth of the budget for whole plans.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.studies.search.baselines.family import best_member
from benchmarks.studies.search.baselines.problem import Attempt, OutOfBudget, Step
from compressor.arrays import Array, Ranks
from compressor.search.initial.allocation import allocate
from compressor.search.initial.sensitivity import (
    SENSITIVITY_IMAGES,
    interpolate_table,
    measure_sensitivities,
    sensitivity_tables,
)
from compressor.search.surrogate.additive_prior import non_increasing

AIMET_RATIOS = np.arange(1, 10) / 10  # of the dense layer's parameters
LINEAR_RANKS = 12
MAX_SENSITIVITY_SHARE = 0.9  # of the budget
MAX_LOG4_WEIGHT = 4  # weights of loss against size from 4^-4 to 4^4 times gamma


def aimet_thresholds(attempt: Attempt) -> Iterator[Step]:
    """The smallest of nine cost ratios per layer whose loss alone stays below a threshold common to all layers."""
    grids = [
        np.unique([max(1, int((np.array(counts[:-1]) <= ratio * counts[-1]).sum())) for ratio in AIMET_RATIOS])
        for counts in attempt.problem.params_by_rank
    ]
    tables = [non_increasing(norms) for norms in measure_layers(attempt, grids)]
    highest = max(float(table[0]) for table in tables)
    lowest = min(float(table[-1]) for table in tables)

    def plan(t: float) -> Ranks:
        threshold = highest ** (1.0 - t) * lowest**t
        fits = [table <= threshold * (1 + 1e-9) for table in tables]
        dense = attempt.space.break_even_ranks
        chosen = [
            grid[np.argmax(fit)] if fit.any() else break_even_rank
            for grid, fit, break_even_rank in zip(grids, fits, dense, strict=True)
        ]
        return np.array(chosen, dtype=np.int64)

    yield from best_member(attempt, plan)


def lagrange_linear(attempt: Attempt) -> Iterator[Step]:
    """Lagrangian allocation on twelve ranks per layer, spaced evenly from 1 to the break-even rank."""
    yield from _allocate(attempt, linear_tables(attempt))


def linear_tables(attempt: Attempt) -> list[Array]:
    """Function norms (break-even rank,) of every layer alone, measured at twelve ranks and interpolated."""
    grids = [
        choices[:-1][
            np.unique(np.linspace(0, len(choices) - 2, min(LINEAR_RANKS, len(choices) - 1)).round().astype(int))
        ]
        for choices in attempt.space.choices
    ]
    return [
        interpolate_table(grid, norms, int(break_even_rank))
        for grid, norms, break_even_rank in zip(
            grids, measure_layers(attempt, grids), attempt.space.break_even_ranks, strict=True
        )
    ]


def lagrange_cheap(attempt: Attempt) -> Iterator[Step]:
    """Lagrangian allocation on eight geometric ranks per layer and the same five images for all."""
    images = np.arange(min(SENSITIVITY_IMAGES, attempt.problem.num_images))
    norms = measure_sensitivities(attempt.space, lambda plans: (attempt.evaluate(ranks, images) for ranks in plans))
    tables = sensitivity_tables(attempt.space, norms)
    yield from _allocate(attempt, tables)


def _allocate(attempt: Attempt, tables: list[Array]) -> Iterator[Step]:
    """The best plan along the trade-off curve of the tables."""

    def plan(t: float) -> Ranks:
        weight = 4.0 ** (MAX_LOG4_WEIGHT * (2.0 * t - 1.0))
        return allocate(attempt.space, tables, weight * attempt.problem.objective.gamma)

    return best_member(attempt, plan)


def measure_layers(attempt: Attempt, grids: Sequence[NDArray[np.int64]]) -> list[Array]:
    """Function norms (ranks of the grid,) of every layer at each rank of its grid, all others dense.

    Raises:
        OutOfBudget: not even two images per rank fit into the budget.
    """
    num_evaluations = sum(len(grid) for grid in grids)
    count = min(attempt.problem.samples, int(MAX_SENSITIVITY_SHARE * attempt.left / num_evaluations))
    if count < 2:
        raise OutOfBudget
    tables = []
    for layer, grid in enumerate(grids):
        images = attempt.draw()[:count]
        norms = []
        for rank in grid:
            ranks = attempt.space.break_even_ranks.copy()
            ranks[layer] = rank
            norms.append(attempt.evaluate(ranks, images).mean)
        tables.append(np.array(norms))
    return tables
