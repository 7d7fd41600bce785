"""Ranks and thetas, with scikit-optimize's own transforms as oracle, and what a plan costs."""

import json
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skopt import forest_minimize, gp_minimize
from skopt.space import Integer, Space

from compressor.search.dimension import Coordinates, RankDimension, SparsityDimension
from compressor.search.space import RankSpace
from compressor.search.sparsity_space import SparsitySpace

COORDINATES = get_args(Coordinates)
both = pytest.mark.parametrize("coordinates", COORDINATES)
all_break_even_ranks = st.lists(st.integers(2, 600), min_size=1, max_size=6)


def make_space(break_even_ranks: list[int], coordinates: Coordinates = "log", seed: int = 0) -> RankSpace:
    """Layers whose parameters grow with the rank, the dense layer a little dearer than the last rank."""
    rng = np.random.default_rng(seed)
    tables = [
        [step * rank for rank in range(1, break_even_rank)] + [step * break_even_rank + 3]
        for break_even_rank in break_even_ranks
        for step in [rng.integers(1, 99)]
    ]
    return RankSpace([f"layer{i}" for i in range(len(break_even_ranks))], tables, coordinates)


def all_ranks(break_even_ranks: list[int]) -> np.ndarray:
    """Points that together hold every rank of every layer."""
    return np.stack(
        [np.minimum(np.arange(1, max(break_even_ranks) + 1), break_even_rank) for break_even_rank in break_even_ranks],
        axis=1,
    )


@both
@settings(max_examples=40, deadline=None)
@given(break_even_ranks=all_break_even_ranks)
def test_every_rank_survives_the_round_trip(coordinates: Coordinates, break_even_ranks: list[int]) -> None:
    space = make_space(break_even_ranks, coordinates)
    ranks = all_ranks(break_even_ranks)
    thetas = space.encode(ranks)
    assert thetas.min() >= 0
    assert thetas.max() <= 1 + 1e-12
    np.testing.assert_array_equal(space.decode(thetas), ranks)
    np.testing.assert_array_equal(space.decode(space.encode(np.ones_like(ranks))), np.ones_like(ranks))


