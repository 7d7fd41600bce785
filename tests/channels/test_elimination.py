"""The nested order of channels: its exact down-dates against direct least squares."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.arrays import Array
from compressor.channels import elimination
from compressor.channels.elimination import eliminate


def problem(rng: np.random.Generator, inputs: int, outputs: int) -> tuple[Array, Array, Array]:
    """Covariance, weight and gradient moments of a layer."""
    samples = rng.standard_normal((3 * inputs + 5, inputs)) @ rng.standard_normal((inputs, inputs))
    covariance = samples.T @ samples / len(samples) + 1e-2 * np.eye(inputs)
    root = rng.standard_normal((outputs, outputs))
    return covariance, rng.standard_normal((outputs, inputs)), root @ root.T


def refitted_error(covariance: Array, weight: Array, gradients: Array, kept: Array) -> float:
    """tr(G (W~ - W) C (W~ - W)^T) with the weights of least squares for the kept inputs."""
    change = -weight.copy()
    if len(kept):
        inner = np.linalg.inv(covariance[np.ix_(kept, kept)])
        change[:, kept] += weight @ covariance[:, kept] @ inner
    return float(np.trace(gradients @ change @ covariance @ change.T))


def columns(units: Array, size: int) -> Array:
    return (np.sort(units)[:, None] * size + np.arange(size)).ravel()


@settings(max_examples=40, deadline=None)
@given(
    units=st.integers(1, 14),
    size=st.integers(1, 4),
    outputs=st.lists(st.integers(1, 6), min_size=1, max_size=2),
    pending=st.sampled_from([1, 3, 64]),
    seed=st.integers(0, 999),
)
def test_losses_are_those_of_least_squares_at_every_width(
    units: int, size: int, outputs: list[int], pending: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    readers = [problem(rng, units * size, count) for count in outputs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elimination, "PENDING_COLUMNS", pending)
        found = eliminate([c for c, _, _ in readers], [w.T @ g @ w for _, w, g in readers], units)
    assert sorted(found.order) == list(range(units))
    assert found.losses[-1] == 0
    for width in range(units + 1):
        kept = columns(found.order[:width], size)
        assert found.losses[width] == pytest.approx(sum(refitted_error(*reader, kept) for reader in readers), rel=1e-6)


def test_single_precision_orders_the_same_units() -> None:
    rng = np.random.default_rng(0)
    covariance, weight, gradients = problem(rng, 96, 20)
    importance = weight.T @ gradients @ weight
    exact = eliminate([covariance], [importance.copy()], 32)
    found = eliminate([covariance.astype(np.float32)], [importance.astype(np.float32)], 32)
    assert found.order.tolist() == exact.order.tolist()
    np.testing.assert_allclose(found.losses, exact.losses, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(units=st.integers(2, 9), size=st.integers(1, 3), seed=st.integers(0, 999))
def test_every_step_removes_the_unit_that_costs_least(units: int, size: int, seed: int) -> None:
    covariance, weight, gradients = problem(np.random.default_rng(seed), units * size, 4)
    found = eliminate([covariance], [weight.T @ gradients @ weight], units)
    for width in range(units, 0, -1):
        left = found.order[:width]
        without = [left[left != unit] for unit in left]
        errors = [refitted_error(covariance, weight, gradients, columns(rest, size)) for rest in without]
        assert found.losses[width - 1] == pytest.approx(min(errors), rel=1e-6)


def test_copies_and_channels_that_are_not_read_go_first_and_cost_nothing() -> None:
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((200, 6))
    samples[:, 4] = 2 * samples[:, 1]
    weight = rng.standard_normal((3, 6))
    weight[:, 2] = 0
    covariance = samples.T @ samples / 200 + 1e-9 * np.eye(6)
    found = eliminate([covariance], [weight.T @ weight], 6)
    assert found.losses[4] < 1e-6 < found.losses[3]
    assert 2 in found.order[4:]
    assert {1, 4} & set(found.order[4:].tolist())
