"""A target in place of gamma: the least loss at a size, or the least size at a loss, through the dual.

J = -gamma L - R is the Lagrangian of both problems, and L does not depend on gamma: every look serves every gamma. The
gamma whose best plan, by the posterior mean, just keeps to the target is found without any further look, and found
again whenever the hyperparameters are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.losses import MIN_LOSS, Losses
from compressor.search.acquisition.base import AcquisitionFunction
from compressor.search.acquisition.optimize import optimize_acquisition
from compressor.search.space import RankSpace
from compressor.search.surrogate.posterior import Posterior

Measure = Literal["ratio", "loss"]

OUT_OF_REACH = 1e6
MAX_GAMMA_STEPS = 20
FIRST_STEP = 2.0
MIN_GAMMA, MAX_GAMMA = 1e-9, 1e9
# Of J, for a factor e between the loss wanted and a plan's: while plans are sought, and where L is all that is left.
FLATNESS, FLATNESS_NEARBY = 0.02, 0.1
NEARBY = 2.0  # a limit of L is, that is no more than so many times as large or small
TIGHTEST_RATIO, RATIO_TOLERANCE, LOSS_TOLERANCE = 0.01, 0.05, 0.15


@dataclass(frozen=True)
class SearchTarget:
    """R ("ratio") of the plan must be at most `most`, and L is minimized; or gamma is to be that at which the posterior
    mean of L ("loss") of the best plan comes to `most`. A plan is near enough from `least` on.

    A ratio is known, and kept to. An L is only believed: plans chosen for being the smallest that keep to one are those
    believed in wrongly, and looking at each can cost more than the whole search. But J is flat along the trade-off: of
    plans nearly as good, the one nearest to the L that is wanted is preferred; the more so if the target `is_near` one
    that was searched for already, so that little more than L is to be changed.
    """

    measure: Measure
    most: float
    is_near: bool = False

    @property
    def least(self) -> float:
        """Where a plan begins to make good use of what the target allows."""
        if self.measure == "ratio":
            return self.most - min(RATIO_TOLERANCE * self.most, TIGHTEST_RATIO)
        return self.most - LOSS_TOLERANCE * self.most

    @property
    def middle(self) -> float:
        """What gamma aims at, so that plans near its optimum keep to the target."""
        return (self.least + self.most) / 2

    def after(self, other: "SearchTarget | None") -> "SearchTarget":
        """This target, knowing that plans for the other are found."""
        if other is None or not self.measure == other.measure == "loss":
            return self
        return replace(self, is_near=_are_near(self.most, other.most))

    def at(self, loss: float) -> "SearchTarget | None":
        """The target whose middle is this L; None if it is far from this target's, or that is a ratio."""
        if self.measure == "ratio" or not _are_near(loss, self.middle):
            return None
        return replace(self, most=self.most * loss / self.middle)

    def learn(self, evaluations: Sequence[Losses]) -> "SearchTarget":
        """What to aim at after these looks of the start."""
        return self

    def nearness(self, ratio: float, loss: float) -> float:
        """The larger, the nearer a plan of this ratio, seen to lose this much, lies to the target."""
        value = ratio if self.measure == "ratio" else max(loss, MIN_LOSS)
        return -abs(float(np.log(value / self.middle)))

    def of(self, posterior: Posterior, ranks: Ranks) -> Array:
        """What the target limits (m,), of plans (m, d)."""
        return posterior.space.ratio(ranks) if self.measure == "ratio" else posterior.loss(ranks)[0]

    def preference(self, posterior: Posterior, ranks: Ranks) -> Array:
        """Large (m,) for plans (m, d) that keep to a ratio and lose little, and next for those that nearly do; for a
        loss, which is not kept to, the posterior mean of J less a little where L is not what is wanted."""
        if self.measure == "loss":
            mean, losses = posterior.mean(ranks), np.maximum(posterior.loss(ranks)[0], MIN_LOSS)
            flatness = FLATNESS_NEARBY if self.is_near else FLATNESS
            return np.asarray(mean - flatness * np.abs(mean * np.log(losses / self.middle)))
        excess, losses = (
            self.of(posterior, ranks) - self.most,
            posterior.objective.gamma * posterior.loss(ranks)[0],
        )
        return np.where(excess <= 0, -losses, -OUT_OF_REACH * (1.0 + np.maximum(excess, 0.0)))


def _are_near(loss: float, other: float) -> bool:
    return bool(abs(np.log(max(loss, MIN_LOSS) / max(other, MIN_LOSS))) <= np.log(NEARBY))


class TargetPreference(AcquisitionFunction):
    """A criterion whose maximum is the plan that the target prefers, by the posterior mean."""

    def __init__(self, target: SearchTarget, posterior: Posterior) -> None:
        self._target = target
        self._posterior = posterior

    def __call__(self, ranks: Ranks) -> Array:
        return self._target.preference(self._posterior, ranks)


class MeanObjective(AcquisitionFunction):
    """A criterion: the posterior mean of J at another gamma than the belief's own."""

    def __init__(self, posterior: Posterior, gamma: float) -> None:
        self._posterior = posterior
        self._gamma = gamma

    def __call__(self, ranks: Ranks) -> Array:
        return -self._posterior.space.ratio(ranks) - self._gamma * self._posterior.loss(ranks)[0]


def solve_gamma(target: SearchTarget, posterior: Posterior, anchors: Ranks, rng: np.random.Generator) -> float:
    """gamma whose best plan by the posterior mean lies at the target's middle, as near as there is one.

    Args:
        anchors: good plans (k, d) to look around.
    """
    found = anchors

    def measured(gamma: float) -> float:
        nonlocal found
        best, _ = optimize_acquisition(MeanObjective(posterior, gamma), posterior.space, found, rng)
        found = np.unique(np.concatenate([best[None], found]), axis=0)
        return float(target.of(posterior, best[None])[0])

    return solve_dual(measured, target, posterior.objective.gamma)


def solve_dual(measured: Callable[[float], float], target: SearchTarget, gamma: float) -> float:
    """The gamma at which `measured`, rising with gamma for a ratio and falling for a loss, meets the target.

    From a first guess, steps in log gamma that double until the target lies between two, then halves.
    """
    sign = 1.0 if target.measure == "ratio" else -1.0
    low, high = np.log(MIN_GAMMA), np.log(MAX_GAMMA)
    place, step, bracketed = float(np.log(gamma)), float(np.log(FIRST_STEP)), False
    for _ in range(MAX_GAMMA_STEPS):
        value = measured(float(np.exp(place)))
        if target.least <= value <= target.most:
            break
        too_large = sign * (value - target.middle) > 0
        low, high = (low, min(high, place)) if too_large else (max(low, place), high)
        bracketed = bracketed or (low > np.log(MIN_GAMMA) and high < np.log(MAX_GAMMA))
        outward = place - step if too_large else place + step
        place, step = (low + high) / 2 if bracketed else float(np.clip(outward, low, high)), 2 * step
    return float(np.exp(place))


def first_gamma(
    target: SearchTarget, space: RankSpace, plan: Callable[[float], Ranks], sum_of: Callable[[Ranks], Array]
) -> float:
    """gamma by the layers' single losses alone, before any look at a plan; `plan` gives the ranks (d,) for a gamma."""

    def measured(gamma: float) -> float:
        ranks = plan(gamma)[None]
        return float((space.ratio(ranks) if target.measure == "ratio" else sum_of(ranks))[0])

    return solve_dual(measured, target, 1.0 / max(float(sum_of(np.ones((1, space.num_dims), dtype=np.int64))[0]), 1e-9))
