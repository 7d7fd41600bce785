"""Intervals of shares, against published examples and against simulated networks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.fidelity.intervals import paired_change, wilson

counts = st.integers(0, 3000)


def test_a_published_interval() -> None:
    """Newcombe (1998), Table II, method 10; the difference there is before - after."""
    change = paired_change(36, 12, 2, 0)
    assert (-change.high, -change.low) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_a_point_and_a_half_of_five_thousand_images() -> None:
    change = paired_change(4030, 120, 40, 810)
    assert (change.images, change.lost, change.gained) == (5000, 120, 40)
    assert change.change == pytest.approx(-0.016)
    assert (change.low, change.high) == pytest.approx((-0.021, -0.011), abs=6e-4)


@given(counts, counts, counts, counts)
def test_the_change_lies_within(both: int, lost: int, gained: int, neither: int) -> None:
    if both + lost + gained + neither == 0:
        return
    change = paired_change(both, lost, gained, neither)
    assert -1 <= change.low <= change.change + 1e-12
    assert change.change - 1e-12 <= change.high <= 1
    mirrored = paired_change(both, gained, lost, neither)
    assert (mirrored.low, mirrored.high) == pytest.approx((-change.high, -change.low), abs=1e-9)


def test_nine_intervals_of_ten_and_more_hold_the_true_change() -> None:
    rng, truth = np.random.default_rng(0), -0.02
    tables = rng.multinomial(600, [0.8, 0.04, 0.02, 0.14], size=1000)
    held = [change.low <= truth <= change.high for change in (paired_change(*map(int, table)) for table in tables)]
    assert 0.93 <= np.mean(held) <= 0.98


def test_no_image_of_a_hundred_leaves_room() -> None:
    low, high = wilson(0, 100)
    assert low == 0
    assert high == pytest.approx(0.037, abs=1e-3)
