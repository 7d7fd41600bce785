"""Ranks and thetas, with scikit-optimize's own transforms as oracle, and what a plan costs."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.search.space import Coordinates, RankSpace

COORDINATES = get_args(Coordinates)
both = pytest.mark.parametrize("coordinates", COORDINATES)
all_break_even_ranks = st.lists(st.integers(2, 600), min_size=1, max_size=6)


def make_space(num_choices: list[int], coordinates: Coordinates = "log", seed: int = 0) -> RankSpace:
    """Layers whose parameters grow with the rank, the dense layer a little dearer than the last rank."""
    rng = np.random.default_rng(seed)
    tables = [
        [step * rank for rank in range(1, break_even_rank)] + [step * break_even_rank + 3]
        for break_even_rank in num_choices
        for step in [rng.integers(1, 99)]
    ]
    return RankSpace([f"layer{i}" for i in range(len(num_choices))], tables, coordinates)


def all_ranks(num_choices: list[int]) -> np.ndarray:
    """Points that together hold every rank of every layer."""
    return np.stack(
        [np.minimum(np.arange(1, max(num_choices) + 1), break_even_rank) for break_even_rank in num_choices],
        axis=1,
    )


@both
@settings(max_examples=40, deadline=None)
@given(num_choices=all_break_even_ranks)
def test_every_rank_survives_the_round_trip(coordinates: Coordinates, num_choices: list[int]) -> None:
    space = make_space(num_choices, coordinates)
    ranks = all_ranks(num_choices)
    thetas = space.encode(ranks)
    assert thetas.min() >= 0
    assert thetas.max() <= 1 + 1e-12
    np.testing.assert_array_equal(space.decode(thetas), ranks)
    np.testing.assert_array_equal(space.decode(space.encode(np.ones_like(ranks))), np.ones_like(ranks))


@both
@settings(max_examples=25, deadline=None)
@given(num_choices=all_break_even_ranks, seed=st.integers(0, 99))
def test_thetas_and_ranks_are_those_of_scikit_optimize(
    coordinates: Coordinates, num_choices: list[int], seed: int
) -> None:
    space = make_space(num_choices, coordinates)
    ranks = all_ranks(num_choices)[:: max(1, max(num_choices) // 40)]
    oracle = space.space.transform(ranks.tolist())
    np.testing.assert_allclose(space.encode(ranks), oracle, atol=1e-12)
    thetas = np.random.default_rng(seed).random((20, len(num_choices)))
    found = space.decode(thetas)
    np.testing.assert_array_equal(found, space.space.inverse_transform(thetas))
    assert found.dtype == np.int64


@both
def test_thetas_outside_the_cube_are_brought_back(coordinates: Coordinates) -> None:
    space = make_space([5, 300], coordinates)
    np.testing.assert_array_equal(space.decode(np.array([[-0.7, 1.3], [2.0, -1e9]])), [[1, 300], [5, 1]])


def test_log_coordinates_give_small_ranks_their_room() -> None:
    """Half of theta is the square root of the cap, where a linear scale has half of the cap."""
    middle = np.array([[0.5]])
    assert make_space([400], "log").decode(middle) == 20
    assert make_space([401], "linear").decode(middle) == 201


@pytest.mark.parametrize("break_even_rank", [2, 3, 10])
def test_linear_end_points_are_as_likely_as_all_others(break_even_rank: int) -> None:
    ranks = make_space([break_even_rank], "linear").sample(40_000, np.random.default_rng(0))[:, 0]
    shares = np.bincount(ranks, minlength=break_even_rank + 1)[1:] / len(ranks)
    np.testing.assert_allclose(shares, 1 / break_even_rank, atol=4 * np.sqrt(1 / break_even_rank / len(ranks)))


@pytest.mark.parametrize("break_even_rank", [2, 3, 10, 100])
def test_log_samples_fall_to_every_rank_by_its_width_on_the_scale(break_even_rank: int) -> None:
    """Rank K stands for K - 1/2 to K + 1/2, the end points included."""
    ranks = make_space([break_even_rank], "log").sample(60_000, np.random.default_rng(0))[:, 0]
    shares = np.bincount(ranks, minlength=break_even_rank + 1)[1:] / len(ranks)
    edges = np.log(np.arange(0.5, break_even_rank + 1))
    expected = np.diff(edges) / (edges[-1] - edges[0])
    np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(expected.max() / len(ranks)))


@both
@given(num_choices=all_break_even_ranks, count=st.integers(0, 9), seed=st.integers(0, 99))
def test_samples_lie_in_the_space_and_repeat_with_the_seed(
    coordinates: Coordinates, num_choices: list[int], count: int, seed: int
) -> None:
    space = make_space(num_choices, coordinates)
    ranks = space.sample(count, np.random.default_rng(seed))
    assert ranks.shape == (count, len(num_choices))
    assert ((ranks >= 1) & (ranks <= num_choices)).all()
    np.testing.assert_array_equal(ranks, space.sample(count, np.random.default_rng(seed)))


def test_params_and_ratio_by_hand() -> None:
    space = RankSpace(["a", "b"], [[10, 20, 25], [7, 15]])
    ranks = np.array([[1, 1], [2, 2], [3, 1], [3, 2]])
    assert space.cost(ranks).tolist() == [17, 35, 32, 40]
    np.testing.assert_allclose(space.ratio(ranks), np.array([17, 35, 32, 40]) / 40)
    np.testing.assert_allclose(space.layer_ratio(1), [7 / 40, 15 / 40])
    assert space.num_dims == 2
    assert space.num_choices.tolist() == [3, 2]
    assert space.cost(np.empty((0, 2), dtype=np.int64)).tolist() == []


@given(num_choices=all_break_even_ranks, seed=st.integers(0, 99))
def test_the_ratio_is_the_sum_over_layers_rises_with_every_rank_and_ends_at_one(
    num_choices: list[int], seed: int
) -> None:
    space = make_space(num_choices, seed=seed)
    ranks = space.sample(5, np.random.default_rng(seed))
    by_layer = [space.layer_ratio(i)[ranks[:, i] - 1] for i in range(len(num_choices))]
    np.testing.assert_allclose(space.ratio(ranks), np.sum(by_layer, axis=0))
    assert space.ratio(space.num_choices[None])[0] == pytest.approx(1)
    lower = np.maximum(ranks - 1, 1)
    changed = (lower != ranks).any(1)
    assert (space.ratio(lower)[changed] < space.ratio(ranks)[changed]).all()


@given(num_choices=all_break_even_ranks, fraction=st.floats(0, 2))
def test_uniform_plans(num_choices: list[int], fraction: float) -> None:
    ranks = make_space(num_choices).uniform(fraction)
    assert ranks.dtype == np.int64
    for rank, break_even_rank in zip(ranks, num_choices, strict=True):
        assert 1 <= rank <= break_even_rank
        assert abs(rank - fraction * break_even_rank) <= 0.5 or rank in (1, break_even_rank)


def test_names_and_tables_must_go_together() -> None:
    with pytest.raises(ValueError, match="zip"):
        RankSpace(["a"], [[1, 2], [1, 2]])


def test_a_lattice_of_multiples_keeps_small_ranks_multiples_and_dense() -> None:
    space = RankSpace(["a", "b"], [list(range(1, 22)), list(range(1, 7))], multiple=8)
    assert [choices.tolist() for choices in space.choices] == [[1, 2, 3, 4, 5, 6, 7, 8, 16, 21], [1, 2, 3, 4, 5, 6]]
    rng = np.random.default_rng(0)
    for points in (space.sample(200, rng), space.decode(rng.random((200, 2))), space.uniform(0.6)[None]):
        for column, choices in zip(points.T, space.choices, strict=True):
            assert np.isin(column, choices).all()
    np.testing.assert_array_equal(space.nearest(np.array([11.9, 5.6])), [8, 6])
    one_step = space.moves(())
    assert one_step[0][8 - 1].tolist() == [7, 16]
    assert one_step[0][21 - 1].tolist() == [16, 21]
    assert one_step[1][1 - 1].tolist() == [1, 2]


@pytest.mark.parametrize("coordinates", ["log", "linear"])
@pytest.mark.parametrize("multiple", [1, 8])
def test_moves_are_decoded_strides(coordinates: Coordinates, multiple: int) -> None:
    space = RankSpace(["a", "b"], [list(range(1, 51)), list(range(1, 8))], coordinates, multiple)
    tables = space.moves((0.1, 0.3))
    for point in space.sample(40, np.random.default_rng(0)):
        theta = space.encode(point)
        wanted = [space.decode(theta + stride) for stride in (-0.1, 0.1, -0.3, 0.3)]
        for layer, (table, rank) in enumerate(zip(tables, point, strict=True)):
            assert table[rank - 1, :4].tolist() == [plan[layer] for plan in wanted]


def test_levels_hold_both_ends_and_are_spread_evenly() -> None:
    space = RankSpace(["a", "b"], [list(range(1, 301)), [1, 2]], "linear", 1)
    ranks, thetas = space.levels(0, 11)
    np.testing.assert_allclose(thetas, np.linspace(0, 1, 11), atol=0.5 / 299)
    np.testing.assert_allclose(thetas, (ranks - 1) / 299)
    assert space.levels(1, 11)[0].tolist() == [1, 2]


def test_levels_hold_the_ranks_nearest_to_thetas_asked_for() -> None:
    space = RankSpace(["wide"], [[10.0 * rank for rank in range(1, 102)]], coordinates="linear")
    evenly = space.levels(0, 11)[0]
    ranks, thetas = space.levels(0, 11, np.array([-0.2, 0.43, 0.444, 0.5]))
    assert set(ranks) - set(evenly) == {44, 45}  # the others are there already
    assert set(evenly) <= set(ranks)
    np.testing.assert_array_equal(thetas, space.encode(ranks[:, None])[:, 0])
