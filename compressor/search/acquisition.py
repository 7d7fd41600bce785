"""The PAC acquisition (Eq. 11), its failure probability (Eqs. 7 and 12), and its maximisation on the lattice.

Everything is scored on integer ranks only: a certificate about points that cannot be built says nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from compressor.objective import Objective
from compressor.search.gp import Array, GaussianProcess
from compressor.search.space import Ranks, RankSpace

NUM_RANDOM = 512
NUM_LOCAL = 512
NUM_CLIMBS = 3
MAX_CLIMB_STEPS = 25
LOCAL_SCALES = (0.02, 0.1, 0.3)  # in theta
VANISHING = 1e-12  # variance of a difference, relative to the signal's, that counts as no difference


@dataclass(frozen=True)
class Belief:
    """What is believed about J: the Gaussian process models -gamma L, and R is added exactly."""

    process: GaussianProcess
    space: RankSpace
    objective: Objective

    def project(self, ranks: Ranks) -> tuple[Array, Array, Array]:
        """Posterior mean of J (m,), the whitened cross-covariances V (n, m) and thetas (m, d)."""
        thetas = self.space.encode(ranks)
        mean, projected = self.process.project(thetas)
        return mean + self.objective.size_term(self.space.ratio(ranks)), projected, thetas

    def mean(self, ranks: Ranks) -> Array:
        """Posterior mean of J (m,) at ranks (m, d)."""
        return self.project(ranks)[0]

    def sd(self, ranks: Ranks) -> Array:
        """Posterior standard deviation of J (m,) at ranks (m, d)."""
        _, projected, _ = self.project(ranks)
        return np.sqrt(np.maximum(self.process.hyper.signal_variance - (projected**2).sum(0), 0.0))


class PacScore:
    """Eq. (11): (mu(t) - mu(incumbent) - delta) / sqrt(var(t) + var(incumbent) - 2 cov)."""

    def __init__(self, belief: Belief, incumbent: Ranks, delta: float) -> None:
        self.belief = belief
        self._incumbent = incumbent
        self._delta = delta
        means, projected, thetas = belief.project(incumbent[None])
        self._mean, self._projected, self._theta = means[0], projected, thetas

    def difference(self, ranks: Ranks) -> tuple[Array, Array]:
        """Posterior mean and variance (m,) of J(t) - J(incumbent) at ranks (m, d)."""
        means, projected, thetas = self.belief.project(ranks)
        process = self.belief.process
        prior = 2.0 * (process.hyper.signal_variance - process.prior_covariance(thetas, self._theta)[:, 0])
        variance = prior - ((projected - self._projected) ** 2).sum(0)
        return means - self._mean, np.maximum(variance, 0.0)

    def __call__(self, ranks: Ranks) -> Array:
        """Scores (m,); minus infinity at the incumbent itself, where Eq. (11) is 0/0."""
        mean, variance = self.difference(ranks)
        floor = VANISHING * self.belief.process.hyper.signal_variance
        deviation = np.sqrt(np.maximum(variance, floor))
        same = (ranks == self._incumbent).all(1)
        return np.where(same, -np.inf, (mean - self._delta) / deviation)


def failure_probability(score: float) -> float:
    """Probability that the scored point beats the incumbent by more than delta, from Eq. (7)."""
    return float(norm.cdf(score))


def maximise(score: PacScore, space: RankSpace, anchors: Ranks, rng: np.random.Generator) -> tuple[Ranks, float]:
    """The lattice point (d,) of highest score found, and its score.

    Random points and perturbations of `anchors` (k, d) first, then coordinate climbing from the best few: one
    rank up or down and longer strides, one coordinate at a time.
    """
    pool = np.concatenate([space.sample(NUM_RANDOM, rng), _perturb(space, anchors, rng)])
    scores = score(pool)
    starts = np.argsort(-scores, kind="stable")[:NUM_CLIMBS]
    climbed = [_climb(score, space, pool[start], scores[start]) for start in starts]
    return max(climbed, key=lambda point: point[1])


def _perturb(space: RankSpace, anchors: Ranks, rng: np.random.Generator) -> Ranks:
    thetas = space.encode(anchors)[rng.integers(len(anchors), size=NUM_LOCAL)]
    scales = rng.choice(LOCAL_SCALES, size=(NUM_LOCAL, 1))
    moved = rng.random(thetas.shape) < rng.choice([1.0 / space.num_dims, 0.3, 1.0], size=(NUM_LOCAL, 1))
    return space.decode(thetas + moved * scales * rng.standard_normal(thetas.shape))


def _climb(score: PacScore, space: RankSpace, point: Ranks, value: float) -> tuple[Ranks, float]:
    for _ in range(MAX_CLIMB_STEPS):
        neighbours = _neighbours(space, point)
        scores = score(neighbours)
        best = int(np.argmax(scores))
        if not scores[best] > value:
            break
        point, value = neighbours[best], scores[best]
    return point, float(value)


def _neighbours(space: RankSpace, point: Ranks) -> Ranks:
    """All points that differ from `point` in one coordinate: by one rank, or by a stride in theta."""
    theta = space.encode(point[None])[0]
    identity = np.eye(space.num_dims)
    strides = [space.decode(theta + sign * scale * identity) for scale in LOCAL_SCALES for sign in (-1, 1)]
    steps = [np.clip(point + sign * np.eye(space.num_dims, dtype=np.int64), 1, space.caps) for sign in (-1, 1)]
    return np.unique(np.concatenate([*strides, *steps]), axis=0)


def measure_again(score: PacScore, candidate: Ranks, incumbent: Ranks, noise: NDArray[np.float64]) -> bool:
    """True if another look at the incumbent says more about the difference than a look at the candidate.

    Each look shrinks var(t) + var(i) - 2 cov by cov(J(x), difference)^2 / (var(x) + noise(x)); `noise` holds
    the expected noise variances of a look at the candidate and at the incumbent.
    """
    both = np.stack([candidate, incumbent])
    _, covariance = score.belief.process.predict(score.belief.space.encode(both))
    gains = (covariance[:, 0] - covariance[:, 1]) ** 2 / (np.diag(covariance) + noise)
    return bool(gains[1] > gains[0])
