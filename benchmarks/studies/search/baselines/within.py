"""Plans within a limit of R, by the searches that know no limits and by rules that need none or one table a layer."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.studies.search.baselines import ComparedSearch
from benchmarks.studies.search.baselines.family import plan_discarding
from benchmarks.studies.search.baselines.greedy import linear_tables
from benchmarks.studies.search.baselines.problem import Attempt, Problem
from benchmarks.studies.search.baselines.scoring import follow
from compressor.arrays import Ranks
from compressor.fidelity.losses import Losses
from compressor.search.initial.allocation import allocate_within, options_of
from compressor.search.space import RankSpace

HALVINGS = 30


@dataclass
class AttemptWithin(Attempt):
    """For searches that know no limits: every plan is moved to the limit before it is evaluated, and J is -gamma L.

    Attributes:
        limit: of R.
    """

    limit: float = 1.0

    def evaluate(self, ranks: Ranks, indices: NDArray[np.int64]) -> Losses:
        """Losses of the plan (d,) moved to the limit."""
        return super().evaluate(self.moved(ranks), indices)

    def value(self, ranks: Ranks, function_norm: float) -> float:
        """J of a plan (d,), all of which have the same size."""
        return -self.problem.objective.gamma * function_norm

    def moved(self, ranks: Ranks) -> Ranks:
        """The plan (d,) moved to the limit, all layers by the same step on the log scale."""
        return self.space.fit(ranks[None], self.limit)[0]


def search_moved(search: ComparedSearch, problem: Problem, limit: float, seed: int, passes: int) -> Ranks:
    """The plan (d,) that a search without limits holds after so many passes."""
    attempt = AttemptWithin(problem, passes, seed, limit=limit)
    steps, _ = follow(search, attempt)
    return attempt.moved(steps[-1][1])


def layer_by_layer(problem: Problem, limit: float, seed: int, passes: int) -> Ranks:
    """The plan (d,) of least summed losses, each layer having been measured alone at twelve ranks."""
    tables = linear_tables(Attempt(problem, passes, seed))
    return allocate_within(problem.space, options_of(problem.space, tables), limit)


def plans_without_evaluation(problem: Problem, limit: float) -> dict[str, Ranks]:
    """Plans (d,) that need no evaluation."""
    space = problem.space
    return {
        "uniform": _largest_within(space, space.uniform, limit),
        "energy threshold": _largest_within(space, lambda kept: plan_discarding(problem, 1.0 - kept), limit),
        "least energy": allocate_within(space, options_of(space, problem.energies), limit),
    }


def _largest_within(space: RankSpace, plan_at: Callable[[float], Ranks], limit: float) -> Ranks:
    """The plan (d,) at the largest position in [0, 1] that keeps to the limit; sizes rise with the position."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if space.ratio(plan_at(middle)[None])[0] <= limit else (low, middle)
    return plan_at(low)
