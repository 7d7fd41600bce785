"""A target in place of gamma: the lowest loss at a size, or the smallest size at a loss, by Lagrangian duality.

J = -gamma L - R is the Lagrangian of both problems, and L does not depend on gamma: every evaluation serves every
gamma. The gamma at which the best plan by the posterior mean just meets the target is found without any evaluation, and
again whenever the hyperparameters are fitted.
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

PENALTY = 1e6  # for a plan that exceeds a limit of R
MAX_GAMMA_STEPS = 20
FIRST_STEP = 2.0  # factor of gamma
MIN_GAMMA, MAX_GAMMA = 1e-9, 1e9
# What J may lose, relatively, for an L nearer to the wanted one by a factor e; more so near the last target, where
# little but L is to be changed.
FLATNESS, FLATNESS_NEARBY = 0.02, 0.1
MAX_NEARBY_FACTOR = 2.0  # between two limits of L that are near one another
MAX_RATIO_SLACK, RATIO_TOLERANCE, LOSS_TOLERANCE = 0.01, 0.05, 0.15


@dataclass(frozen=True)
class SearchTarget:
    """A limit of R ("ratio"), with L minimized, or of L ("loss"), with R minimized.

    R is known, and its limit is kept. L is known with noise: of the smallest plans that seem to keep a limit, most were
    underestimated, and confirming each could cost more than the whole search. Gamma is therefore the one at which the
    posterior mean of L of the best plan comes to the limit. As J is flat along the trade-off, of plans nearly as good
    the one nearest to the wanted L is preferred.

    Attributes:
        measure: what is limited.
        upper: the limit.
        is_near: whether a target near this one was searched for before.
    """

    measure: Measure
    upper: float
    is_near: bool = False

    @property
    def lower(self) -> float:
        """A plan from here to `upper` makes good use of what the target allows."""
        if self.measure == "ratio":
            return self.upper - min(RATIO_TOLERANCE * self.upper, MAX_RATIO_SLACK)
        return self.upper - LOSS_TOLERANCE * self.upper

    @property
    def middle(self) -> float:
        """The value that gamma is chosen for, so that plans near its optimum keep to the limit."""
        return (self.lower + self.upper) / 2

    def after(self, other: "SearchTarget | None") -> "SearchTarget":
        """This target, once the search for the other is done."""
        if other is None or not self.measure == other.measure == "loss":
            return self
        return replace(self, is_near=_are_near(self.upper, other.upper))

    def at(self, loss: float) -> "SearchTarget | None":
        """The target whose middle is this L; None if that is far from this target's, or this is a limit of R."""
        if self.measure == "ratio" or not _are_near(loss, self.middle):
            return None
        return replace(self, upper=self.upper * loss / self.middle)

    def learn(self, all_losses: Sequence[Losses]) -> "SearchTarget":
        """This target with what the losses of the initial design tell about it: here nothing."""
        return self

    def nearness(self, ratio: float, loss: float) -> float:
        """How near a plan of this R and observed L is to the target: the larger, the nearer, 0 at its middle."""
        value = ratio if self.measure == "ratio" else max(loss, MIN_LOSS)
        return -abs(float(np.log(value / self.middle)))

    def of(self, posterior: Posterior, ranks: Ranks) -> Array:
        """R or the posterior mean of L (m,), whichever is limited, of plans (m, d)."""
        return posterior.space.ratio(ranks) if self.measure == "ratio" else posterior.loss(ranks)[0]

    def preference(self, posterior: Posterior, ranks: Ranks) -> Array:
        """What is maximized (m,) over plans (m, d) where there is a target.

        For a limit of R, the negative loss of plans that keep to it, all others below. For a limit of L, the posterior
        mean of J less a little where L is not the wanted one.
        """
        if self.measure == "loss":
            mean, losses = posterior.mean(ranks), np.maximum(posterior.loss(ranks)[0], MIN_LOSS)
            flatness = FLATNESS_NEARBY if self.is_near else FLATNESS
            return np.asarray(mean - flatness * np.abs(mean * np.log(losses / self.middle)))
        excess = self.of(posterior, ranks) - self.upper
        losses = posterior.objective.gamma * posterior.loss(ranks)[0]
        return np.where(excess <= 0, -losses, -PENALTY * (1.0 + np.maximum(excess, 0.0)))


