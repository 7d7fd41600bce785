"""Factors fitted to second moments: exact at full rank, with the error they report, optimal where they should be."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.factorization.alternating import alternate
from compressor.factorization.base import Factors
from compressor.factorization.least_squares import NestedRefit
from compressor.factorization.moments import LayerMoments, with_floor
from compressor.factorization.registry import METHODS, find_break_even_rank
from compressor.factorization.two_factor import first_factor


def identity_moments(groups: int, num_inputs: int, num_outputs: int) -> LayerMoments:
    """The moments under which the best factors are those of plain truncation: all identities, and no mean."""
    return LayerMoments(
        covariance=torch.eye(num_inputs, dtype=torch.float64).expand(groups, -1, -1),
        mean=torch.zeros(groups, num_inputs, dtype=torch.float64),
        outputs=torch.eye(num_outputs, dtype=torch.float64).expand(groups, -1, -1),
    )


MODES = ("zeros", "reflect", "replicate", "circular")
EXACT = 1e-4


def spread(size: int, generator: torch.Generator, groups: int = 1) -> Tensor:
    """Random covariances (groups, size, size) whose standard deviations lie between 0.2 and 2."""
    basis, _ = torch.linalg.qr(torch.randn(groups, size, size, generator=generator, dtype=torch.float64))
    deviations = 0.2 + 1.8 * torch.rand(groups, size, generator=generator, dtype=torch.float64)
    return (basis * deviations.square()[:, None]) @ basis.mT


def random_moments(layer: nn.Module, seed: int = 0) -> LayerMoments:
    generator = torch.Generator().manual_seed(seed)
    groups = getattr(layer, "groups", 1)
    num_out, num_in = len(layer.weight) // groups, layer.weight[0].numel()
    mean = torch.randn(groups, num_in, generator=generator, dtype=torch.float64)
    return LayerMoments(spread(num_in, generator, groups), mean, spread(num_out, generator, groups))


def as_matrix(layer: nn.Module, module: nn.Module) -> tuple[Tensor, Tensor]:
    """What `module` does to one patch of `layer`: weight (groups, Co/groups, n) and bias (groups, Co/groups).

    Found from every patch with a single one, for layers without padding.
    """
    groups, num_in = getattr(layer, "groups", 1), layer.weight[0].numel()
    shape = (layer.in_features,) if isinstance(layer, nn.Linear) else (layer.in_channels, *layer.kernel_size)
    with torch.inference_mode():
        bias = module(torch.zeros(1, *shape)).double().flatten(1)
        inputs = torch.eye(num_in).repeat(1, groups).reshape(num_in, *shape)
        given = module(inputs).double().flatten(1) - bias
    return given.T.reshape(groups, -1, num_in), bias.reshape(groups, -1)


def output_error(layer: nn.Module, module: nn.Module, moments: LayerMoments) -> tuple[Tensor, float]:
    """Mean (groups, Co/groups) of the change of the outputs, and its variance summed over outputs."""
    (weight, bias), (changed, changed_bias) = as_matrix(layer, layer), as_matrix(layer, module)
    difference = changed - weight
    mean = torch.einsum("gon,gn->go", difference, moments.mean) + changed_bias - bias
    return mean, float(((difference @ moments.covariance) * difference).sum())


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@st.composite
def convolutions(draw: st.DrawFn, groups: tuple[int, ...] = (1, 2), largest: int = 4) -> nn.Conv2d:
    """Convolutions of every geometry that an 11 x 12 image can take."""
    num_groups = draw(st.sampled_from(groups))
    padding: Any = draw(st.sampled_from(["same", "valid", "numbers"]))
    stride = (1, 1) if padding == "same" else (draw(st.integers(1, 3)), draw(st.integers(1, 2)))
    if padding == "numbers":
        padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    torch.manual_seed(draw(st.integers(0, 1000)))
    return nn.Conv2d(
        num_groups * draw(st.integers(1, largest)),
        num_groups * draw(st.integers(1, largest)),
        (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        stride=stride,
        padding=padding,
        dilation=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        groups=num_groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(MODES)),
    ).eval()


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


# The reported error

torch.manual_seed(0)
LAYERS = [
    ("svd", nn.Linear(14, 9)),
    ("svd", nn.Linear(9, 14, bias=False)),
    ("svd", nn.Conv2d(12, 8, 1, groups=2)),
    ("spatial", nn.Conv2d(4, 6, 3)),
    ("spatial", nn.Conv2d(6, 8, (3, 2), groups=2)),
    ("spatial", nn.Conv2d(3, 8, (1, 5), bias=False)),
    ("tucker", nn.Conv2d(6, 8, 3)),
    ("tucker", nn.Conv2d(3, 12, (2, 3), bias=False)),
    ("cp", nn.Conv2d(4, 5, 3)),
    ("interpolative", nn.Linear(9, 14)),
    ("interpolative", nn.Conv2d(4, 8, 2)),
    ("interpolative", nn.Conv2d(3, 8, 2, bias=False)),
]


@pytest.mark.parametrize(("method", "layer"), LAYERS)
def test_every_rank_has_the_reported_error_and_no_bias(method: str, layer: nn.Module) -> None:
    moments = random_moments(layer, seed=1)
    factors = METHODS[method].factorize(layer, moments)
    energy = output_error(layer, scaled(layer, 0.0), moments)[1]
    for rank in range(1, factors.max_rank + 1):
        mean, variance = output_error(layer, factors.build(rank), moments)
        assert factors.squared_error(rank) == pytest.approx(variance, rel=1e-3, abs=1e-8 * energy)
        assert float(mean.abs().max()) < 1e-5 * max(1.0, energy**0.5)


def scaled(layer: nn.Module, scale: float) -> nn.Module:
    """The layer with other weights."""
    other = type(layer)(*shape_of(layer), groups=layer.groups) if isinstance(layer, nn.Conv2d) else None
    other = other or nn.Linear(layer.in_features, layer.out_features)
    other.weight.data = scale * layer.weight.detach()
    other.bias.data.zero_()
    return other


def shape_of(layer: nn.Conv2d) -> tuple[Any, ...]:
    return layer.in_channels, layer.out_channels, layer.kernel_size


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


# The best


def last_of(module: nn.Module) -> nn.Module:
    return module.rest if hasattr(module, "rest") else module[-1]


@pytest.mark.parametrize(("method", "layer"), LAYERS)
def test_the_last_factor_is_the_best_for_the_others(method: str, layer: nn.Module) -> None:
    """Any small change of it or of the bias increases the error, for any weights of outputs."""
    moments = random_moments(layer, seed=5)
    candidate = METHODS[method].factorize(layer, moments).build(2)
    mean, best = output_error(layer, candidate, moments)
    last = last_of(candidate)
    generator = torch.Generator().manual_seed(0)
    weight, scale = last.weight.detach().clone(), float(last.weight.std())
    for _ in range(10):
        last.weight.data = weight + 0.03 * scale * torch.randn(weight.shape, generator=generator)
        assert output_error(layer, candidate, moments)[1] > best
    last.weight.data = weight
    last.bias.data += 0.01
    assert output_error(layer, candidate, moments)[0].abs().max() > mean.abs().max()


def optimum(weight: Tensor, moments: LayerMoments, rank: int) -> float:
    """Least tr(G (W~ - W) C (W~ - W)^T) over all W~ of a rank, by whitening with symmetric roots (Eckart-Young)."""
    total = 0.0
    for matrix, covariance, outputs in zip(weight.double(), moments.covariance, moments.outputs, strict=True):
        whitened = symmetric_root(outputs.numpy()) @ matrix.numpy() @ symmetric_root(covariance.numpy())
        total += float((np.linalg.svd(whitened, compute_uv=False)[rank:] ** 2).sum())
    return total


def symmetric_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)) @ vectors.T


@pytest.mark.parametrize("layer", [nn.Linear(14, 9), nn.Linear(6, 15), nn.Conv2d(12, 10, 1, groups=2)])
def test_svd_with_moments_is_the_optimum(layer: nn.Module) -> None:
    moments = random_moments(layer, seed=6)
    factors = METHODS["svd"].factorize(layer, moments)
    weight = as_matrix(layer, layer)[0]
    for rank in range(1, factors.max_rank):
        error = as_matrix(layer, factors.build(rank))[0] - weight
        found = float(((moments.outputs @ error @ moments.covariance) * error).sum())
        assert found == pytest.approx(optimum(weight, moments, rank), rel=1e-3)


def random_split(
    kw: int, seed: int = 0, groups: int = 2, num_out: int = 5, num_in: int = 6, rank: int = 3
) -> tuple[Tensor, LayerMoments, Tensor]:
    """A kernel (groups, Co/groups, a, kw), moments for it and a first factor."""
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(groups, num_out, num_in, kw, generator=generator, dtype=torch.float64)
    moments = LayerMoments(
        spread(num_in * kw, generator, groups),
        torch.zeros(groups, num_in * kw, dtype=torch.float64),
        spread(num_out, generator, groups),
    )
    first, _ = torch.linalg.qr(torch.randn(groups, num_in, rank, generator=generator, dtype=torch.float64))
    return kernel, moments, first.mT


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(2, 6), st.integers(0, 1000))
def test_nested_refit_is_a_direct_solve_at_every_rank(
    kw: int, groups: int, num_out: int, num_in: int, seed: int
) -> None:
    kernel, moments, first = random_split(kw, seed, groups, num_out, num_in, rank=num_in)
    refit = NestedRefit(kernel, moments, first)
    eye = torch.eye(kw, dtype=torch.float64)
    for rank in range(1, num_in + 1):
        second = refit.second(rank)
        assert second.shape == (groups, num_out, rank, kw)
        error = 0.0
        for group in range(groups):
            # z = T x: one row for every feature and column of the patch, patches in the order of the weight.
            features = torch.einsum("ka,wv->kwav", first[group, :rank], eye).reshape(rank * kw, num_in * kw)
            covariance, weight = moments.covariance[group], kernel[group].flatten(1)
            gram, cross = features @ covariance @ features.T, features @ covariance @ weight.T
            best = torch.linalg.solve(gram, cross).T
            torch.testing.assert_close(second[group].flatten(1), best, rtol=1e-5, atol=1e-6)
            error += float(((weight - best @ features) @ covariance * (weight - best @ features)).sum())
        assert refit.squared_error(rank) == pytest.approx(error, rel=1e-6, abs=1e-6)


def weighted_error(kernel: Tensor, moments: LayerMoments, first: Tensor, second: Tensor) -> float:
    """tr(G (W~ - W) C (W~ - W)^T), summed over groups."""
    error = (torch.einsum("gokw,gka->goaw", second, first) - kernel).flatten(2)
    return float(((moments.outputs @ error @ moments.covariance) * error).sum())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(2, 6), st.integers(3, 6), st.integers(0, 1000))
@example(1, 2, 2, 4, 565)  # one group converges before the other
def test_refitting_both_factors_in_turn_never_increases_the_error(
    kw: int, groups: int, num_out: int, num_in: int, seed: int
) -> None:
    kernel, moments, first = random_split(kw, seed, groups, num_out, num_in, rank=2)
    errors = []
    for _ in range(5):
        errors.append(weighted_error(kernel, moments, first, NestedRefit(kernel, moments, first).second(2)))
        first = alternate(kernel, moments, first, sweeps=1)
    assert all(later <= earlier * (1 + 1e-6) + 1e-9 for earlier, later in pairwise(errors)), errors
    one, two = alternate(kernel, moments, first), alternate(kernel, moments, alternate(kernel, moments, first, 1), 1)
    torch.testing.assert_close(one, two)


def test_refitting_in_turn_helps_where_columns_differ() -> None:
    kernel, moments, first = random_split(kw=3, seed=1)
    before = weighted_error(kernel, moments, first, NestedRefit(kernel, moments, first).second(3))
    better = alternate(kernel, moments, first)
    assert weighted_error(kernel, moments, better, NestedRefit(kernel, moments, better).second(3)) < 0.8 * before


@pytest.mark.parametrize("seed", range(3))
def test_refitting_in_turn_reaches_the_optimum_of_a_matrix(seed: int) -> None:
    kernel, moments, first = random_split(kw=1, seed=seed)
    first = alternate(kernel, moments, first, sweeps=300)
    error = weighted_error(kernel, moments, first, NestedRefit(kernel, moments, first).second(3))
    assert error == pytest.approx(optimum(kernel[..., 0], moments, 3), rel=1e-4)


def test_the_first_factor_given_the_second_is_a_direct_solve() -> None:
    """Against the solution of the large system, which enough conjugate gradient steps reach."""
    kernel, moments, first = random_split(kw=2, groups=1, num_in=3, rank=2)
    second = NestedRefit(kernel, moments, first).second(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compressor.factorization.alternating.CONJUGATE_STEPS", 50)
        patch.setattr("compressor.factorization.alternating.TOLERANCE", 1e-30)
        found = alternate(kernel, moments, first, sweeps=1)
    # vec of sum_k second[o, k, w] first[k, a], weighted by the roots of both sides.
    design = torch.einsum("okw,ab->oawkb", second[0], torch.eye(3, dtype=torch.float64)).reshape(5, 6, -1)
    roots = [torch.linalg.cholesky(matrix[0]).T for matrix in (moments.outputs, moments.covariance)]
    design, wanted = (torch.einsum("po,qn,on...->pq...", *roots, part) for part in (design, kernel[0].flatten(1)))
    best = torch.linalg.lstsq(design.flatten(0, 1), wanted.flatten()[:, None]).solution.reshape(2, 3)
    projections = [rows.T @ torch.linalg.pinv(rows.T) for rows in (found[0], best)]
    torch.testing.assert_close(*projections, rtol=1e-4, atol=1e-5)


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


# Nested ranks


def check_nested(layer: nn.Conv2d | nn.Linear, factors: Factors, inputs: Tensor) -> None:
    """The first features make up every rank."""
    nested = factors.nested(factors.max_rank)
    assert nested is not None
    with torch.inference_mode():
        features = nested.features(inputs)
        for rank in range(1, factors.max_rank + 1):
            truth, kept = factors.build(rank)(inputs), rank * nested.width
            if nested.channels_last:
                found = features[..., :kept] @ nested.outputs[0, :kept]
            else:
                by_group = features.unflatten(1, (layer.groups, -1))[:, :, :kept]
                found = torch.einsum("bgs...,gso->bgo...", by_group, nested.outputs[:, :kept]).flatten(1, 2)
            if nested.bias is not None:
                found = found + nested.bias.reshape(-1, *([1] * (0 if nested.channels_last else 2)))
            assert float((found - truth).abs().max()) < EXACT * max(1.0, float(truth.abs().max()))


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.booleans())
def test_nested_ranks_of_a_convolution_are_those_built_one_by_one(layer: nn.Conv2d, fitted: bool) -> None:
    factors = METHODS["spatial"].factorize(layer, *([random_moments(layer)] if fitted else []))
    check_nested(layer, factors, torch.randn(2, layer.in_channels, 11, 12))


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(7, 5), ()),
        (nn.Linear(5, 7, bias=False), (3, 2)),
        (nn.Conv2d(4, 6, 1, groups=2), (5, 5)),
        (nn.Conv2d(6, 4, 1, stride=2, bias=False), (5, 5)),
    ],
)
def test_nested_ranks_of_a_matrix_are_those_built_one_by_one(
    layer: nn.Module, shape: tuple[int, ...], fitted: bool
) -> None:
    factors = METHODS["svd"].factorize(layer, *([random_moments(layer)] if fitted else []))
    num_in = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    check_nested(
        layer, factors, torch.randn(2, *((*shape, num_in) if isinstance(layer, nn.Linear) else (num_in, *shape)))
    )


@pytest.mark.parametrize("rank", [0, 6])
def test_nested_ranks_beyond_the_maximum_are_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="rank must lie in"):
        METHODS["svd"].factorize(nn.Linear(7, 5)).nested(rank)


@pytest.mark.parametrize("method", ["tucker", "cp", "interpolative"])
def test_other_methods_have_no_nested_ranks(method: str) -> None:
    assert METHODS[method].factorize(nn.Conv2d(4, 6, 3)).nested(2) is None
