"""Optuna: the tree-structured Parzen estimator and the Gaussian process, on the log scale, with their defaults.

The estimator suggests integers. The Gaussian process suggests theta in [0, 1] per layer, rounded to the nearest ranks
before the evaluation: over integers its local search goes rank by rank, ten seconds per proposal at 21 layers.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.studies.search.baselines.problem import Attempt, BestObserved, Step
from compressor.arrays import Ranks


def parzen(attempt: Attempt) -> Iterator[Step]:
    """`TPESampler`."""
    import optuna

    names, break_even_ranks = attempt.space.names, attempt.space.break_even_ranks.tolist()

    def suggest(trial: Any) -> Ranks:
        point = [
            trial.suggest_int(name, 1, break_even_rank, log=True)
            for name, break_even_rank in zip(names, break_even_ranks, strict=True)
        ]
        return attempt.space.nearest(np.array(point, dtype=float))

    return _search(attempt, optuna.samplers.TPESampler(seed=attempt.seed), suggest)


def gaussian_process(attempt: Attempt) -> Iterator[Step]:
    """`GPSampler` with noisy evaluations, which is its default."""
    import optuna

    def suggest(trial: Any) -> Ranks:
        theta = [trial.suggest_float(name, 0.0, 1.0) for name in attempt.space.names]
        return attempt.space.decode(np.array(theta)[None])[0]

    sampler = optuna.samplers.GPSampler(seed=attempt.seed, deterministic_objective=False)
    return _search(attempt, sampler, suggest)


def _search(attempt: Attempt, sampler: Any, suggest: Callable[[Any], Ranks]) -> Iterator[Step]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    best = BestObserved(attempt)
    while True:
        trial = study.ask()
        ranks = suggest(trial)
        objective, _ = attempt.observe(ranks)
        yield from best.is_beaten_by(ranks, objective)
        study.tell(trial, objective)