def _are_near(loss: float, other: float) -> bool:
    return bool(abs(np.log(max(loss, MIN_LOSS) / max(other, MIN_LOSS))) <= np.log(MAX_NEARBY_FACTOR))


class TargetPreference(AcquisitionFunction):
    """The target's preference as an acquisition function."""

    def __init__(self, target: SearchTarget, posterior: Posterior) -> None:
        self._target = target
        self._posterior = posterior

    def __call__(self, ranks: Ranks) -> Array:
        return self._target.preference(self._posterior, ranks)


class MeanObjective(AcquisitionFunction):
    """The posterior mean of J at another gamma than the posterior's own."""

    def __init__(self, posterior: Posterior, gamma: float) -> None:
        self._posterior = posterior
        self._gamma = gamma

    def __call__(self, ranks: Ranks) -> Array:
        return -self._posterior.space.ratio(ranks) - self._gamma * self._posterior.loss(ranks)[0]


def solve_gamma(target: SearchTarget, posterior: Posterior, anchors: Ranks, rng: np.random.Generator) -> float:
    """The gamma whose best plan by the posterior mean meets the target, or comes nearest to it.

    Args:
        target: what is limited.
        posterior: over J.
        anchors: good plans (k, d), around which the best plan is sought.
        rng: for that.
    """
    found = anchors

    def measured(gamma: float) -> float:
        nonlocal found
        best, _ = optimize_acquisition(MeanObjective(posterior, gamma), posterior.space, found, rng)
        found = np.unique(np.concatenate([best[None], found]), axis=0)
        return float(target.of(posterior, best[None])[0])

    return solve_dual(measured, target, posterior.objective.gamma)


def solve_dual(measured: Callable[[float], float], target: SearchTarget, gamma: float) -> float:
    """The gamma at which what is limited meets the target: doubling steps in log gamma, then bisection.

    Args:
        measured: R or L of the best plan at a gamma; R rises with gamma, L falls.
        target: what is limited.
        gamma: a first guess.
    """
    sign = 1.0 if target.measure == "ratio" else -1.0
    low, high = np.log(MIN_GAMMA), np.log(MAX_GAMMA)
    log_gamma, step, bracketed = float(np.log(gamma)), float(np.log(FIRST_STEP)), False
    for _ in range(MAX_GAMMA_STEPS):
        value = measured(float(np.exp(log_gamma)))
        if target.lower <= value <= target.upper:
            break
        too_large = sign * (value - target.middle) > 0
        low, high = (low, min(high, log_gamma)) if too_large else (max(low, log_gamma), high)
        bracketed = bracketed or (low > np.log(MIN_GAMMA) and high < np.log(MAX_GAMMA))
        outward = log_gamma - step if too_large else log_gamma + step
        log_gamma, step = (low + high) / 2 if bracketed else float(np.clip(outward, low, high)), 2 * step
    return float(np.exp(log_gamma))


def first_gamma(
    target: SearchTarget, space: RankSpace, plan: Callable[[float], Ranks], sum_of: Callable[[Ranks], Array]
) -> float:
    """The gamma that meets the target by single-layer losses alone, before any plan is evaluated.

    Args:
        target: what is limited.
        space: the ranks.
        plan: the best plan (d,) at a gamma.
        sum_of: sums of single-layer losses (m,) at ranks (m, d).
    """

    def measured(gamma: float) -> float:
        ranks = plan(gamma)[None]
        return float((space.ratio(ranks) if target.measure == "ratio" else sum_of(ranks))[0])

    return solve_dual(measured, target, 1.0 / max(float(sum_of(np.ones((1, space.num_dims), dtype=np.int64))[0]), 1e-9))
