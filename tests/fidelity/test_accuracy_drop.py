"""Accuracy drops: a bound that holds as often as it says, and the loss at which a drop comes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from compressor.data.images import ImageSet
from compressor.fidelity.accuracy_drop import (
    DROP_EXPONENT,
    MARGIN_DEVIATIONS,
    DropCurve,
    DropEstimator,
    Measurement,
    sampling_weights,
)
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.losses import Losses
from compressor.search.target.accuracy_drop import drop_target


def decisions(rng: np.random.Generator, rate: float, count: int) -> np.ndarray:
    """Points lost on each image where `rate` of the decisions change, three fifths of them for the worse."""
    return rng.choice([100.0, 0.0, -100.0], p=[0.6 * rate, 1.0 - rate, 0.4 * rate], size=count)


def test_the_bound_of_a_drop_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(500):
        curve = DropCurve([Measurement(2.0, decisions(rng, 0.05, 400))], labelled=True)
        kept += curve.at_most(2.0) >= 1.0
    assert 0.92 <= kept / 500 <= 0.995


def test_the_bound_holds_for_the_luckiest_of_several_networks() -> None:
    """Four networks that lose the same, each measured on the same images; the bound of the smallest is asked for."""
    rng = np.random.default_rng(1)
    kept = 0
    for _ in range(300):
        measured = [Measurement(loss, decisions(rng, 0.05, 400)) for loss in (1.0, 1.01, 1.02, 1.03)]
        best = min(measured, key=lambda each: each.drop)
        kept += DropCurve(measured, labelled=True).at_most(best.loss) >= 0.98
    assert kept / 300 >= 0.92


def test_a_limit_is_where_the_bound_is_what_is_asked() -> None:
    rng = np.random.default_rng(2)
    curve = DropCurve([Measurement(loss, decisions(rng, 0.03 * loss**0.5, 2000)) for loss in (0.5, 2.0)], labelled=True)
    assert curve.at_most(curve.limit(1.2)) == pytest.approx(1.2)
    nothing = DropCurve([Measurement(1.0, np.full(50, -3.0))], labelled=False)
    assert nothing.limit(1.0) == np.inf


def test_close_decisions_are_all_looked_at_and_the_others_are_stood_for() -> None:
    targets = torch.randn(1000, 10, generator=torch.Generator().manual_seed(0))
    margins = targets.topk(2).values.diff(dim=1).abs().squeeze(1).numpy()
    # Two outputs of ten move apart by the root of 2 L / 10.
    loss = 5.0 * (np.quantile(margins, 0.2) / MARGIN_DEVIATIONS) ** 2
    weights = [sampling_weights(targets, 1.0001 * loss, np.random.default_rng(seed)) for seed in range(200)]
    assert (weights[0][np.argsort(margins)[:200]] == 1).all()
    assert (weights[0] > 0).sum() == 280
    most = sampling_weights(targets, 100.0 * loss, np.random.default_rng(0))
    assert (most > 0).sum() == 370
    assert weights[0].sum() == pytest.approx(1000)
    flips = (margins > np.quantile(margins, 0.9)).astype(float)  # where hardly any image is looked at
    found = [float((each * flips).mean()) for each in weights]
    assert np.mean(found) == pytest.approx(flips.mean(), abs=3 * np.std(found) / 200**0.5)


def test_a_drop_is_of_top1_with_labels_and_of_the_output_without() -> None:
    torch.manual_seed(0)
    original, other = nn.Linear(6, 4), nn.Linear(6, 4)
    inputs = torch.randn(50, 6)
    outputs, changed = original(inputs).detach(), other(inputs).detach()
    labels = outputs.argmax(1)

    def estimator(images: ImageSet) -> DropEstimator:
        return DropEstimator([FunctionNorm(original, images, torch.device("cpu"))])

    with_labels = estimator(ImageSet(inputs, "", labels=labels))
    assert with_labels.is_labelled
    wrong = float((changed.argmax(1) != labels).double().mean())
    measured = with_labels.measure(other)
    assert measured.drop == pytest.approx(100 * wrong)
    assert measured.loss == pytest.approx(float((changed - outputs).square().sum(1).mean()), rel=1e-5)
    without = estimator(ImageSet(inputs, ""))
    expected = 100 * float((changed - outputs).square().sum() / outputs.square().sum())
    assert without.measure(other).drop == pytest.approx(expected, rel=1e-5)
    foreign = estimator(ImageSet(inputs, "", labels=labels, class_names=["a", "b"]))
    assert not foreign.is_labelled


@pytest.mark.parametrize("rate", [0.1, 0.3, 1.0])
def test_looks_tell_at_which_loss_a_drop_comes(rate: float) -> None:
    """Decisions of a network of known law: what is learnt from many looks is near what the law gives."""
    rng = np.random.default_rng(3)
    evaluations = []
    for loss in np.geomspace(0.05, 5.0, 100):
        changes = decisions(rng, rate * (loss / 20.0) ** DROP_EXPONENT, 100) / 100
        evaluations.append(Losses(np.arange(100), np.full(100, loss), flips=changes))
    target = drop_target(asked=1.0, energy=20.0, num_images=10**9, deviations=1.64, gain=1.0)
    for _ in range(3):
        target = target.learn(evaluations)
    truth = 20.0 * (1.0 / (100 * rate * 0.2)) ** (1 / DROP_EXPONENT)
    assert truth / 3 <= target.upper <= 3 * truth
    careful = drop_target(asked=1.0, energy=20.0, num_images=500, deviations=1.64, gain=1.0).learn(evaluations)
    assert careful.upper < target.upper
    assert (
        target.learn([replace(evaluation, flips=None) for evaluation in evaluations]).upper
        == drop_target(1.0, 20.0, 10**9, 1.64, 1.0).upper
    )
