"""Whether groups lose channels or ranks, against every combination of shares."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.channels.groups import ChannelGroup, Reader
from compressor.pipeline.channels.blocks import SHARES, Block, choose

GENTLE, STEEP = 0.1 * (1.0 - SHARES) ** 2, 10.0 * (1.0 - SHARES) ** 2


def group(producer: str, reader: str) -> ChannelGroup:
    return ChannelGroup(producer, (producer,), (), (Reader(reader),), 64)


FIRST, SECOND = group("a", "b"), group("b", "c")


def best_value(block: Block, price: float) -> float:
    """The least loss + price * size over all subsets of groups, and over all shares of every part."""
    values = []
    subsets = itertools.chain.from_iterable(
        itertools.combinations(block.groups, count) for count in range(len(block.groups) + 1)
    )
    for chosen in subsets:
        inside = {name for one in chosen for name in one.layers}
        by_ranks = sum(
            float((block.of_ranks[name] + price * size * SHARES).min()) if name in block.of_ranks else price * size
            for name, size in block.sizes.items()
            if name not in inside
        )
        for numbers in itertools.product(range(len(SHARES)), repeat=len(chosen)):
            shares = {one.name: SHARES[number] for one, number in zip(chosen, numbers, strict=True)}
            loss = sum(block.of_channels[one.name][number] for one, number in zip(chosen, numbers, strict=True))
            size = sum(
                block.sizes[name] * np.prod([shares[one.name] for one in chosen if name in one.layers])
                for name in inside
            )
            values.append(by_ranks + loss + price * size)
    return min(values)


@given(st.integers(0, 10_000), st.floats(0.01, 100.0))
def test_divisions_are_nearly_the_best_of_all_combinations(seed: int, price: float) -> None:
    rng = np.random.default_rng(seed)
    sizes = dict(zip("abc", rng.uniform(0.05, 0.5, 3).tolist(), strict=True))
    curves = {name: rng.uniform(0.1, 10) * (1.0 - SHARES) ** rng.uniform(1, 3) for name in ["a", "b", "of a", "of b"]}
    block = Block(
        [FIRST, SECOND],
        sizes,
        {"a": curves["of a"], "b": curves["of b"]},
        {name: curves[name] for name in "ab"},
    )
    found, best = block.divide(price), best_value(block, price)
    assert best - 1e-9 <= found.value(price) <= 1.1 * best


def test_what_loses_less_is_chosen_group_by_group() -> None:
    sizes = {"a": 0.2, "b": 0.2}
    by_channels = Block([FIRST], sizes, {"a": GENTLE}, {"a": STEEP, "b": STEEP})
    by_ranks = Block([FIRST], sizes, {"a": STEEP}, {"a": GENTLE, "b": GENTLE})
    assert choose([by_channels, by_ranks], 1.0, None) == [[FIRST], []]


def test_the_price_decides_where_curves_cross() -> None:
    cliff = np.where(SHARES < 0.7, 50.0, 0.1 * (1.0 - SHARES))  # nearly free, then lost
    steady = 2.0 * (1.0 - SHARES)
    block = Block([FIRST], {"a": 0.5, "b": 0.5}, {"a": steady}, {"a": cliff, "b": cliff})
    assert block.choose(1.0) == []
    assert block.choose(10.0) == [FIRST]


def test_a_price_at_which_nothing_pays_is_raised() -> None:
    block = Block([FIRST], {"a": 0.5, "b": 0.5}, {"a": GENTLE}, {"a": STEEP, "b": STEEP})
    assert block.divide(1e-6).size == pytest.approx(1.0)
    assert block.choose(1e-6) == [FIRST]


def test_channels_that_would_pay_at_far_higher_prices_alone_are_left_whole() -> None:
    sizes = {"a": 0.5, "b": 0.5}
    steady = 2.0 * (1.0 - SHARES)
    costly = 10.0 * (1.0 - SHARES)
    block = Block([FIRST], sizes, {"a": steady}, {"a": costly, "b": costly})
    assert block.divide(1.0).size == pytest.approx(1.0)
    paying = Block([SECOND], {"b": 0.5, "c": 0.5}, {"b": GENTLE}, {"b": STEEP, "c": STEEP})
    assert choose([block, paying], 1.0, None) == [[FIRST], [SECOND]]
    assert choose([block, paying], 0.4, None) == [[], [SECOND]]
    assert choose([block, paying], 0.4, None, is_settled=False) == [[FIRST], [SECOND]]


def test_channels_that_bring_next_to_nothing_are_left_whole() -> None:
    sizes = {"a": 0.5, "b": 0.5}
    tied = Block([FIRST], sizes, {"a": GENTLE}, {"a": 0.501 * GENTLE, "b": 0.501 * GENTLE})
    assert choose([tied], 1.0, None) == [[]]
    assert choose([tied], 1.0, None, is_settled=False) == [[FIRST]]


def test_layers_in_no_group_take_their_part_of_a_limit() -> None:
    """Where another layer gives up all that is asked for, the group is free to choose at a low price."""
    cliff = np.where(SHARES < 0.7, 50.0, 0.1 * (1.0 - SHARES))
    block = Block([FIRST], {"a": 0.2, "b": 0.2}, {"a": 2.0 * (1.0 - SHARES)}, {"a": cliff, "b": cliff})
    other = Block([], {"d": 0.6}, {}, {"d": 1e-3 * (1.0 - SHARES)})
    assert choose([block, other], 1.0, 0.6) == [[], []]
    assert choose([block], 1.0, 0.1) == [[FIRST]]


def test_a_limit_below_the_least_share_is_no_reason_for_channels() -> None:
    """Shares of two groups multiply in the layer that both have: at any price that is the smallest size."""
    block = Block(
        [FIRST, SECOND],
        {"a": 0.3, "b": 0.4, "c": 0.3},
        {"a": STEEP, "b": STEEP},
        {"a": GENTLE, "b": GENTLE, "c": GENTLE},
    )
    assert block.divide(1e9).groups == [FIRST, SECOND]
    assert choose([block], 1.0, 1e-3) == [[]]


def test_layers_without_ranks_stay_whole() -> None:
    block = Block([], {"a": 0.4}, {}, {})
    assert (block.divide(1e6).loss, block.divide(1e6).size) == (0.0, 0.4)
