"""The multiplier update: gamma for a target, from the posterior, and plans that make better use of the target."""

from dataclasses import replace

import numpy as np

from compressor.arrays import Ranks
from compressor.search.acquisition.optimize import optimize_acquisition
from compressor.search.evaluation.evaluator import Evaluator
from compressor.search.stopping.criterion import NUM_ANCHORS, StopRule, StopTest
from compressor.search.surrogate.fitting import REFIT_GROWTH, SurrogateFitter
from compressor.search.target.target import MAX_GAMMA, MIN_GAMMA, SearchTarget, TargetPreference, solve_gamma
from compressor.streams import Stream, generator

MIN_GAIN = 0.5  # of delta: what a target candidate must gain where the incumbent uses the target well


class MultiplierUpdate:
    """Keeps gamma at the stop rule's target, if it has one.

    Args:
        evaluator: holds the history and the objective, whose gamma is set.
        fitter: fits the posterior.
        rule: holds the target.

    Attributes:
        rule: its target is learnt from the evaluations until the initial design is complete and gamma was found.
        is_started: whether the initial design is complete.
    """

    def __init__(self, evaluator: Evaluator, fitter: SurrogateFitter, rule: StopRule) -> None:
        self.rule = rule
        self.is_started = False
        self._evaluator = evaluator
        self._fitter = fitter
        self._has_updated, self._updated_at = False, 0

    @property
    def target(self) -> SearchTarget | None:
        """What gamma is chosen for."""
        return self.rule.target

    def update(self) -> None:
        """Find gamma for the target by the current posterior."""
        assert self.target is not None
        if not (self.is_started and self._has_updated):
            self.rule.target = self.target.learn(self._evaluator.history.losses)
        self._has_updated = True
        visited, posterior = np.array(self._evaluator.history.ranks), self._fitter.posterior()
        rng = generator(self._evaluator.settings.seed, Stream.MULTIPLIER, len(visited))
        anchors = self.rule.rank(posterior, visited)[:NUM_ANCHORS]
        self.set_gamma(solve_gamma(self.target, posterior, anchors, rng))

    def update_if_due(self) -> None:
        """Find gamma again where there are enough new evaluations.

        For a limit of L, gamma is found once if it can be: a gamma that moves keeps the certificate from being met.
        """
        if self.target is None:
            return
        gamma, count = self._evaluator.objective.gamma, len(self._evaluator.history.ranks)
        is_fixed = self.target.measure == "loss" and 10 * MIN_GAMMA < gamma < MAX_GAMMA / 10
        if not self._has_updated or (not is_fixed and count >= REFIT_GROWTH * self._updated_at):
            self.update()
            self._updated_at = count

    def fix_multiplier(self, plan: Ranks) -> bool:
        """Keep gamma, and take the posterior mean of L at the plan (d,) for the target, if that is near it.

        Returns:
            Whether it was near.
        """
        assert self.target is not None
        loss = float(self._fitter.posterior().loss(plan[None])[0][0])
        nearby = self.target.at(loss)
        if nearby is None:
            return False
        self.rule.target, self._has_updated = nearby, True
        return True

    def set_gamma(self, gamma: float) -> None:
        """Search with another gamma from now on."""
        self._evaluator.objective = replace(self._evaluator.objective, gamma=gamma)
        self._fitter.update_objective()

    def best_plan(self) -> Ranks:
        """The evaluated plan (d,) that the target prefers, after an update of gamma."""
        with self._fitter.timed():
            self.update()
            return self.rule.rank(self._fitter.posterior(), np.array(self._evaluator.history.ranks))[0]

    def target_candidate(self, test: StopTest) -> Ranks | None:
        """A plan (d,) that has not been evaluated and should meet the target better than the incumbent.

        For a limit of R, it must keep to the limit and gain enough. For a limit of L, it is the plan that a target
        near the last one prefers.
        """
        if self.target is None or (self.target.measure == "loss" and not self.target.is_near):
            return None
        visited = np.array(self._evaluator.history.ranks)
        rng = generator(self._evaluator.settings.seed, Stream.TARGET_CANDIDATE, len(visited))
        posterior, preference = test.posterior, TargetPreference(self.target, test.posterior)
        plan, value = optimize_acquisition(preference, posterior.space, test.anchors, rng)
        is_new = not (visited == plan).all(1).any()
        if self.target.measure == "loss":
            return plan if is_new else None
        incumbent = test.incumbent[None]
        of_plan, of_incumbent = self.target.of(posterior, np.concatenate([plan[None], incumbent]))
        if of_plan > self.target.upper or not is_new:
            return None
        is_wasteful = of_incumbent < self.target.lower <= of_plan
        gain = value - preference(incumbent)[0]
        return plan if gain > (0.0 if is_wasteful else MIN_GAIN * test.delta) else None
