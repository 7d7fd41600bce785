"""Random streams: no two draw the same numbers."""

import itertools

import pytest

from compressor.streams import Stream, derived_seed, generator

COUNTERS = [(), (1,), (2,), (1, 2), (13,)]


def test_no_two_streams_draw_the_same() -> None:
    drawn = [
        generator(seed, stream, *counters).integers(2**63)
        for seed, stream, counters in itertools.product([0, 1, 8, 2**31], Stream, COUNTERS)
    ]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("stream", Stream)
def test_a_stream_draws_the_same_again(stream: Stream) -> None:
    assert generator(3, stream, 5).integers(2**63) == generator(3, stream, 5).integers(2**63)
    assert derived_seed(3, stream, 5) == derived_seed(3, stream, 5) != derived_seed(4, stream, 5)
    assert 0 <= derived_seed(3, stream) < 2**63
