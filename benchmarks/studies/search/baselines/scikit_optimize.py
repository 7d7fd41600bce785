"""scikit-optimize: Gaussian process with fitted noise and expected improvement, its own defaults otherwise."""

from collections.abc import Iterator

import numpy as np

from benchmarks.studies.search.baselines.problem import Attempt, BestObserved, Run, Step
from compressor.search.dimension import Coordinates

PRIORS = {"log": "log-uniform", "linear": "uniform"}


def expected_improvement(coordinates: Coordinates) -> Run:
    """`gp_minimize(acq_func="EI")` step by step, with ranks as `Integer` dimensions on either scale."""

    def search(attempt: Attempt) -> Iterator[Step]:
        from skopt import Optimizer
        from skopt.space import Integer

        optimizer = Optimizer(
            [
                Integer(1, int(break_even_rank), prior=PRIORS[coordinates])
                for break_even_rank in attempt.space.break_even_ranks
            ],
            base_estimator="GP",
            acq_func="EI",
            random_state=attempt.seed,
        )
        best = BestObserved(attempt)
        while True:
            point = [int(rank) for rank in optimizer.ask()]
            ranks = np.array(point, dtype=np.int64)
            objective, _ = attempt.observe(ranks)
            yield from best.is_beaten_by(ranks, objective)
            optimizer.tell(point, -objective)

    return search