@both
@settings(max_examples=25, deadline=None)
@given(break_even_ranks=all_break_even_ranks, seed=st.integers(0, 99))
def test_without_a_lattice_thetas_and_ranks_are_those_of_skopts_integers(
    coordinates: Coordinates, break_even_ranks: list[int], seed: int
) -> None:
    space = make_space(break_even_ranks, coordinates)
    prior = "log-uniform" if coordinates == "log" else "uniform"
    oracle = Space([Integer(1, rank, prior=prior, transform="normalize") for rank in break_even_ranks])
    ranks = all_ranks(break_even_ranks)[:: max(1, max(break_even_ranks) // 40)]
    np.testing.assert_allclose(space.encode(ranks), oracle.transform(ranks.tolist()), atol=1e-12)
    thetas = np.random.default_rng(seed).random((20, len(break_even_ranks)))
    found = space.decode(thetas)
    np.testing.assert_array_equal(found, oracle.inverse_transform(thetas))
    assert found.dtype == np.int64


@st.composite
def lattices(draw: st.DrawFn) -> RankSpace:
    """Random spaces: lattices of multiples, layers with a single choice, and sparsity."""
    break_even_ranks = draw(st.lists(st.integers(1, 300), min_size=1, max_size=5))
    coordinates, multiple = draw(st.sampled_from(COORDINATES)), draw(st.sampled_from([1, 2, 8]))
    tables = [[7.0 * rank for rank in range(1, last + 1)] for last in break_even_ranks]
    space = RankSpace([f"layer{i}" for i in range(len(tables))], tables, coordinates, multiple)
    return SparsitySpace(space, 100) if draw(st.booleans()) else space


@settings(max_examples=60, deadline=None)
@given(space=lattices(), seed=st.integers(0, 99))
def test_arrays_and_skopts_own_lists_agree(space: RankSpace, seed: int) -> None:
    plain = Space(space.dimensions)
    points = space.sample(20, np.random.default_rng(seed))
    for one in (space, plain):
        np.testing.assert_array_equal(space.encode(points), one.transform(points.tolist()))
        assert all(point in one for point in points.tolist())
        thetas = np.random.default_rng(seed).uniform(-0.2, 1.2, points.shape)
        np.testing.assert_array_equal(space.decode(thetas), one.inverse_transform(thetas))
        assert one.inverse_transform(one.transform(points.tolist())) == points.tolist()
        assert one.n_dims == one.transformed_n_dims == space.num_dims
        assert one.transformed_bounds == [(0.0, 1.0)] * space.num_dims
        assert one.bounds == [(choices[0], choices[-1]) for choices in space.choices]
        assert one.n_constant_dimensions == sum(len(choices) == 1 for choices in space.choices)
    assert space.rvs(20, np.random.default_rng(seed)) == points.tolist()
    assert space.rvs(4, seed) == space.rvs(4, np.random.RandomState(seed)) == space.rvs(4, seed)
    json.dumps([space.rvs(3, seed), plain.rvs(3, seed), plain.inverse_transform(thetas)])


@both
@pytest.mark.parametrize("break_even_rank", [2, 10, 37])
def test_a_dimension_alone_is_sampled_like_the_space(coordinates: Coordinates, break_even_rank: int) -> None:
    table = [[float(rank) for rank in range(1, break_even_rank + 1)]]
    space = RankSpace(["a"], table, coordinates, multiple=8)
    (dimension,) = space.dimensions
    alone, together = dimension.rvs(40_000, 0), space.sample(40_000, np.random.default_rng(0))[:, 0]
    shares = [np.bincount(ranks, minlength=break_even_rank + 1) / len(ranks) for ranks in (alone, together)]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.015)
    assert dimension.rvs(5, np.random.default_rng(3)) == space.sample(5, np.random.default_rng(3))[:, 0].tolist()


@both
@pytest.mark.parametrize(
    "minimize", [pytest.param(gp_minimize, marks=pytest.mark.slow), forest_minimize]
)  # dummy_minimize needs an older scikit-learn
def test_skopts_own_optimizers_search_the_space(coordinates: Coordinates, minimize: Callable[..., Any]) -> None:
    tables = [[7.0 * rank for rank in range(1, last + 1)] for last in (30, 1, 17)]
    space = SparsitySpace(RankSpace(["a", "b", "c"], tables, coordinates, multiple=4), 50)
    asked = []

    def cost(point: list[int]) -> float:
        asked.append(point)
        return float(abs(point[0] - 12) + abs(point[2] - 3))

    found = minimize(cost, space, n_calls=15, n_initial_points=10, random_state=0)
    assert len(asked) == 15
    assert all(point in space for point in asked)
    assert json.loads(json.dumps(found.x)) == found.x
    assert found.fun == min(abs(point[0] - 12) + abs(point[2] - 3) for point in asked)
    points = space.sample(5, np.random.default_rng(0))
    np.testing.assert_array_equal(space.decode(space.encode(points)), points)


def test_a_dimension_works_on_ranks_where_it_is_asked_to() -> None:
    dimension = RankDimension([1, 2, 8, 21], name="a")
    dimension.set_transformer("identity")
    assert dimension.transform([2, 21]) == [2, 21]
    assert dimension.inverse_transform([4.9, 5.1, 99.0, -3.0]) == [2, 8, 21, 1]
    assert dimension.transformed_bounds == dimension.bounds == (1, 21)
    assert dimension == RankDimension([1, 2, 8, 21]) != RankDimension([1, 2, 21])
    assert dimension.distance(2, 8) == 6
    assert repr(dimension) == "RankDimension(1..21, 4 choices, 'log', 'a')"
    with pytest.raises(RuntimeError, match="lattice"):
        dimension.distance(2, 9)
    with pytest.raises(ValueError, match="'normalize' or 'identity'"):
        dimension.set_transformer("onehot")


def test_the_dimension_of_sparsity_counts_zeros() -> None:
    dimension = SparsityDimension(20, 2)
    assert dimension.bounds == (2, 20)
    np.testing.assert_allclose(dimension.fraction([2, 10, 20]), [0.9, 0.5, 0.0])


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
@given(break_even_ranks=all_break_even_ranks, count=st.integers(0, 9), seed=st.integers(0, 99))
def test_samples_lie_in_the_space_and_repeat_with_the_seed(
    coordinates: Coordinates, break_even_ranks: list[int], count: int, seed: int
) -> None:
    space = make_space(break_even_ranks, coordinates)
    ranks = space.sample(count, np.random.default_rng(seed))
    assert ranks.shape == (count, len(break_even_ranks))
    assert ((ranks >= 1) & (ranks <= break_even_ranks)).all()
    np.testing.assert_array_equal(ranks, space.sample(count, np.random.default_rng(seed)))


def test_params_and_ratio_by_hand() -> None:
    space = RankSpace(["a", "b"], [[10, 20, 25], [7, 15]])
    ranks = np.array([[1, 1], [2, 2], [3, 1], [3, 2]])
    assert space.cost(ranks).tolist() == [17, 35, 32, 40]
    np.testing.assert_allclose(space.ratio(ranks), np.array([17, 35, 32, 40]) / 40)
    np.testing.assert_allclose(space.layer_ratio(1), [7 / 40, 15 / 40])
    assert space.num_dims == 2
    assert space.break_even_ranks.tolist() == [3, 2]
    assert space.cost(np.empty((0, 2), dtype=np.int64)).tolist() == []


@given(break_even_ranks=all_break_even_ranks, seed=st.integers(0, 99))
def test_the_ratio_is_the_sum_over_layers_rises_with_every_rank_and_ends_at_one(
    break_even_ranks: list[int], seed: int
) -> None:
    space = make_space(break_even_ranks, seed=seed)
    ranks = space.sample(5, np.random.default_rng(seed))
    by_layer = [space.layer_ratio(i)[ranks[:, i] - 1] for i in range(len(break_even_ranks))]
    np.testing.assert_allclose(space.ratio(ranks), np.sum(by_layer, axis=0))
    assert space.ratio(space.break_even_ranks[None])[0] == pytest.approx(1)
    lower = np.maximum(ranks - 1, 1)
    changed = (lower != ranks).any(1)
    assert (space.ratio(lower)[changed] < space.ratio(ranks)[changed]).all()


@given(break_even_ranks=all_break_even_ranks, fraction=st.floats(0, 2))
def test_uniform_plans(break_even_ranks: list[int], fraction: float) -> None:
    ranks = make_space(break_even_ranks).uniform(fraction)
    assert ranks.dtype == np.int64
    for rank, break_even_rank in zip(ranks, break_even_ranks, strict=True):
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
