"""The final racing between the best plans of a search."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.arrays import Ranks
from compressor.fidelity.losses import Losses
from compressor.search.evaluation.evaluator import Evaluator
from compressor.search.evaluation.journal import Journal
from compressor.search.evaluation.racing import MAX_EVALUATIONS, NUM_CHALLENGERS, Racing, challengers_of, is_better
from compressor.search.objective import Objective
from compressor.search.problem import SearchProblem
from compressor.search.settings import SearchSettings
from compressor.search.space import RankSpace
from compressor.search.surrogate.gp import GaussianProcess, Hyperparameters
from compressor.search.surrogate.lognormal import LognormalSurrogate

NUM_IMAGES, SAMPLES = 400, 20
SPACE = RankSpace(["one", "two"], [[float(rank) for rank in range(1, 31)]] * 2)
BEST = np.array([12, 7])


class Course:
    """Losses grow with the distance from BEST, and by an amount per image that is the same for all plans."""

    def __init__(self, seed: int = 0, spread: float = 5.0, chance: float = 0.02) -> None:
        rng = np.random.default_rng(seed)
        self.of_image = rng.gamma(2.0, spread, NUM_IMAGES)
        self.chance, self.seed = chance, seed
        self.passes = 0
        settings = SearchSettings(samples=SAMPLES, seed=seed)
        self.evaluator = Evaluator(SearchProblem(SPACE, Objective(1.0), self.losses, NUM_IMAGES), settings, Journal())

    def losses(self, ranks: Ranks, images: np.ndarray) -> Losses:
        self.passes += len(images)
        own = np.random.default_rng([self.seed, *ranks]).normal(0, self.chance, NUM_IMAGES)[images]
        value = 0.05 * np.abs(ranks - BEST).sum() - SPACE.ratio(ranks[None])[0]
        return Losses(images, self.of_image[images] + value + own)


@given(st.integers(0, 10_000))
def test_the_best_of_similar_plans_wins_where_images_differ_far_more_than_plans(seed: int) -> None:
    course = Course(seed)
    plans = [BEST + step for step in ([2, 0], [0, 3], [0, 0], [-2, -2], [5, 5])]
    assert Racing(course.evaluator, np.zeros(0, dtype=np.int64)).run(plans).tolist() == BEST.tolist()
    # Single evaluations on other images could not tell them apart.
    assert course.of_image.std() / np.sqrt(SAMPLES) > 0.1
    assert course.evaluator.image_passes == course.passes < len(plans) * MAX_EVALUATIONS * SAMPLES


def test_equal_plans_are_evaluated_on_all_images_and_the_first_wins() -> None:
    course = Course(chance=0.0)
    plans = [BEST, BEST]
    assert Racing(course.evaluator, np.zeros(0, dtype=np.int64)).run(plans) is plans[0]
    assert course.passes == 2 * MAX_EVALUATIONS * SAMPLES


def test_the_evaluations_of_the_winner_alone_are_kept_and_no_budget_counts_them() -> None:
    course = Course()
    Racing(course.evaluator, np.zeros(0, dtype=np.int64)).run([BEST + 2, BEST])
    history = course.evaluator.history
    assert history.sources == ["racing"]
    assert history.ranks[0].tolist() == BEST.tolist()
    assert course.evaluator.count == 0


def test_images_already_fitted_on_come_last() -> None:
    course, fitted_on = Course(chance=0.0), np.arange(NUM_IMAGES - SAMPLES)
    Racing(course.evaluator, fitted_on).run([BEST, BEST])
    seen = course.evaluator.history.seen(BEST)
    assert set(range(NUM_IMAGES - SAMPLES, NUM_IMAGES)) <= set(seen.tolist())


def test_out_of_time_there_is_no_racing() -> None:
    course = Course()
    course.evaluator.settings = SearchSettings(samples=SAMPLES, max_seconds=0.0)
    assert Racing(course.evaluator, np.zeros(0, dtype=np.int64)).run([BEST + 1, BEST]).tolist() == (BEST + 1).tolist()
    assert course.passes == 0


def test_challengers_have_the_highest_posterior_mean_beside_the_best_initial_plan() -> None:
    surrogate = LognormalSurrogate(SPACE, Objective(1.0), lambda ranks: 0.05 * np.abs(ranks - BEST).sum(-1) + 0.1)
    hyper = Hyperparameters(np.ones(2), 1e-4, 1e-6, 0.0)
    visited = np.array([BEST, [1, 1], [30, 30]])
    thetas = SPACE.encode(visited)
    posterior = surrogate.posterior(GaussianProcess(thetas, np.zeros(3), np.eye(3), hyper))
    initial_best = BEST + np.array([0, 1])
    challengers = challengers_of(initial_best, posterior, visited)
    assert len(challengers) == NUM_CHALLENGERS
    assert BEST.tolist() == challengers[0].tolist()
    assert initial_best.tolist() not in [ranks.tolist() for ranks in challengers]
    assert all((ranks != initial_best).sum() == 1 for ranks in challengers if ranks.tolist() not in visited.tolist())


def test_better_is_beyond_chance() -> None:
    values = np.random.default_rng(0).normal(size=100)
    assert is_better(values + 0.01, values)
    assert not is_better(values, values)
    assert not is_better(values + np.random.default_rng(1).normal(size=100) * 10, values + 1)
    assert not is_better(np.array([2.0]), np.array([1.0])), "one image has no variance"


@pytest.mark.parametrize("images", [3, 9])
def test_a_small_pool_is_enough(images: int) -> None:
    course = Course(chance=0.0)
    course.evaluator.num_images = images
    assert Racing(course.evaluator, np.zeros(0, dtype=np.int64)).run([BEST + 2, BEST]).tolist() == BEST.tolist()
