"""The joint certificate: the probability that any plan of the lattice beats the incumbent by more than delta.

Eq. (12) is about each single plan. Here posterior sample paths of J are maximized over the lattice, and the share of
paths whose maximum lies more than delta above their value at the incumbent estimates
P(max J - J(incumbent) > delta | data). The search stops on a Clopper-Pearson upper bound of that share (after Wilson
2024, "Stopping Bayesian Optimization with Probabilistic Regret Bounds").

Testing after every evaluation is sound. As far as the posterior is exact, stopping at a data-dependent time T costs
nothing: the probability of being wrong at T is the mean of the posterior probability at T (tower property), and this
is at most epsilon - alpha wherever the search stops on a bound that holds. What accumulates over tests is the Monte
Carlo error. Test number t = 1, 2, ... therefore bounds with confidence 1 - alpha_t, alpha_t = alpha 6 / (pi t)^2, which
sum to alpha: all bounds hold together with probability 1 - alpha, and the search is wrong with probability at most
epsilon - alpha + alpha.

Within a test the bound is computed at a few numbers of paths fixed beforehand, which share alpha_t; the first is the
smallest that suffices without any failure. Ending a test early without a certificate needs no correction, because the
search then only continues. A pilot on other paths, which are discarded, decides whether a test is worth its number:
nothing in the test depends on it, so pilots need no share of alpha.

All is conditional on the Gaussian process (hyperparameters included), on the features that approximate its prior, and
on the local searches: a maximum that they miss is a failure not counted.
"""

from dataclasses import dataclass
from math import ceil, log, log1p, pi

import numpy as np
from scipy.special import betainccinv

from compressor.arrays import Ranks
from compressor.search.acquisition.optimize import perturb
from compressor.search.stopping.sample_paths import SamplePaths, local_search
from compressor.search.surrogate.posterior import Posterior

ALPHA_SHARE = 0.1  # of epsilon, for the Monte Carlo error of all tests together
NUM_STAGES, STAGE_GROWTH = 4, 1.5  # numbers of paths at which the bound is computed
MAX_PATHS = 1024  # in one test: an epsilon that needs more is never met
RECORD_PATHS = 128  # for the record of a certificate that is never met
BATCH_PATHS = 64  # drawn together, with the same features
PILOT_PATHS, PILOT_CHUNK = 32, 8  # searched a chunk at a time; one failure, and there is no test
# A test ends when the share of failures exceeds what its last stage allows, at this one-sided significance level.
FUTILITY_LEVEL = 0.3
NUM_RANDOM, NUM_LOCAL = 2048, 1024  # points of the pool that all paths of a batch share
# Local searches per path, from its best points near good plans and from its best random ones. Of the failures that four
# near and three random ones find on a ResNet-18 (699 in 3,456 paths), two near ones find 89 %, and one near and three
# random ones 93 % for four times the work; on the flat priors of the certificates study the random ones find most.
# There random points lie up to 4 delta below a failure; where a measured prior mean shapes the posterior, 40.
NEAR_SEARCHES, RANDOM_SEARCHES = 2, 3
REACH = 10.0  # in delta: no local search starts further below a failure


@dataclass(frozen=True)
class JointTest:
    """Outcome of a test.

    Attributes:
        failures: paths on which some plan was better than the incumbent by more than delta.
        paths: that were drawn.
        upper: upper bound of the probability of a failure.
        confidence: of the bound; 0 where only a pilot was drawn, which bounds nothing.
        allowed: what `upper` must not exceed.
        met: whether the certificate holds.
    """

    failures: int
    paths: int
    upper: float
    confidence: float
    allowed: float
    met: bool


def share_of_failure_probability(epsilon: float, number: int) -> float:
    """alpha_t of test `number` = 1, 2, ...: a summable part of ALPHA_SHARE * epsilon."""
    return ALPHA_SHARE * epsilon * 6.0 / (pi * number) ** 2


