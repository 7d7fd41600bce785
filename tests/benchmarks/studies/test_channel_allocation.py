"""Widths of groups for a limit on operations, and other orders of channels."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch

from benchmarks.studies.network.channel_allocation import allocate, macs_per_unit, measure_curve
from benchmarks.studies.network.channel_orders import by_norm, by_pivoted_qr
from compressor.channels.costs import ChannelCosts
from compressor.channels.elimination import eliminate
from compressor.channels.grouping import find_groups
from compressor.network.architectures import build_model
from compressor.network.macs import count_macs
from tests.channels.test_elimination import columns, problem, refitted_error
from tests.channels.test_narrowing import widths_at
from tests.channels.test_reduction import Subject


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject()


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_widths_meet_the_limit_and_lose_little_more_than_the_best(subject: Subject, share: float) -> None:
    """The best by the sum of the curves, among all widths; with three groups a multiplier has few plans to offer."""
    costs = ChannelCosts(subject.model, subject.groups, subject.images.batch([0]))
    curves = [measure_curve(subject.model, factors, subject.loss) for factors in subject.factors]
    limit = share * costs.macs(costs.num_units)
    widths = allocate(curves, costs, limit)
    assert costs.macs(widths) <= limit
    assert count_macs(subject.reduction().start(widths), subject.images.batch([0]))[0] == costs.macs(widths)

    def total(plan: Sequence[int]) -> float:
        return sum(
            curve.losses[np.searchsorted(curve.widths, width)] for curve, width in zip(curves, plan, strict=True)
        )

    every = product(*(curve.widths.tolist() for curve in curves))
    assert total(widths) <= 1.5 * min(total(plan) for plan in every if costs.macs(plan) <= limit)


def test_widths_are_multiples_or_all(subject: Subject) -> None:
    factors = subject.factors[0]
    curve = measure_curve(subject.model, factors, subject.loss, multiple=4)
    assert curve.widths.tolist() == [4, 8, 12, 16]
    assert (np.diff(curve.losses) < 0).all()


def test_operations_per_unit_are_the_slopes_of_the_costs() -> None:
    model = build_model("mobilenet_v2", 10).to("meta").eval()
    example = torch.zeros(1, 3, 64, 64, device="meta")
    groups = find_groups(model, example)
    costs = ChannelCosts(model, groups, example)
    widths = np.array(widths_at(groups, 0.6))
    slopes = macs_per_unit(costs, widths)
    for number in range(len(groups)):
        more = widths.copy()
        more[number] += 1
        assert costs.macs(more) - costs.macs(widths) == pytest.approx(slopes[number])


def test_other_orders_are_nested_and_no_better_by_their_own_measure() -> None:
    rng = np.random.default_rng(1)
    covariance, weight, gradients = problem(rng, 24, 4)
    importance = weight.T @ gradients @ weight
    best = eliminate([covariance], [importance], 12)
    for other in (by_norm(covariance, importance, 12), by_pivoted_qr(covariance, 12)):
        assert sorted(other.order) == list(range(12))
        assert (np.diff(other.losses) <= 0).all()
        errors = [refitted_error(covariance, weight, gradients, columns(found.order[:6], 2)) for found in (best, other)]
        assert errors[0] <= errors[1]


def test_pivoted_qr_puts_what_others_predict_last() -> None:
    samples = np.random.default_rng(2).standard_normal((300, 5))
    samples[:, 3] = samples[:, 0] - samples[:, 2]
    order = by_pivoted_qr(np.cov(samples.T), 5).order
    assert order[-1] in (0, 2, 3)
