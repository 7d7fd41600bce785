"""Random search: plans uniform on the lattice's log scale, the best evaluation's kept."""

from collections.abc import Iterator

import numpy as np

from benchmarks.studies.search.baselines.problem import Attempt, BestObserved, Step

CHANCE_STREAM = 12


def search(attempt: Attempt) -> Iterator[Step]:
    """Random plans, one evaluation each."""
    rng = np.random.default_rng([attempt.seed, CHANCE_STREAM])
    best = BestObserved(attempt)
    while True:
        ranks = attempt.space.sample(1, rng)[0]
        yield from best.is_beaten_by(ranks, attempt.observe(ranks)[0])
