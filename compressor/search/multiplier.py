"""gamma for a target, from the posterior, and the plans that make use of what a target allows."""

from dataclasses import replace

import numpy as np

from compressor.arrays import Ranks
from compressor.search.acquisition.optimize import maximise
from compressor.search.evaluation.evaluator import Looks
from compressor.search.stopping.criterion import NUM_ANCHORS, StopRule, StopTest
from compressor.search.surrogate.fitting import REFIT_GROWTH, Posterior
from compressor.search.target.target import LARGEST_GAMMA, SMALLEST_GAMMA, Landing, Target, solve_gamma

AIM_STREAM, LANDING_STREAM = 6, 7  # keep the random streams of one seed apart
WORTH_A_LANDING = 0.5  # of delta


class Aim:
    """Keeps the looks' gamma to the rule's target, if it has one.

    Attributes:
        rule: its target is learnt until the start is over and gamma was found for it.
        is_started: the start is over.
    """

    def __init__(self, looks: Looks, posterior: Posterior, rule: StopRule) -> None:
        self.rule = rule
        self.is_started = False
        self._looks = looks
        self._posterior = posterior
        self._has_aimed, self._aimed_at = False, 0

    @property
    def target(self) -> Target | None:
        """What gamma is found for."""
        return self.rule.target

    def take(self) -> None:
        """Find gamma for the target by what is believed now."""
        assert self.target is not None
        if not (self.is_started and self._has_aimed):
            self.rule.target = self.target.learn(self._looks.state.losses)
        self._has_aimed = True
        visited, belief = np.array(self._looks.state.ranks), self._posterior.believe()
        rng = np.random.default_rng([self._looks.settings.seed, AIM_STREAM, len(visited)])
        anchors = self.rule.rank(belief, visited)[:NUM_ANCHORS]
        self.set_gamma(solve_gamma(self.target, belief, anchors, rng))

    def settle(self, plan: Ranks) -> bool:
        """Take what the plan (d,) is believed to lose for the target, if that is near, and leave gamma as it is."""
        assert self.target is not None
        loss = float(self._posterior.believe().function_norm(plan[None])[0][0])
        nearby = self.target.at(loss)
        if nearby is None:
            return False
        self.rule.target, self._has_aimed = nearby, True
        return True

    def keep(self) -> None:
        """Find gamma again where there are enough new looks.

        A loss gives gamma once, if there is one: one that moved would keep the certificate from being met.
        """
        if self.target is None:
            return
        gamma, count = self._looks.objective.gamma, len(self._looks.state.ranks)
        settled = self.target.measure == "loss" and 10 * SMALLEST_GAMMA < gamma < LARGEST_GAMMA / 10
        if not self._has_aimed or (not settled and count >= REFIT_GROWTH * self._aimed_at):
            self.take()
            self._aimed_at = count

    def set_gamma(self, gamma: float) -> None:
        """Search for another gamma from now on."""
        self._looks.objective = replace(self._looks.objective, gamma=gamma)
        self._posterior.set_objective()

    def best_plan(self) -> Ranks:
        """The plan (d,) looked at that the target prefers, gamma having been found for it."""
        with self._posterior.thinking():
            self.take()
            return self.rule.rank(self._posterior.believe(), np.array(self._looks.state.ranks))[0]

    def landing(self, test: StopTest) -> Ranks | None:
        """A plan (d,) not looked at yet: one that is expected to keep to a ratio and to be better than the incumbent,
        by what matters; or that which a target nearby prefers."""
        if self.target is None or (self.target.measure == "loss" and not self.target.is_near):
            return None
        visited = np.array(self._looks.state.ranks)
        rng = np.random.default_rng([self._looks.settings.seed, LANDING_STREAM, len(visited)])
        belief, landing = test.score.belief, Landing(self.target, test.score.belief)
        plan, value = maximise(landing, belief.space, test.anchors, rng)
        is_new = not (visited == plan).all(1).any()
        if self.target.measure == "loss":
            return plan if is_new else None
        incumbent = test.score.incumbent[None]
        of_plan, of_incumbent = self.target.of(belief, np.concatenate([plan[None], incumbent]))
        if of_plan > self.target.most or not is_new:
            return None
        wasteful = of_incumbent < self.target.least <= of_plan
        gain = value - landing(incumbent)[0]
        return plan if gain > (0.0 if wasteful else WORTH_A_LANDING * test.score.delta) else None
