"""The joint certificate: how probable it is that ANY plan of the lattice beats the incumbent by more than delta.

Eq. (12) speaks of each single plan. Here posterior paths of J are maximized over the lattice, and the share of paths
whose maximum lies more than delta above their value at the incumbent estimates P(max J - J(incumbent) > delta | data);
the search stops on a Clopper-Pearson upper bound of that share (after Wilson 2024, "Stopping Bayesian Optimization
with Probabilistic Regret Bounds").

Why looking at it after every observation is sound: stopping at a data-dependent time costs nothing as far as the
posterior is exact, because for any stopping time T the probability of being wrong at T is the mean of the posterior
probability at T (tower property), and this is at most epsilon - alpha wherever the search stops on a bound that holds.
What accumulates over tests is the Monte Carlo error. Test number t = 1, 2, ... therefore bounds with confidence
1 - alpha_t, alpha_t = alpha 6 / (pi t)^2, which sum to alpha: all bounds hold together with probability 1 - alpha, and
the search is wrong with probability at most epsilon - alpha + alpha. Within a test the bound is read at a few numbers
of paths fixed beforehand, which share alpha_t; the least is the fewest paths that suffice where none fails. Ending a
test early with "no" needs no correction: it only makes the search go on. A pilot of other paths, drawn and thrown away,
decides whether a test is worth its number: it depends on nothing that the test reads, so that pilots need no share of
alpha.

All is conditional on the Gaussian process (hyperparameters included), on the features that approximate its prior, and
on the climbs, which find local maxima: a maximum that they miss is a failure not counted.
"""

from dataclasses import dataclass
from math import ceil, log, log1p, pi

import numpy as np
from scipy.special import betainccinv

from compressor.arrays import Ranks
from compressor.search.acquisition.optimize import perturb
from compressor.search.stopping.sample_paths import SamplePaths, local_search
from compressor.search.surrogate.base import Score

ALPHA_SHARE = 0.1  # of epsilon, for the Monte Carlo error of all tests together
NUM_STAGES, STAGE_GROWTH = 4, 1.5  # numbers of paths at which the bound is read
MAX_PATHS = 1024  # in one test: a risk that asks for more is never met
BATCH_PATHS = 64  # drawn together, with the same features
PILOT_PATHS, PILOT_CHUNK = 32, 8  # climbed a chunk at a time; one failure, and there is no test
DOUBT = 0.3  # a test ends when the share of failures lies above what its last stage allows, but for this probability
NUM_RANDOM, NUM_LOCAL = 2048, 1024  # points of the pool that all paths of a batch share
# Climbs per path, from its best points near good plans and from its best random ones. Of the failures that four near
# and three random climbs find on a ResNet-18 (699 in 3,456 paths), two near ones find 89 %, and one near and three
# random ones 93 % for four times the work; on the flat priors of the certificates study the random ones find most.
# There random points lie up to 4 delta below a failure; where a measured prior mean shapes the posterior, 40.
NEAR_SEARCHES, RANDOM_SEARCHES = 2, 3
REACH = 10.0  # in delta: climbs do not begin further below a failure


@dataclass(frozen=True)
class JointTest:
    """Outcome: `failures` of `paths` had a plan better by more than delta; `upper` bounds their share from above.

    `confidence` is the bound's, 0 where only a pilot was drawn, which bounds nothing.
    """

    failures: int
    paths: int
    upper: float
    confidence: float
    met: bool


def share_of_failure_probability(epsilon: float, number: int) -> float:
    """alpha_t of test `number` = 1, 2, ...: a summable part of ALPHA_SHARE * epsilon."""
    return ALPHA_SHARE * epsilon * 6.0 / (pi * number) ** 2


def stages_of(alpha: float, risk: float) -> list[int]:
    """Numbers of paths at which a bound is read, each with its part of `alpha`.

    The first are the fewest that bound the risk by `risk` where none fails.
    """
    fewest = log(alpha / NUM_STAGES) / log1p(-risk)
    stages = [ceil(fewest * STAGE_GROWTH**stage) for stage in range(NUM_STAGES)]
    return [paths for paths in stages if paths <= MAX_PATHS] or [MAX_PATHS]


def upper_bound(failures: int, paths: int, alpha: float) -> float:
    """Clopper-Pearson: the largest probability of failure under which so few failures have a chance above `alpha`."""
    return 1.0 if failures >= paths else float(betainccinv(failures + 1, paths - failures, alpha))


def lower_bound(failures: int, paths: int, alpha: float) -> float:
    """The same from below."""
    return 1.0 - upper_bound(paths - failures, paths, alpha)


def largest_count(paths: int, alpha: float, risk: float) -> int:
    """The most failures among `paths` whose upper bound is at most `risk`; -1 where none is few enough."""
    return next((count - 1 for count in range(paths + 1) if upper_bound(count, paths, alpha) > risk), paths)


