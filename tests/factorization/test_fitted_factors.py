"""Factors fitted to second moments: exact at full rank, with the error they report."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressor.factorization.base import Factors
from compressor.factorization.moments import LayerMoments, with_floor
from compressor.factorization.registry import METHODS, find_break_even_rank
from compressor.factorization.two_factor import first_factor
from tests.factorization.fitted import (
    EXACT,
    LAYERS,
    as_matrix,
    convolutions,
    identity_moments,
    output_error,
    random_moments,
    relative_error,
    scaled,
)

# Exact at full rank


@pytest.mark.parametrize("method", ["spatial", "tucker", "cp", "interpolative"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_full_rank_is_the_layer_for_every_geometry(method: str, data: st.DataObject) -> None:
    layer = data.draw(convolutions((1, 2) if method == "spatial" else (1,), largest=3 if method == "cp" else 4))
    factors = METHODS[method].factorize(layer, random_moments(layer))
    assert factors.max_rank == METHODS[method].max_rank(layer.weight.shape, layer.groups)
    images = torch.randn(2, layer.in_channels, 11, 12)
    with torch.inference_mode():
        assert relative_error(factors.build(factors.max_rank)(images), layer(images)) < EXACT


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2), st.booleans())
def test_full_rank_of_a_1x1_convolution(
    groups: int, num_in: int, num_out: int, stride: int, padding: int, bias: bool
) -> None:
    layer = nn.Conv2d(groups * num_in, groups * num_out, 1, stride, padding, groups=groups, bias=bias)
    factors = METHODS["svd"].factorize(layer, random_moments(layer))
    images = torch.randn(2, layer.in_channels, 7, 8)
    with torch.inference_mode():
        assert relative_error(factors.build(factors.max_rank)(images), layer(images)) < EXACT


@pytest.mark.parametrize("method", ["svd", "interpolative"])
@pytest.mark.parametrize(("num_in", "num_out"), [(7, 12), (12, 7)])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 2), ()])
def test_full_rank_of_a_linear_layer_on_inputs_of_any_shape(
    method: str, num_in: int, num_out: int, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(num_in, num_out)
    candidate = METHODS[method].factorize(layer, random_moments(layer)).build(7)
    inputs = torch.randn(*shape, num_in)
    with torch.inference_mode():
        assert relative_error(candidate(inputs), layer(inputs)) < EXACT


@pytest.mark.parametrize(("method", "layer"), LAYERS)
def test_every_rank_has_the_reported_error_and_no_bias(method: str, layer: nn.Module) -> None:
    moments = random_moments(layer, seed=1)
    factors = METHODS[method].factorize(layer, moments)
    energy = output_error(layer, scaled(layer, 0.0), moments)[1]
    for rank in range(1, factors.max_rank + 1):
        mean, variance = output_error(layer, factors.build(rank), moments)
        assert factors.squared_error(rank) == pytest.approx(variance, rel=1e-3, abs=1e-8 * energy)
        assert float(mean.abs().max()) < 1e-5 * max(1.0, energy**0.5)


@pytest.mark.parametrize(("method", "layer"), LAYERS)
def test_the_error_falls_with_the_rank_to_nothing(method: str, layer: nn.Module) -> None:
    factors = METHODS[method].factorize(layer, random_moments(layer, seed=2))
    # Beyond break-even CP's components need not: those of one rank are not among those of the next.
    groups = getattr(layer, "groups", 1)
    last = (
        factors.max_rank
        if method != "cp"
        else find_break_even_rank(method, layer.weight.shape, groups, layer.weight.numel())
    )
    errors = [factors.squared_error(rank) for rank in range(1, last + 1)]
    assert all(later <= earlier * (1 + 1e-9) + 1e-9 for earlier, later in pairwise(errors)), errors
    assert factors.squared_error(factors.max_rank) < 1e-6 * errors[0]


@pytest.mark.parametrize(("method", "layer"), [row for row in LAYERS if METHODS[row[0]].two_factors])
def test_refitted_factors_have_the_reported_error_and_beat_the_truncated_weight(method: str, layer: nn.Module) -> None:
    moments = random_moments(layer, seed=3)
    two_factors = METHODS[method].two_factors
    assert two_factors is not None
    weight = two_factors(layer)
    limit = weight.max_rank - 1
    refitted = weight.refitted(moments, limit)
    assert refitted.max_rank == limit
    for rank in range(1, limit + 1):
        mean, variance = output_error(layer, refitted.build(rank), moments)
        assert refitted.squared_error(rank) == pytest.approx(variance, rel=1e-3)
        assert float(mean.abs().max()) < 1e-4
        assert variance < output_error(layer, weight.build(rank), moments)[1]
        first = first_factor(refitted.build(rank), getattr(layer, "groups", 1))
        torch.testing.assert_close(first, first_factor(weight.build(rank), getattr(layer, "groups", 1)))


@pytest.mark.parametrize(("method", "layer"), LAYERS)
def test_no_worse_than_the_truncated_weight_with_the_same_parameters(method: str, layer: nn.Module) -> None:
    """With equal weights of outputs, as in the error; the structured methods are only close to the optimum."""
    moments = random_moments(layer, seed=4)
    alike = identity_moments(getattr(layer, "groups", 1), 1, moments.outputs.shape[-1]).outputs
    moments = LayerMoments(moments.covariance, moments.mean, alike)
    weight, fitted = (METHODS[method].factorize(layer, *arguments) for arguments in ((), (moments,)))
    ratios = [
        fitted.squared_error(rank) / output_error(layer, weight.build(rank), moments)[1]
        for rank in range(1, weight.max_rank)
        if fitted.squared_error(rank) > 1e-6 * fitted.squared_error(1)
    ]
    assert max(ratios) < (1 if method in ("svd", "cp") else 1.25)
    assert float(np.mean(ratios)) < 0.98


def test_a_limit_keeps_the_same_factors_up_to_it() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3)
    moments = random_moments(layer)
    whole, limited = (METHODS["spatial"].factorize(layer, moments, **more) for more in ({}, {"limit": 5}))
    assert (whole.max_rank, limited.max_rank) == (12, 5)
    for rank in (1, 5):
        assert limited.squared_error(rank) == pytest.approx(whole.squared_error(rank))
        for one, two in zip(limited.build(rank).parameters(), whole.build(rank).parameters(), strict=True):
            torch.testing.assert_close(one, two)
    with pytest.raises(ValueError, match=r"rank must lie in 1\.\.5"):
        limited.build(6)


# Singular moments


def test_the_floor_is_a_share_of_the_mean_diagonal_of_each_group() -> None:
    diagonals = torch.tensor([[4.0, 0.0], [0.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    found = with_floor(torch.diag_embed(diagonals), 0.1)
    expected = torch.diag_embed(torch.tensor([[4.2, 0.2], [1.0, 1.0], [1.2, 3.2]], dtype=torch.float64))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rank_of_covariance", [0, 1, 5])
@pytest.mark.parametrize(
    ("method", "layer"),
    [
        ("svd", nn.Linear(18, 9)),
        ("spatial", nn.Conv2d(2, 6, 3)),
        ("interpolative", nn.Linear(9, 14)),
        ("tucker", nn.Conv2d(4, 6, 3)),
        ("cp", nn.Conv2d(3, 4, 3)),
    ],
)
def test_with_a_floor_any_covariance_will_do(method: str, layer: nn.Module, rank_of_covariance: int) -> None:
    size, num_out = layer.weight[0].numel(), len(layer.weight)
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(1, size, rank_of_covariance, generator=generator, dtype=torch.float64)
    outputs = torch.zeros(1, num_out, num_out, dtype=torch.float64)
    mean = torch.randn(1, size, generator=generator, dtype=torch.float64)
    moments = LayerMoments(with_floor(samples @ samples.mT, 0.01), mean, with_floor(outputs, 0.01))
    factors: Factors = METHODS[method].factorize(layer, moments)
    full = output_error(layer, factors.build(factors.max_rank), moments)
    assert float(full[0].abs().max()) < 1e-3
    assert full[1] < 1e-5 * max(1e-3, factors.squared_error(1))
    assert all(bool(part.isfinite().all()) for part in factors.build(1).state_dict().values())


def test_with_identity_moments_factors_are_those_of_plain_truncation() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, (3, 2))
    plain, identity = (METHODS["spatial"].factorize(layer, *rest) for rest in ((), (identity_moments(1, 24, 6),)))
    for rank in range(1, 12):
        assert identity.squared_error(rank) == pytest.approx(plain.squared_error(rank), rel=1e-4, abs=1e-6)
        one, two = (as_matrix(layer, factors.build(rank))[0] for factors in (plain, identity))
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("method", "layer"), LAYERS)
def test_a_layer_of_zeros_stays_one(method: str, layer: nn.Module) -> None:
    zeros = scaled(layer, 0.0)
    factors = METHODS[method].factorize(zeros, random_moments(zeros))
    for rank in (1, factors.max_rank):
        weight, bias = as_matrix(zeros, factors.build(rank))
        assert float(weight.abs().max()) == float(bias.abs().max()) == 0
