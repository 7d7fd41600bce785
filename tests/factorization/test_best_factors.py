"""Factors fitted to second moments are the best where they should be."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.factorization.alternating import alternate
from compressor.factorization.least_squares import NestedRefit
from compressor.factorization.moments import LayerMoments
from compressor.factorization.registry import METHODS
from tests.factorization.fitted import LAYERS, as_matrix, last_of, output_error, random_moments, spread


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