@dataclass(frozen=True)
class _Reading:
    """How the bound of one test is read: at numbers of paths `stages`, each time with confidence 1 - `alpha`, to hold
    `risk`; at the last of them `most` failures are allowed, -1 where not even none is few enough."""

    stages: list[int]
    alpha: float
    risk: float
    most: int


def _reading_of(epsilon: float, number: int) -> _Reading:
    share, risk = share_of_failure_probability(epsilon, number), (1.0 - ALPHA_SHARE) * epsilon
    stages, alpha = stages_of(share, risk), share / NUM_STAGES
    return _Reading(stages, alpha, risk, largest_count(stages[-1], alpha, risk))


def can_be_met(epsilon: float) -> bool:
    """Whether a search's first test draws enough paths for this risk."""
    return _reading_of(epsilon, 1).most >= 0


def certify_jointly(
    score: Score, anchors: Ranks, epsilon: float, number: int, rng: np.random.Generator, in_full: bool = False
) -> JointTest:
    """Is P(max J - J(incumbent) > delta | data) at most epsilon?

    Args:
        score: the incumbent, delta, and the pointwise probabilities that choose the pool.
        anchors: good plans (k, d) to look around, the pointwise maximizer among them.
        epsilon: the risk asked for, all tests of the search together.
        number: of this test within the search, from 1; pilots do not count.
        in_full: for the record: no pilot, and the first stage is completed whatever comes.
    """
    tally = _Tally(score, anchors, rng)
    if not in_full:
        tally.draw(PILOT_PATHS, enough=1)
        if tally.failures:
            return JointTest(tally.failures, tally.paths, 1.0, 0.0, False)
        tally.failures = tally.paths = 0
    reading = _reading_of(epsilon, number)
    if reading.most < 0 and not in_full:
        return JointTest(tally.failures, tally.paths, 1.0, 0.0, False)
    stages, alpha, risk = reading.stages, reading.alpha, reading.risk
    upper, allowed = 1.0, reading.most / stages[-1]
    while tally.paths < stages[-1] and not upper <= risk:
        following = next(stage for stage in stages if stage > tally.paths)
        tally.draw(min(BATCH_PATHS, following - tally.paths))
        if tally.paths in stages:
            upper = upper_bound(tally.failures, tally.paths, alpha)
        hopeless = lower_bound(tally.failures, tally.paths, DOUBT) > allowed
        if hopeless and not (in_full and tally.paths < stages[0]):
            break
    return JointTest(tally.failures, tally.paths, upper, 1.0 - alpha, upper <= risk)


class _Tally:
    """Counts paths and failures."""

    def __init__(self, score: Score, anchors: Ranks, rng: np.random.Generator) -> None:
        self.failures = 0
        self.paths = 0
        self._score = score
        self._anchors = anchors
        self._rng = rng

    def draw(self, count: int, enough: int | None = None) -> None:
        """Draw `count` paths and look for a plan better by more than delta on each, until `enough` have failed."""
        space, synthetic = self._score.posterior.space, _Drawn(self._score, count, self._rng, enough)
        synthetic.local_search(
            np.concatenate([self._anchors, perturb(space, self._anchors, NUM_LOCAL, self._rng)]), NEAR_SEARCHES
        )
        synthetic.local_search(space.sample(NUM_RANDOM, self._rng), RANDOM_SEARCHES)
        self.failures += synthetic.failures
        self.paths += count


class _Drawn:
    """SamplePaths (p of them) and `gains` (p,): how far the best plan found on each lies above what counts as a failure."""

    def __init__(self, score: Score, count: int, rng: np.random.Generator, enough: int | None) -> None:
        self.gains = np.full(count, -np.inf)
        self._paths = SamplePaths(score.posterior, count, rng, centre=score.incumbent)
        self._thresholds = self._paths(score.incumbent[None])[0] + score.delta
        self._reach = REACH * score.delta
        self._enough = count + 1 if enough is None else enough
        self._chunk = count if enough is None else PILOT_CHUNK

    @property
    def failures(self) -> int:
        return int((self.gains > 0).sum())

    def local_search(self, pool: Ranks, number: int) -> None:
        """Climb each path that has not failed from its best points of the pool (m, d), those within reach."""
        heights = self._paths(pool) - self._thresholds
        self.gains = np.maximum(self.gains, heights.max(0))
        for start in np.argpartition(-heights.T, number - 1)[:, :number].T:
            nearest = np.argsort(-self.gains, kind="stable")  # those closest to failing first
            todo = nearest[(self.gains <= 0)[nearest] & (heights[start[nearest], nearest] > -self._reach)]
            for part in np.split(todo, range(self._chunk, len(todo), self._chunk)):
                if not len(part) or self.failures >= self._enough:
                    break
                goals = self._thresholds[part]
                known = heights[start[part], part] + goals
                _, ends = local_search(self._paths, part, pool[start[part]], goals=goals, heights=known)
                self.gains[part] = np.maximum(self.gains[part], ends - goals)
