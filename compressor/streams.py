"""Random streams of one seed, kept apart: whatever draws numbers has one of its own."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What random numbers are drawn for; 11, 12 and those from 70 on are for the studies of benchmarks."""

    IMAGES = 1
    UNSEEN_IMAGES = 2
    INITIAL_DESIGN = 3
    ACQUISITION = 4
    CERTIFICATE = 5
    LIMIT = 6
    SYNTHETIC_IMAGES = 7
    DIRECTIONS = 8
    REFINEMENT = 9
    RACING = 10
    FINE_TUNING = 13
    DROP_SAMPLE = 14
    POSITIONS = 15
    SIGNS = 16
    OUTPUT_VALUES = 17
    BOOTSTRAP = 18


def generator(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """A generator that depends on the seed, the stream and the counters alone.

    Args:
        seed: of the run.
        stream: what the numbers are for.
        counters: tell apart several generators of one stream.
    """
    return np.random.default_rng([seed, int(stream), *counters])


def derived_seed(seed: int, stream: Stream, *counters: int) -> int:
    """A seed for the generators of other libraries; arguments as of `generator`."""
    return int(generator(seed, stream, *counters).integers(2**63))
