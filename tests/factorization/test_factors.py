"""Factors of the weight: exact at full rank for every geometry, with the reported errors and parameters below."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressor.factorization import cp
from compressor.factorization.base import Factors
from compressor.factorization.interpolative import Interpolated
from compressor.factorization.records import MethodChoice
from compressor.factorization.registry import METHODS, find_break_even_rank, num_params_table
from compressor.network.layers import find_layers

MODES = ("zeros", "reflect", "replicate", "circular")
EXACT = 2e-5


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def count_weights(module: nn.Module) -> int:
    return sum(value.numel() for name, value in module.named_parameters() if name.endswith("weight"))


def difference(layer: nn.Module, candidate: nn.Module) -> float:
    """||W - W_rank||_F^2 by outputs alone, for layers without stride and padding."""
    shape = (layer.in_features,) if isinstance(layer, nn.Linear) else (layer.in_channels, *layer.kernel_size)
    inputs = torch.eye(prod(shape)).reshape(-1, *shape)
    with torch.inference_mode():
        return float((layer(inputs) - candidate(inputs)).double().square().sum())


@st.composite
def convolutions(draw: st.DrawFn, groups: tuple[int, ...] = (1, 2)) -> nn.Conv2d:
    """Convolutions of every geometry, small enough that any padding mode fits an 11 x 12 image."""
    num_groups = draw(st.sampled_from(groups))
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    padding = draw(st.sampled_from(["same", "valid", "numbers"]))
    if padding == "numbers":
        padding = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    elif padding == "same":
        stride = (1, 1)
    torch.manual_seed(draw(st.integers(0, 1000)))
    layer = nn.Conv2d(
        num_groups * draw(st.integers(1, 5)),
        num_groups * draw(st.integers(1, 5)),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=num_groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(MODES)),
    )
    return layer.eval()


@settings(max_examples=80, deadline=None)
@given(convolutions())
def test_spatial_is_exact_at_full_rank(layer: nn.Conv2d) -> None:
    images = torch.randn(2, layer.in_channels, 11, 12)
    factors = METHODS["spatial"].factorize(layer)
    assert factors.max_rank == METHODS["spatial"].max_rank(layer.weight.shape, layer.groups)
    with torch.inference_mode():
        assert relative_error(factors.build(factors.max_rank)(images), layer(images)) < EXACT


@pytest.mark.parametrize("method", ["tucker", "cp", "interpolative"])
@settings(max_examples=60, deadline=None)
@given(layer=convolutions(groups=(1,)))
def test_others_are_exact_at_full_rank(method: str, layer: nn.Conv2d) -> None:
    images = torch.randn(2, layer.in_channels, 11, 12)
    factors = METHODS[method].factorize(layer)
    assert factors.max_rank == METHODS[method].max_rank(layer.weight.shape, 1)
    with torch.inference_mode():
        assert relative_error(factors.build(factors.max_rank)(images), layer(images)) < EXACT


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 2),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from(MODES),
)
def test_svd_of_a_1x1_convolution_is_exact_at_full_rank(
    groups: int, num_in: int, num_out: int, stride: int, padding: int, bias: bool, mode: str
) -> None:
    layer = nn.Conv2d(
        groups * num_in,
        groups * num_out,
        1,
        stride=stride,
        padding=padding,
        groups=groups,
        bias=bias,
        padding_mode=mode,
    )
    images = torch.randn(2, layer.in_channels, 7, 8)
    factors = METHODS["svd"].factorize(layer)
    with torch.inference_mode():
        assert relative_error(factors.build(factors.max_rank)(images), layer(images)) < EXACT


@pytest.mark.parametrize("bias", [True, False])
def test_svd_of_a_linear_layer_is_the_best_approximation(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(20, 12, bias=bias)
    factors = METHODS["svd"].factorize(layer)
    first, second = factors.build(5)
    approximation = second.weight @ first.weight
    singular_values = torch.linalg.svdvals(layer.weight.detach().double())
    error = (layer.weight - approximation).detach().double().square().sum()
    assert float(error) == pytest.approx(float(singular_values[5:].square().sum()), rel=1e-4)
    assert factors.squared_error(5) == pytest.approx(float(error), rel=1e-4)
    assert (second.bias is not None) == bias


@pytest.mark.parametrize(
    ("method", "layer"),
    [
        ("svd", nn.Linear(30, 20)),
        ("svd", nn.Conv2d(24, 16, 1, groups=2)),
        ("spatial", nn.Conv2d(8, 12, 3)),
        ("spatial", nn.Conv2d(8, 12, (3, 5), groups=4)),
        ("tucker", nn.Conv2d(12, 8, 3)),
        ("tucker", nn.Conv2d(3, 32, 7)),
        ("cp", nn.Conv2d(12, 8, 3)),
        ("cp", nn.Conv2d(3, 16, (3, 5))),
        ("cp", nn.Conv2d(9, 16, (1, 3))),
        ("interpolative", nn.Linear(30, 20)),
        ("interpolative", nn.Linear(12, 40)),
        ("interpolative", nn.Conv2d(12, 16, 3)),
        ("interpolative", nn.Conv2d(8, 24, 1, bias=False)),
    ],
)
def test_every_rank_has_the_counted_parameters_and_less_error_than_the_one_before(
    method: str, layer: nn.Module
) -> None:
    row = METHODS[method]
    groups = getattr(layer, "groups", 1)
    factors = row.factorize(layer)
    errors = [factors.squared_error(rank) for rank in range(1, factors.max_rank + 1)]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(errors))
    assert errors[-1] == pytest.approx(0, abs=1e-6)
    for rank in range(1, factors.max_rank + 1):
        candidate = factors.build(rank)
        assert count_weights(candidate) == row.num_params(layer.weight.shape, groups, rank)
        assert difference(layer, candidate) == pytest.approx(errors[rank - 1], rel=1e-3, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(METHODS)),
    st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 5), st.integers(1, 5)),
)
def test_break_even_is_the_last_rank_that_is_not_larger(method: str, shape: tuple[int, ...]) -> None:
    dense = shape[0] * shape[1] * shape[2] * shape[3]
    row = METHODS[method]
    break_even_rank = find_break_even_rank(method, shape, 1, dense)
    if break_even_rank:
        assert row.num_params(shape, 1, break_even_rank) <= dense
    if break_even_rank < row.max_rank(shape, 1):
        assert row.num_params(shape, 1, break_even_rank + 1) > dense
    counts = [row.num_params(shape, 1, rank) for rank in range(1, row.max_rank(shape, 1) + 1)]
    assert counts == sorted(counts)


def test_break_even_ranks_are_those_of_the_paper() -> None:
    # Sec. 3.3: HW / (H + W) for a matrix, k Ci Co / (Ci + Co) for a k x k convolution.
    assert find_break_even_rank("svd", (1000, 784), 1, 784000) == 784000 // 1784
    assert find_break_even_rank("spatial", (512, 256, 3, 3), 1, 512 * 256 * 9) == 3 * 512 * 256 // 768
    assert num_params_table("svd", (20, 10), 1, 6, 200) == [30, 60, 90, 120, 150, 180, 200]
    assert num_params_table("svd", (20, 20), 1, 10, 400) == [*range(40, 400, 40), 400]  # rank 10 is as large: dense
    assert num_params_table("interpolative", (4, 3), 1, 3, 12) == [6, 10, 12]  # as large at full rank only


@pytest.mark.parametrize("rank", [0, -1, 6])
def test_a_rank_outside_the_range_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=r"rank must lie in 1\.\.5"):
        METHODS["svd"].factorize(nn.Linear(9, 5)).build(rank)


# CP


def layer_of_16(seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(16, 16, 3)


def states(factors: Factors, ranks: Sequence[int]) -> dict[int, dict[str, torch.Tensor]]:
    return {rank: factors.build(rank).state_dict() for rank in ranks}


@pytest.mark.parametrize("order", [[1, 3, 17, 40, 60, 100], [100, 3, 60, 1, 40, 17], [17]])
def test_cp_depends_on_the_weight_and_the_rank_alone(order: list[int]) -> None:
    expected = states(METHODS["cp"].factorize(layer_of_16()), [60, 40, 1, 3, 100, 17])
    found = states(METHODS["cp"].factorize(layer_of_16()), order)
    for rank, state in found.items():
        assert all(torch.equal(value, expected[rank][name]) for name, value in state.items())


def test_cp_refines_the_closed_form_and_is_never_worse() -> None:
    layer = layer_of_16()
    refined = METHODS["cp"].factorize(layer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cp, "MAX_SWEEPS", 0)
        closed = METHODS["cp"].factorize(layer)
        closed.squared_error(closed.max_rank)
    ranks = range(2, find_break_even_rank("cp", layer.weight.shape, 1, layer.weight.numel()) + 1)
    gains = [refined.squared_error(rank) / closed.squared_error(rank) for rank in ranks]
    assert max(gains) < 1
    assert min(gains) < 0.85


def raises(*_: Any, **__: Any) -> Any:
    raise np.linalg.LinAlgError("Singular matrix")


def gives(value: float) -> Any:
    """A `parafac` that diverged to one value."""

    class Found:
        def __init__(self, _: Any, rank: int, init: Any, **__: Any) -> None:
            self.factors = [np.full_like(factor, value) for factor in init[1]]

    return Found


@pytest.mark.parametrize("failing", [raises, gives(np.nan), gives(1e200), gives(1.0), gives(0.0)])
def test_cp_falls_back_to_the_closed_form_where_least_squares_fail(
    failing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp, "MAX_SWEEPS", 0)
    closed = METHODS["cp"].factorize(layer_of_16())
    expected = [closed.squared_error(rank) for rank in range(1, 41)]
    monkeypatch.undo()
    monkeypatch.setattr(cp, "parafac", failing)
    factors = METHODS["cp"].factorize(layer_of_16())
    assert [factors.squared_error(rank) for rank in range(1, 41)] == expected


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e12])
def test_cp_factors_stay_in_range_for_any_scale_of_the_weight(scale: float) -> None:
    layer = layer_of_16()
    layer.weight.data *= scale
    candidate = METHODS["cp"].factorize(layer).build(23)
    inside, rows, columns, out = (module.weight for module in candidate)
    lengths = [inside.flatten(1).norm(dim=1), rows.flatten(1).norm(dim=1), columns.flatten(1).norm(dim=1)]
    for length in lengths:
        torch.testing.assert_close(length, out.flatten(1).norm(dim=0), rtol=1e-4, atol=0)
    energy = float(layer.weight.detach().double().square().sum())
    assert sum(float(length.double().pow(8).sum()) for length in lengths) / 3 <= cp.MAX_CANCELLATION * energy


def test_cp_of_a_tensor_of_low_rank_survives_singular_systems() -> None:
    layer = layer_of_16()
    layer.weight.data = layer.weight.data[:1].expand(16, 16, 3, 3) + 0.0
    factors = METHODS["cp"].factorize(layer)
    energy = float(layer.weight.detach().double().square().sum())
    errors = [factors.squared_error(rank) / energy for rank in range(1, 61)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(errors))
    assert errors[8] < 1e-10  # one row and nine patterns
    with torch.inference_mode():
        images = torch.randn(2, 16, 9, 9)
        assert relative_error(factors.build(60)(images), layer(images)) < EXACT


# Interpolative


@settings(max_examples=60, deadline=None)
@given(convolutions(groups=(1,)), st.integers(1, 4))
def test_interpolative_is_exact_where_the_rows_depend_on_each_other(layer: nn.Conv2d, rank: int) -> None:
    num_out = layer.out_channels
    rank = min(rank, METHODS["interpolative"].max_rank(layer.weight.shape, 1))
    layer.weight.data = torch.einsum("or,r...->o...", torch.randn(num_out, rank), layer.weight.data[:rank])
    images = torch.randn(2, layer.in_channels, 11, 12)
    factors = METHODS["interpolative"].factorize(layer)
    with torch.inference_mode():
        for enough in range(rank, factors.max_rank + 1):  # more rows than are independent
            assert relative_error(factors.build(enough)(images), layer(images)) < EXACT


@pytest.mark.parametrize("shape", [(7, 12), (3, 5, 12), (2, 3, 5, 12), (12,)])
@pytest.mark.parametrize("bias", [True, False])
def test_interpolative_linear_layers_take_inputs_of_any_shape(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 40, bias=bias)
    candidate = METHODS["interpolative"].factorize(layer).build(12)
    assert isinstance(candidate, Interpolated)
    assert (candidate.keep.bias is not None) == (candidate.rest.bias is not None) == bias
    inputs = torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(candidate(inputs), layer(inputs), rtol=1e-4, atol=1e-5)


def test_interpolative_keeps_rows_of_the_layer_and_combines_the_others_best() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(30, 20)
    candidate = METHODS["interpolative"].factorize(layer).build(7)
    assert isinstance(candidate, Interpolated)
    order = candidate.order.argsort()
    assert torch.equal(candidate.keep.weight, layer.weight[order[:7]])
    assert torch.equal(candidate.keep.bias, layer.bias[order[:7]])
    kept, others = (layer.weight.detach().double()[part] for part in (order[:7], order[7:]))
    best = torch.linalg.lstsq(kept.T, others.T).solution.T
    torch.testing.assert_close(candidate.rest.weight.double(), best, rtol=1e-4, atol=1e-6)


def test_interpolative_of_a_zero_weight_is_zero() -> None:
    layer = nn.Linear(6, 5)
    layer.weight.data.zero_()
    factors = METHODS["interpolative"].factorize(layer)
    assert [factors.squared_error(rank) for rank in range(1, 6)] == [0.0] * 5
    with torch.inference_mode():
        torch.testing.assert_close(factors.build(2)(torch.ones(1, 6)), layer(torch.ones(1, 6)))


# Which method for which layer


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("cp", ["cp", "spatial", "svd", "svd", "svd"]),
        ("interpolative", ["interpolative", "spatial", "interpolative", "svd", "interpolative"]),
    ],
)
def test_methods_are_taken_where_they_apply(method: MethodChoice, expected: list[str]) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.Conv2d(16, 16, 3, groups=2),
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(16, 16, 1, groups=2),
        nn.Flatten(),
        nn.Linear(16 * 16, 9),
    )
    found = find_layers(model, torch.zeros(1, 3, 8, 8), method=method)
    assert [layer.method for layer in found] == expected
    for layer in found:
        assert METHODS[layer.method].factorize(layer.module).max_rank >= layer.break_even_rank
        assert layer.params_by_rank()[-2] < layer.params_by_rank()[-1] == layer.params
