"""gamma for a target, from the posterior, and the plans that make use of what a target allows."""

from dataclasses import replace

import numpy as np

from compressor.arrays import Ranks
from compressor.search.acquisition.optimize import optimize_acquisition
from compressor.search.evaluation.evaluator import Evaluator
from compressor.search.stopping.criterion import NUM_ANCHORS, StopRule, StopTest
from compressor.search.surrogate.fitting import REFIT_GROWTH, SurrogateFitter
from compressor.search.target.target import MAX_GAMMA, MIN_GAMMA, SearchTarget, TargetPreference, solve_gamma
from compressor.streams import Stream, generator

WORTH_A_TARGET_CANDIDATE = 0.5  # of delta


class MultiplierUpdate:
    """Keeps the looks' gamma to the rule's target, if it has one.

    Attributes:
        rule: its target is learnt until the start is over and gamma was found for it.
        is_started: the start is over.
    """

    def __init__(self, evaluator: Evaluator, posterior: SurrogateFitter, rule: StopRule) -> None:
        self.rule = rule
        self.is_started = False
        self._evaluator = evaluator
        self._fitter = posterior
        self._has_updated, self._updated_at = False, 0

    @property
    def target(self) -> SearchTarget | None:
        """What gamma is found for."""
        return self.rule.target

    def take(self) -> None:
        """Find gamma for the target by what is believed now."""
        assert self.target is not None
        if not (self.is_started and self._has_updated):
            self.rule.target = self.target.learn(self._evaluator.state.losses)
        self._has_updated = True
        visited, posterior = np.array(self._evaluator.state.ranks), self._fitter.posterior()
        rng = generator(self._evaluator.settings.seed, Stream.MULTIPLIER, len(visited))
        anchors = self.rule.rank(posterior, visited)[:NUM_ANCHORS]
        self.set_gamma(solve_gamma(self.target, posterior, anchors, rng))

    def fix_multiplier(self, plan: Ranks) -> bool:
        """Take what the plan (d,) is believed to lose for the target, if that is near, and leave gamma as it is."""
        assert self.target is not None
        loss = float(self._fitter.posterior().loss(plan[None])[0][0])
        nearby = self.target.at(loss)
        if nearby is None:
            return False
        self.rule.target, self._has_updated = nearby, True
        return True

    def keep(self) -> None:
        """Find gamma again where there are enough new looks.

        A loss gives gamma once, if there is one: one that moved would keep the certificate from being met.
        """
        if self.target is None:
            return
        gamma, count = self._evaluator.objective.gamma, len(self._evaluator.state.ranks)
        is_fixed = self.target.measure == "loss" and 10 * MIN_GAMMA < gamma < MAX_GAMMA / 10
        if not self._has_updated or (not is_fixed and count >= REFIT_GROWTH * self._updated_at):
            self.take()
            self._updated_at = count

    def set_gamma(self, gamma: float) -> None:
        """Search for another gamma from now on."""
        self._evaluator.objective = replace(self._evaluator.objective, gamma=gamma)
        self._fitter.update_objective()

    def best_plan(self) -> Ranks:
        """The plan (d,) looked at that the target prefers, gamma having been found for it."""
        with self._fitter.timed():
            self.take()
            return self.rule.rank(self._fitter.posterior(), np.array(self._evaluator.state.ranks))[0]

    def target_candidate(self, test: StopTest) -> Ranks | None:
        """A plan (d,) not looked at yet: one that is expected to keep to a ratio and to be better than the incumbent,
        by what matters; or that which a target nearby prefers."""
        if self.target is None or (self.target.measure == "loss" and not self.target.is_near):
            return None
        visited = np.array(self._evaluator.state.ranks)
        rng = generator(self._evaluator.settings.seed, Stream.TARGET_CANDIDATE, len(visited))
        posterior, target_candidate = test.posterior, TargetPreference(self.target, test.posterior)
        plan, value = optimize_acquisition(target_candidate, posterior.space, test.anchors, rng)
        is_new = not (visited == plan).all(1).any()
        if self.target.measure == "loss":
            return plan if is_new else None
        incumbent = test.incumbent[None]
        of_plan, of_incumbent = self.target.of(posterior, np.concatenate([plan[None], incumbent]))
        if of_plan > self.target.most or not is_new:
            return None
        wasteful = of_incumbent < self.target.least <= of_plan
        gain = value - target_candidate(incumbent)[0]
        return plan if gain > (0.0 if wasteful else WORTH_A_TARGET_CANDIDATE * test.delta) else None
