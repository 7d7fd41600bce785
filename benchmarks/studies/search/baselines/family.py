"""Families in which one number decides a whole plan: the search for the best member.

Members are evaluated on an even grid, its middle first, then more and more densely around the best. The rest of the
budget goes to further evaluations of the best few, on images not used for them yet, so that the mean of all their
evaluations decides and not one lucky one.
"""

from collections.abc import Callable, Generator, Iterator
from itertools import count

import numpy as np

from benchmarks.studies.search.baselines.problem import DENSE_OBJECTIVE, Attempt, Problem, Step
from compressor.arrays import Ranks
from compressor.fidelity.losses import Losses

Family = Callable[[float], Ranks]  # a number in [0, 1] in, ranks (d,) out

GRID = (1 / 2, 1 / 4, 3 / 4, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 0.0, 1.0)
FINER = (16, 32, 64, 128, 256)  # members at odd multiples of 1 over these, around the best
REACH = 1 / 8
NUM_FINALISTS = 3
LOWEST_FRACTION, LOWEST_ENERGY = 1e-3, 1e-4


def uniform_plans(attempt: Attempt) -> Iterator[Step]:
    """Every layer at the same fraction of its break-even rank, fractions geometric."""
    return best_member(attempt, lambda t: attempt.space.uniform(LOWEST_FRACTION ** (1.0 - t)))


def energy_thresholds(attempt: Attempt) -> Iterator[Step]:
    """Every layer at the smallest rank that discards at most one share, common to all, of its squared norm."""
    return best_member(attempt, lambda t: plan_discarding(attempt.problem, LOWEST_ENERGY**t))


def plan_discarding(problem: Problem, share: float) -> Ranks:
    """The smallest rank (d,) of every layer that discards at most this share of its squared norm."""
    tables = zip(problem.space.choices, problem.energies, strict=True)
    return np.array([ranks[np.argmax(table[ranks - 1] <= share)] for ranks, table in tables], dtype=np.int64)


def best_member(attempt: Attempt, family: Family) -> Iterator[Step]:
    """The member with the best mean J over its evaluations."""
    members = _Members(attempt)
    for t in GRID:
        yield from members.visit(family, t)
    for level in FINER:
        centre = members.positions[members.best(1)[0]]
        for t in np.arange(1, level, 2) / level:
            if abs(t - centre) <= REACH:
                yield from members.visit(family, float(t))
    for turn in count():
        ranked = members.best(NUM_FINALISTS)
        evaluated = yield from members.evaluate_again(ranked[turn % len(ranked) :] + ranked[: turn % len(ranked)])
        if not evaluated:
            attempt.stopped_because = "no images left for another evaluation"
            return


class _Members:
    """The members evaluated, by the bytes of their ranks; the dense plan is the first incumbent."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self.plans: dict[bytes, Ranks] = {}
        self.positions: dict[bytes, float] = {}
        self._losses: dict[bytes, list[Losses]] = {}
        self._incumbent = attempt.space.break_even_ranks.tobytes()

    def best(self, count: int) -> list[bytes]:
        """The members with the highest means, the best first."""
        return sorted(self.plans, key=self.mean, reverse=True)[:count]

    def mean(self, key: bytes) -> float:
        """Mean J of a member over all the images it was evaluated on."""
        values = np.concatenate([losses.values for losses in self._losses[key]])
        return self._attempt.value(self.plans[key], float(values.mean()))

    def visit(self, family: Family, t: float) -> Iterator[Step]:
        """The first evaluation of the member at `t`."""
        ranks = family(t)
        key = ranks.tobytes()
        if key in self.plans:
            return
        losses = self._attempt.evaluate(ranks, self._attempt.draw())
        self.plans[key], self.positions[key], self._losses[key] = ranks, t, [losses]
        yield from self._update_incumbent()

    def evaluate_again(self, keys: list[bytes]) -> Generator[Step, None, bool]:
        """Another evaluation of the first of these members that has images left; returns whether there was one."""
        for key in keys:
            images = self._attempt.draw_unseen(np.concatenate([losses.indices for losses in self._losses[key]]))
            if len(images):
                self._losses[key].append(self._attempt.evaluate(self.plans[key], images))
                yield from self._update_incumbent()
                return True
        return False

    def _update_incumbent(self) -> Iterator[Step]:
        (best,) = self.best(1)
        if best != self._incumbent and self.mean(best) > DENSE_OBJECTIVE:
            self._incumbent = best
            yield self._attempt.passes, self.plans[best]
