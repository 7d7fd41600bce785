"""Random search: plans uniform on the lattice's log or linear scale, the best evaluation's kept."""

from collections.abc import Iterator

import numpy as np

from benchmarks.studies.search.baselines.problem import Attempt, BestObserved, Run, Step
from compressor.search.dimension import Coordinates

CHANCE_STREAM = 12


def search_in(coordinates: Coordinates) -> Run:
    """Random plans on this scale, one evaluation each."""

    def search(attempt: Attempt) -> Iterator[Step]:
        space, rng = attempt.problem.space_in(coordinates), np.random.default_rng([attempt.seed, CHANCE_STREAM])
        best = BestObserved(attempt)
        while True:
            ranks = space.sample(1, rng)[0]
            yield from best.is_beaten_by(ranks, attempt.observe(ranks)[0])

    return search
