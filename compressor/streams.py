"""Random streams of one seed, kept apart: whatever draws numbers has one of its own."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What random numbers are drawn for."""

    IMAGES = 1
    UNSEEN_IMAGES = 2
    INITIAL_DESIGN = 3
    ACQUISITION = 4
    CERTIFICATE = 5
    LIMIT = 6
    DIRECTIONS = 8
    REFINEMENT = 9
    RACING = 10  # 11 and 12 are drawn from by the studies of benchmarks
    FINE_TUNING = 13
    DROP_SAMPLE = 14


def generator(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """A generator that depends on the seed, the stream and the counters alone."""
    return np.random.default_rng([seed, int(stream), *counters])