def stages_of(alpha: float, risk: float) -> list[int]:
    """Numbers of paths at which the bound is computed, each time with an equal part of `alpha`.

    The first is the smallest that bounds the probability by `risk` without any failure.
    """
    fewest = log(alpha / NUM_STAGES) / log1p(-risk)
    stages = [ceil(fewest * STAGE_GROWTH**stage) for stage in range(NUM_STAGES)]
    return [paths for paths in stages if paths <= MAX_PATHS] or [MAX_PATHS]


def upper_bound(failures: int, paths: int, alpha: float) -> float:
    """Clopper-Pearson upper bound of the probability that a path fails.

    Args:
        failures: how many of the paths failed.
        paths: drawn independently.
        alpha: the bound may be wrong with this probability.
    """
    return 1.0 if failures >= paths else float(betainccinv(failures + 1, paths - failures, alpha))


def lower_bound(failures: int, paths: int, alpha: float) -> float:
    """Clopper-Pearson lower bound of the probability that a path fails; arguments as of `upper_bound`."""
    return 1.0 - upper_bound(paths - failures, paths, alpha)


def max_failures(paths: int, alpha: float, risk: float) -> int:
    """The largest number of failures whose upper bound is at most `risk`; -1 if there is none.

    Args:
        paths: drawn independently.
        alpha: the bound may be wrong with this probability.
        risk: the bound is to be at most this.
    """
    return next((count - 1 for count in range(paths + 1) if upper_bound(count, paths, alpha) > risk), paths)


@dataclass(frozen=True)
class Schedule:
    """When one test computes its bound.

    Attributes:
        stages: numbers of paths at which it does.
        alpha: 1 minus the confidence of each bound.
        risk: what the bound must not exceed.
        max_failures: allowed at the last stage; -1 where the certificate cannot be met within MAX_PATHS.
    """

    stages: list[int]
    alpha: float
    risk: float
    max_failures: int

    @classmethod
    def of(cls, epsilon: float, number: int) -> "Schedule":
        """The schedule of test `number` = 1, 2, ... of a search; pilots do not count.

        Args:
            epsilon: failure probability allowed, all tests of the search together.
            number: of the test.
        """
        share, risk = share_of_failure_probability(epsilon, number), (1.0 - ALPHA_SHARE) * epsilon
        stages, alpha = stages_of(share, risk), share / NUM_STAGES
        return cls(stages, alpha, risk, max_failures(stages[-1], alpha, risk))


def can_be_met(epsilon: float) -> bool:
    """Whether MAX_PATHS suffice for the first test of a search to certify this failure probability."""
    return Schedule.of(epsilon, 1).max_failures >= 0


@dataclass(frozen=True)
class Failure:
    """What counts as a failure of the incumbent: a plan that is better by more than delta.

    Attributes:
        posterior: over J.
        incumbent: ranks (d,).
        delta: by how much J must be higher.
        limit: R of the plan is at most this; None for any plan.
        scale: a difference of J that matters, by which distances to a failure are measured; None takes delta.
    """

    posterior: Posterior
    incumbent: Ranks
    delta: float
    limit: float | None = None
    scale: float | None = None

    @property
    def reach(self) -> float:
        """How far below a failure local searches start."""
        return REACH * (self.delta if self.scale is None else self.scale)


