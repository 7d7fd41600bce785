"""The pieces of reconstruction: ridge regression, last factors, statistics of batch norms."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from compressor.data.batches import from_batches
from compressor.factorization.interpolative import Interpolated
from compressor.network.calibration.moments import RunningMoments
from compressor.recovery import reconstruction
from compressor.recovery.reconstruction import LAST_FLOOR, estimate_statistics, last_factor, solve
from tests.recovery.subjects import CPU, Subject


@pytest.mark.parametrize("groups", [1, 3])
def test_solving_is_ridge_regression_towards_what_is_there(groups: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, groups, 4)) + 2, rng.standard_normal((50, groups, 3)) - 1
    present = rng.standard_normal((groups, 3, 4))
    moments = RunningMoments(groups)
    moments.add(torch.from_numpy(x).flatten(1), torch.from_numpy(y).flatten(1))
    weight, bias = solve(moments, torch.from_numpy(present.reshape(3 * groups, 4, 1, 1)), 0.1)
    assert weight.shape == (3 * groups, 4, 1, 1)
    for group in range(groups):
        one, two = (part[:, group] - part[:, group].mean(0) for part in (x, y))
        covariance = one.T @ one / 50
        ridge = 0.1 * np.trace(covariance) / 4 * np.eye(4)
        best = np.linalg.solve(covariance + ridge, one.T @ two / 50 + ridge @ present[group].T).T
        part = slice(3 * group, 3 * group + 3)
        np.testing.assert_allclose(weight[part, :, 0, 0], best, rtol=1e-5)
        means = y[:, group].mean(0) - best @ x[:, group].mean(0)
        np.testing.assert_allclose(bias[part], means, rtol=1e-5)


def test_solving_without_data_leaves_what_is_there() -> None:
    """The second input never varies: what is known of it stays."""
    x = torch.randn(200, 2, dtype=torch.float64) * torch.tensor([1.0, 0.0])
    moments = RunningMoments(1)
    moments.add(x, 3 * x[:, :1])
    weight, _ = solve(moments, torch.tensor([[0.0, 7.0]]), LAST_FLOOR)
    assert float(weight[0, 0]) == pytest.approx(3, rel=1e-2)
    assert float(weight[0, 1]) == pytest.approx(7)


def test_the_last_factor_of_an_interpolation_gives_the_outputs_that_are_not_kept() -> None:
    order = torch.tensor([2, 0, 3, 1, 4])  # of every output its position among kept and rest
    module = Interpolated(nn.Linear(3, 2), nn.Linear(2, 3), order)
    final, outputs = last_factor(module)
    assert final is module.rest
    assert outputs is not None
    inputs = torch.randn(9, 3)
    torch.testing.assert_close(module(inputs)[:, outputs], module.rest(module.keep(inputs)))
    chain = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5))
    assert last_factor(chain) == (chain[1], None)


@pytest.mark.parametrize("counts", [[64], [33], [32, 1], [40, 9]])
def test_statistics_are_the_averages_over_batches(counts: Sequence[int]) -> None:
    """A last batch of one image would have no variance, and is left out."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)).eval()
    images = from_batches([torch.randn(count, 4) + 2 for count in counts], sum(counts))
    estimate_statistics(network, [network[1]], images, CPU)
    assert not any(module.training for module in network.modules())
    assert network[1].momentum == 0.1
    with torch.inference_mode():
        hidden = network[0](images.batch(slice(None)))
    parts = [part for part in hidden.split(32) if len(part) > 1]
    torch.testing.assert_close(network[1].running_mean, torch.stack([part.mean(0) for part in parts]).mean(0))
    torch.testing.assert_close(network[1].running_var, torch.stack([part.var(0) for part in parts]).mean(0))


def test_norms_without_statistics_of_their_own_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, track_running_stats=False), nn.GroupNorm(2, 8))
    images = from_batches([torch.randn(64, 8, 4, 4)], 64)
    monkeypatch.setattr(reconstruction, "estimate_statistics", lambda *_: pytest.fail("statistics were touched"))
    subject = Subject(network.eval().requires_grad_(False), images, images)
    record, _ = subject.run()
    assert {step.kind for step in record.steps} == {"both factors"}
