"""Decisions: the largest output, or the sign of a single one; a quantity decides nothing."""

import numpy as np
import pytest
import torch
from torch import nn

from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.fidelity.accuracy_drop import DropEstimator, sampling_weights
from compressor.fidelity.decisions import agreement, decide, margins, share
from compressor.fidelity.evaluation import TestEvaluator
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.risk import Risk, compare_risks, loss_of_guessing

CPU = torch.device("cpu")


def column(*values):
    return torch.tensor(values)[:, None]


@pytest.fixture(scope="module")
def signed():
    """A linear network of one output, its labels by sign, and a copy that decides otherwise on a third of images."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(300, 4, generator=generator)
    network, other = (nn.Linear(4, 1, bias=False).requires_grad_(False) for _ in range(2))
    network.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    other.weight.copy_(torch.tensor([[0.5, 0.866, 0.0, 0.0]]))  # turned by 60 degrees
    images = ImageSet(data, "points", labels=(data[:, 0] > 0).long())
    return network, other, images


def test_the_largest_output_or_the_sign_decides():
    assert decide(torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])).tolist() == [1, 0]
    assert decide(column(-1.0, 3.0, 0.0)).tolist() == [0, 1, 0]
    assert margins(torch.tensor([[0.0, 2.0, 1.5]])).tolist() == [0.5]
    assert margins(column(-1.0, 3.0)).tolist() == [1.0, 3.0]


def test_agreement_by_sign_where_a_sign_decides():
    targets = column(-2.0, -1.0, 1.0, 2.0)
    assert agreement(targets, targets) == 1
    assert agreement(column(1.0, -1.0, -1.0, 2.0), targets) == 0.5
    assert agreement(-targets, targets) == 0
    assert agreement(torch.eye(3), torch.eye(3)) == 1


@pytest.mark.parametrize("targets", [column(1.0, 2.0, 30.0), column(-1.0, -5.0)])
def test_a_quantity_has_no_agreement(targets):
    assert agreement(targets + 0.1, targets) is None


def test_flips_and_accuracy_of_one_output_are_by_sign(signed):
    network, other, images = signed
    norm = FunctionNorm(network, images, CPU)
    flips = norm.losses(other, np.arange(300)).flips
    changed = share((images.data @ other.weight.T > 0)[:, 0] != (images.data[:, 0] > 0))
    assert 0.25 < changed < 0.42
    assert flips.sum() / 300 == pytest.approx(changed)  # the original is right everywhere
    metrics = TestEvaluator(norm).evaluate(other)
    assert (metrics.top1, metrics.top5) == (pytest.approx(1 - changed), None)
    estimator = DropEstimator([norm])
    assert estimator.is_labelled
    assert estimator.measure(other).drop == pytest.approx(100 * changed)
    sampled = estimator.importance_sampled(0.01, seed=0)
    assert sampled.image_passes < 300


def test_images_near_zero_are_close_to_another_decision():
    targets = torch.linspace(-10, 10, 201)[:, None]
    weights = sampling_weights(targets, 0.01, np.random.default_rng(0))
    assert (weights[np.abs(targets[:, 0].numpy()) < 0.5] == 1).all()
    assert weights.sum() == pytest.approx(201)


def test_risks_of_one_output(signed):
    network, other, images = signed
    assert loss_of_guessing("risk", 1) == pytest.approx(np.log(2))
    assert loss_of_guessing("error", 1) == 0.5
    norm = FunctionNorm(network, images, CPU)
    pair = compare_risks(norm.targets, network(images.data) * 0, images.labels)
    assert pair.compressed == pytest.approx(np.log(2))
    assert pair.original < pair.compressed
    error = Risk(norm, "error")
    assert error.losses(network, np.arange(300)).values.sum() == 0
    assert 0.25 < error.losses(other, np.arange(300)).mean < 0.42


def test_one_output_tells_two_classes_apart_and_no_more(signed):
    network, _, images = signed
    three = ImageSet(images.data, "points", labels=torch.arange(300) % 3)
    norm = FunctionNorm(network, three, CPU)
    assert norm.labels is None
    with pytest.raises(InputError, match="a single output, whose sign tells two classes apart"):
        Risk(norm, "risk")