def certify_jointly(
    failure: Failure, anchors: Ranks, schedule: Schedule, rng: np.random.Generator, in_full: bool = False
) -> JointTest:
    """Test whether P(max J - J(incumbent) > delta | data) is at most the schedule's risk.

    Args:
        failure: incumbent, delta and the plans that are compared.
        anchors: good plans (k, d) to search around, the pointwise maximizer among them.
        schedule: when the bound is computed.
        rng: draws the paths and the points where searches start.
        in_full: complete the first stage in any case, without a pilot, for the record; RECORD_PATHS where the schedule
            cannot be met.
    """
    counter = _FailureCounter(failure, anchors, rng)
    if not in_full:
        counter.draw(PILOT_PATHS, enough=1)
        if counter.failures:
            return JointTest(counter.failures, counter.paths, 1.0, 0.0, schedule.risk, False)
        counter.failures = counter.paths = 0
    if schedule.max_failures < 0 and not in_full:
        return JointTest(counter.failures, counter.paths, 1.0, 0.0, schedule.risk, False)
    stages, alpha, risk = schedule.stages, schedule.alpha, schedule.risk
    if schedule.max_failures < 0:
        stages = [RECORD_PATHS]
    upper, allowed = 1.0, schedule.max_failures / stages[-1]
    while counter.paths < stages[-1] and not upper <= risk:
        following = next(stage for stage in stages if stage > counter.paths)
        counter.draw(min(BATCH_PATHS, following - counter.paths))
        if counter.paths in stages:
            upper = upper_bound(counter.failures, counter.paths, alpha)
        is_futile = lower_bound(counter.failures, counter.paths, FUTILITY_LEVEL) > allowed
        if is_futile and not (in_full and counter.paths < stages[0]):
            break
    return JointTest(counter.failures, counter.paths, upper, 1.0 - alpha, risk, upper <= risk)


class _FailureCounter:
    """Draws sample paths and counts those with a plan better than the incumbent by more than delta."""

    def __init__(self, failure: Failure, anchors: Ranks, rng: np.random.Generator) -> None:
        self.failures = 0
        self.paths = 0
        self._failure = failure
        self._anchors = anchors
        self._rng = rng

    def draw(self, count: int, enough: int | None = None) -> None:
        """Draw and search `count` paths; with `enough` the searches end after that many failures."""
        posterior = self._failure.posterior
        paths = SamplePaths(posterior, count, self._rng, centre=self._failure.incumbent)
        batch = _Batch(paths, self._failure, enough)
        near = perturb(posterior.space, self._anchors, NUM_LOCAL, self._rng)
        batch.search(np.concatenate([self._anchors, near]), NEAR_SEARCHES)
        batch.search(posterior.space.sample(NUM_RANDOM, self._rng), RANDOM_SEARCHES)
        self.failures += batch.failures
        self.paths += count


class _Batch:
    """Sample paths that are searched together for a plan above a threshold.

    Attributes:
        excess: how far the best plan found on each path (p,) lies above its value at the incumbent plus delta.
    """

    def __init__(self, paths: SamplePaths, failure: Failure, enough: int | None) -> None:
        self._paths = paths
        self._failure = failure
        self._thresholds = paths(failure.incumbent[None])[0] + failure.delta
        count = len(self._thresholds)
        self.excess = np.full(count, -np.inf)
        self._enough = count + 1 if enough is None else enough
        self._chunk = count if enough is None else PILOT_CHUNK

    @property
    def failures(self) -> int:
        return int((self.excess > 0).sum())

    def search(self, pool: Ranks, num_searches: int) -> None:
        """Search each path that has not failed locally, from its best points within reach of the pool (m, d).

        Within a limit of R, the pool is moved to it first.
        """
        limit = self._failure.limit
        if limit is not None:
            pool = self._paths.posterior.space.fit(pool, limit)
            pool = pool[self._paths.posterior.space.ratio(pool) <= limit]
            if not len(pool):
                return
        heights = self._paths(pool) - self._thresholds
        self.excess = np.maximum(self.excess, heights.max(0))
        for start in np.argpartition(-heights.T, num_searches - 1)[:, :num_searches].T:
            nearest = np.argsort(-self.excess, kind="stable")  # those closest to failing first
            todo = nearest[(self.excess <= 0)[nearest] & (heights[start[nearest], nearest] > -self._failure.reach)]
            for part in np.split(todo, range(self._chunk, len(todo), self._chunk)):
                if not len(part) or self.failures >= self._enough:
                    break
                goals = self._thresholds[part]
                known = heights[start[part], part] + goals
                _, optima = local_search(self._paths, part, pool[start[part]], goals=goals, heights=known, limit=limit)
                self.excess[part] = np.maximum(self.excess[part], optima - goals)
