"""The algebra: exact at full rank for every geometry, best in the stated sense below it, costs as counted."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressor.factors import METHODS, break_even_rank, num_params_table

MODES = ("zeros", "reflect", "replicate", "circular")
EXACT = 2e-5


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


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
    factors = METHODS["spatial"].factorise(layer)
    assert factors.max_rank == METHODS["spatial"].max_rank(layer.weight.shape, layer.groups)
    with torch.inference_mode():
        assert relative_error(factors.build(factors.max_rank)(images), layer(images)) < EXACT


@settings(max_examples=60, deadline=None)
@given(convolutions(groups=(1,)))
def test_tucker_is_exact_at_full_rank(layer: nn.Conv2d) -> None:
    images = torch.randn(2, layer.in_channels, 11, 12)
    factors = METHODS["tucker"].factorise(layer)
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
    factors = METHODS["svd"].factorise(layer)
    with torch.inference_mode():
        assert relative_error(factors.build(factors.max_rank)(images), layer(images)) < EXACT


@pytest.mark.parametrize("bias", [True, False])
def test_svd_of_a_linear_layer_is_the_best_approximation(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(20, 12, bias=bias)
    factors = METHODS["svd"].factorise(layer)
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
    ],
)
def test_every_rank_holds_the_parameters_it_says_and_loses_less_than_the_one_before(
    method: str, layer: nn.Module
) -> None:
    row = METHODS[method]
    groups = getattr(layer, "groups", 1)
    factors = row.factorise(layer)
    errors = [factors.squared_error(rank) for rank in range(1, factors.max_rank + 1)]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(errors))
    assert errors[-1] == pytest.approx(0, abs=1e-6)
    for rank in range(1, factors.max_rank + 1):
        weights = sum(module.weight.numel() for module in factors.build(rank))
        assert weights == row.num_params(layer.weight.shape, groups, rank)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["svd", "spatial", "tucker"]),
    st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 5), st.integers(1, 5)),
)
def test_break_even_is_the_last_rank_that_is_not_larger(method: str, shape: tuple[int, ...]) -> None:
    dense = shape[0] * shape[1] * shape[2] * shape[3]
    row = METHODS[method]
    cap = break_even_rank(method, shape, 1, dense)
    if cap:
        assert row.num_params(shape, 1, cap) <= dense
    if cap < row.max_rank(shape, 1):
        assert row.num_params(shape, 1, cap + 1) > dense


def test_caps_are_those_of_the_paper() -> None:
    # Sec. 3.3: HW / (H + W) for a matrix, k Ci Co / (Ci + Co) for a k x k convolution.
    assert break_even_rank("svd", (1000, 784), 1, 784000) == 784000 // 1784
    assert break_even_rank("spatial", (512, 256, 3, 3), 1, 512 * 256 * 9) == 3 * 512 * 256 // 768
    assert num_params_table("svd", (20, 10), 1, 6, 200) == [30, 60, 90, 120, 150, 180, 200]
    assert num_params_table("svd", (20, 20), 1, 10, 400) == [*range(40, 400, 40), 400]  # rank 10 is as large: dense


@pytest.mark.parametrize("rank", [0, -1, 6])
def test_a_rank_outside_the_range_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=r"rank must lie in 1\.\.5"):
        METHODS["svd"].factorise(nn.Linear(9, 5)).build(rank)
