"""Fabolas (Klein et al. 2017) as emukit has it: a process over theta and the number of images, and entropy search.

Each evaluation takes as many images as the acquisition function asks for, between a thirty-second of the pool and all
of it; the cost that entropy is divided by is their number. Two of emukit's settings are changed, since a step would
otherwise take minutes: hyperparameters are those of maximum likelihood, not an average over a Markov chain, and the
acquisition function is tried at fewer points. The incumbent is the evaluated plan of least predicted value on the whole
pool, and plans are rounded to the nearest ranks.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.studies.search.baselines.problem import Attempt, Step
from compressor.arrays import Array, Ranks
from compressor.search.space import RankSpace

NUM_START = 20  # emukit's own
MAX_STEPS = 30
NUM_POINTS = 200  # at which the acquisition function is tried; emukit's own are 2,000
SMALLEST_SHARE = 32
STREAM = 91


def search(attempt: Attempt) -> Iterator[Step]:
    """Twenty plans of a Latin design on subsets, then one proposal at a time."""
    from emukit.core import ContinuousParameter, ParameterSpace
    from emukit.core.initial_designs.latin_design import LatinDesign
    from emukit.core.loop import UserFunctionWrapper
    from emukit.examples.fabolas import FabolasLoop

    np.random.seed(np.random.default_rng([attempt.seed, STREAM]).integers(2**31))  # noqa: NPY002  emukit draws from it
    space = attempt.problem.space_in("linear")
    whole = attempt.problem.num_images
    subsets = _Subsets(attempt, space)
    names = [f"theta{number}" for number in range(space.num_dims)]
    box = ParameterSpace([ContinuousParameter(name, 0.0, 1.0) for name in names])
    thetas = LatinDesign(box).get_samples(NUM_START)
    sizes = [max(subsets.fewest, whole // 2**power) for power in (5, 4, 3, 2)]
    points = np.column_stack([thetas, [sizes[number % len(sizes)] for number in range(NUM_START)]])
    found = [subsets.evaluate(point) for point in points]
    with _without_warnings():
        loop = FabolasLoop(
            box,
            points,
            np.array([[value] for value, _ in found]),
            np.array([cost for _, cost in found]),
            subsets.fewest,
            whole,
            num_eval_points=NUM_POINTS,
            marginalize_hypers=False,
        )
    function = UserFunctionWrapper(subsets.evaluate_all, extra_output_names=["cost"])
    incumbent = space.break_even_ranks
    for _ in range(MAX_STEPS):
        best = _best(loop, space, whole)
        if not np.array_equal(best, incumbent):
            incumbent = best
            yield attempt.passes, best
        with _without_warnings():
            loop.run_loop(function, 1)
    yield attempt.passes, _best(loop, space, whole)
    attempt.stopped_because = f"{MAX_STEPS} steps"


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep GPy's warnings out of the way, which are of constraints that it sets itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class _Subsets:
    """Evaluations of -J on as many images as are asked for."""

    def __init__(self, attempt: Attempt, space: RankSpace) -> None:
        self._attempt = attempt
        self._space = space
        self._rng = np.random.default_rng([attempt.seed, STREAM, 1])
        self.fewest = max(2, attempt.problem.num_images // SMALLEST_SHARE)

    def evaluate(self, point: Array) -> tuple[float, float]:
        """-J of theta and a number of images (d + 1,), and its cost in image passes."""
        attempt = self._attempt
        size = int(np.clip(round(float(point[-1])), self.fewest, attempt.problem.num_images))
        ranks = self._space.decode(point[None, :-1])[0]
        images = self._rng.choice(attempt.problem.num_images, size, replace=False)
        losses = attempt.evaluate(ranks, images)
        return -attempt.value(ranks, losses.mean), float(size)

    def evaluate_all(self, points: Array) -> tuple[Array, Array]:
        """-J (n, 1) and costs (n, 1) of points (n, d + 1)."""
        values = np.array([self.evaluate(point) for point in points])
        return values[:, :1], values[:, 1:]


def _best(loop: Any, space: RankSpace, whole: int) -> Ranks:
    """The evaluated plan (d,) of least predicted value on the whole pool."""
    thetas = loop.loop_state.X[:, :-1]
    model = loop.model_updaters[0].model
    mean, _ = model.predict(np.column_stack([thetas, np.full(len(thetas), float(whole))]))
    best: Ranks = space.decode(thetas[np.argmin(mean[:, 0])][None])[0]
    return best
