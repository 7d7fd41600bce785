"""Random search: plans uniform on the lattice's log scale, the luckiest handed over."""

from collections.abc import Iterator

import numpy as np

from benchmarks.studies.search.baselines.problem import Attempt, BestObserved, Step

CHANCE_STREAM = 12


def search(attempt: Attempt) -> Iterator[Step]:
    """Plans from the seed's random numbers, a look at each."""
    rng = np.random.default_rng([attempt.seed, CHANCE_STREAM])
    best = BestObserved(attempt)
    while True:
        ranks = attempt.space.sample(1, rng)[0]
        yield from best.is_beaten_by(ranks, attempt.observe(ranks)[0])
