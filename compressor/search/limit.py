"""The limit of R for a target: given, or where L is limited that at which the least L comes to its limit.

The least L within a limit of R falls as the limit rises, whatever the shape of the trade-off. So there is a limit of R
for every one of L, while a gamma that leads there exists only where the trade-off is convex. L depends on neither:
every evaluation serves every limit.
"""

from dataclasses import replace

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.search.acquisition.base import AcquisitionFunction
from compressor.search.acquisition.optimize import optimize_acquisition
from compressor.search.evaluation.evaluator import Evaluator
from compressor.search.fitting import SurrogateFitter
from compressor.search.objective import Objective
from compressor.search.stopping.criterion import NUM_ANCHORS, best_first
from compressor.search.surrogate import gp
from compressor.search.surrogate.additive_prior import LOSS_FLOOR
from compressor.search.surrogate.posterior import Posterior
from compressor.search.target.target import SearchTarget, are_near
from compressor.streams import Stream, generator

NUM_HALVINGS = 9  # of the logarithm of R, in search of the limit that belongs to a limit of L
SLOPE_STEP = 0.1  # of R, on either side of a plan, over which the slope of the front is taken


class LeastLoss(AcquisitionFunction):
    """The posterior mean of L, with the sign turned."""

    def __init__(self, posterior: Posterior) -> None:
        self._posterior = posterior

    def __call__(self, ranks: Ranks) -> Array:
        return -self._posterior.loss(ranks)[0]


class LimitUpdate:
    """Keeps the objective's limit of R at a target, if there is one.

    Args:
        evaluator: holds the history and the objective, whose limit is set.
        fitter: fits the posterior.
        target: what is limited; None for nothing.

    Attributes:
        target: it is learnt from the evaluations until the initial design is complete and a limit was found.
        is_started: whether the initial design is complete.
    """

    def __init__(self, evaluator: Evaluator, fitter: SurrogateFitter, target: SearchTarget | None) -> None:
        self.target = target
        self.is_started = False
        self._evaluator = evaluator
        self._fitter = fitter
        self._has_updated, self._updated_at = False, 0
        if self.target is not None and self.target.measure == "ratio":
            self._set(self._within(self.target.upper))

    @property
    def is_learnt(self) -> bool:
        """Whether the limit of R follows from one of L."""
        return self.target is not None and self.target.measure == "loss"

    def set_unit(self, plan: Ranks) -> None:
        """Take L of an evaluated plan (d,) for the unit in which J is given, where there is a target."""
        if self.target is not None:
            loss = self._evaluator.history.losses_of(plan).mean + self._evaluator.noise_spec.floor
            self._set(replace(self._evaluator.objective, gamma=1.0 / max(loss, LOSS_FLOOR)))

    def update(self) -> None:
        """Find the limit for the target by the current posterior."""
        assert self.target is not None
        if self.target.measure == "ratio":
            self._set(self._within(self.target.upper))
            return
        if not (self.is_started and self._has_updated):
            self.target = self.target.learn(self._evaluator.history.losses)
        self._has_updated = True
        self._set(self._within(self._limit_of(self.target.upper)))

    def update_if_due(self) -> None:
        """Find the limit again while L within it is far from its own: one that moves keeps the search from its end."""
        count = len(self._evaluator.history.ranks)
        if self.is_learnt and count >= gp.REFIT_GROWTH * self._updated_at and not self._is_found():
            self.update()
            self._updated_at = count

    def _is_found(self) -> bool:
        """Whether the best evaluated plan has an L near the target's."""
        posterior = self._fitter.posterior()
        best = best_first(posterior, np.array(self._evaluator.history.ranks))[:1]
        assert self.target is not None
        return self._has_updated and are_near(float(posterior.loss(best)[0][0]), self.target.upper)

    def keep(self, plan: Ranks) -> bool:
        """Keep the limit, and take the posterior mean of L at the plan (d,) for the target, if that is near it.

        Returns:
            Whether it was near.
        """
        assert self.target is not None
        loss = float(self._fitter.posterior().loss(plan[None])[0][0])
        if not self.is_learnt or not are_near(loss, self.target.upper):
            return False
        self.target, self._has_updated = replace(self.target, upper=loss), True
        return True

    def best_plan(self) -> Ranks:
        """The best evaluated plan (d,), after an update of the limit."""
        with self._fitter.timed():
            self.update()
            return best_first(self._fitter.posterior(), np.array(self._evaluator.history.ranks))[0]

    def least_loss(self, limit: float) -> tuple[Ranks, float]:
        """The plan (d,) of least posterior mean of L within a limit of R, and that mean."""
        visited, posterior = np.array(self._evaluator.history.ranks), self._fitter.posterior()
        rng = generator(self._evaluator.settings.seed, Stream.LIMIT, len(visited))
        order = np.lexsort([posterior.loss(visited)[0], np.maximum(posterior.space.ratio(visited) - limit, 0.0)])
        anchors = visited[order][:NUM_ANCHORS]
        plan, value = optimize_acquisition(LeastLoss(posterior), posterior.space, anchors, rng, limit)
        return plan, -value

    def multiplier(self, limit: float) -> float | None:
        """The gamma whose best plan is that within the limit, by the slope of the posterior front; None without one.

        There is one where the front is convex: more size lowers L by less than as much less size raises it.
        """
        lower, here, higher = (self.least_loss(limit * factor)[1] for factor in (1 - SLOPE_STEP, 1.0, 1 + SLOPE_STEP))
        if not (np.isfinite(lower) and lower - here >= here - higher >= 0.0 and lower > higher):
            return None
        return 2 * SLOPE_STEP * limit / (lower - higher)

    def _limit_of(self, loss: float) -> float:
        """The least R at which the posterior mean of L comes down to this."""
        space = self._evaluator.space
        ones = np.ones((1, space.num_dims), dtype=np.int64)
        low, high = float(np.log(space.ratio(ones)[0])), 0.0
        for _ in range(NUM_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.least_loss(np.exp(middle))[1] <= loss else (middle, high)
        return float(np.exp(high))

    def _within(self, limit: float) -> Objective:
        return replace(self._evaluator.objective, limit=limit)

    def _set(self, objective: Objective) -> None:
        """Search with another limit or unit of L from now on."""
        self._evaluator.objective = objective
        self._fitter.update_objective()
