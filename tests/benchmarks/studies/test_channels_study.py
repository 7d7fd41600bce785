"""Hidden channels beside low rank and torch-pruning: equal operations, and what torch-pruning may remove."""

import pytest
import torch
from torch import nn

pytest.importorskip("torch_pruning", reason="no torch-pruning here: pip install '.[bench]'")

from benchmarks.studies.network.channel_allocation import MIN_SHARE
from benchmarks.studies.network.channels import HIDDEN, LOW_RANK, WAYS, Study, Tuning, missing, run
from benchmarks.studies.network.criteria import (
    CRITERIA,
    SCOPES,
    WITHIN,
    TorchPruning,
    loss_gradients,
    with_new_statistics,
)
from compressor.channels.grouping import find_groups
from compressor.data.batches import from_batches
from compressor.data.images import ImageSet
from compressor.network.macs import count_macs
from tests.channels.test_reduction import Block


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return from_batches([torch.randn(80, 3, 12, 12, generator=torch.Generator().manual_seed(0))], 80)


@pytest.fixture(scope="module")
def model(images: ImageSet) -> nn.Module:
    """A small network with statistics of the images."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), Block(8, 40), Block(8, 40), nn.AdaptiveAvgPool2d(1)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 5))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
    network.train()(images.batch(slice(None)))
    return network.eval().requires_grad_(False)


def operations(network: nn.Module, images: ImageSet) -> int:
    return count_macs(network, images.batch([0]))[0]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("scope", SCOPES)
def test_torch_pruning_meets_the_operations_with_the_channels_in_scope(
    model: nn.Module, images: ImageSet, criterion: str, scope: str
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network = TorchPruning(model, find_groups(model, images.batch([0])), images, 1).network(criterion, scope, 0.6)
    assert network is not None
    share = operations(network, images) / operations(model, images)
    assert share == pytest.approx(0.6, rel=WITHIN if scope != "all, one share" else 0.2)
    stream, expanded = (network.get_submodule(name) for name in ("0", "2.expand"))
    assert isinstance(stream, nn.Conv2d)
    assert isinstance(expanded, nn.Conv2d)
    assert (stream.out_channels == 8) == SCOPES[scope].hidden_only
    assert expanded.out_channels >= MIN_SHARE * 40
    assert network(images.batch([0, 1])).shape == (2, 5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_there_is_no_network_below_the_least_channels(model: nn.Module, images: ImageSet) -> None:
    pruning = TorchPruning(model, find_groups(model, images.batch([0])), images, 1)
    assert pruning.network("magnitude", "hidden", 0.1) is None


def test_gradients_take_the_networks_decisions_where_there_are_no_labels(model: nn.Module, images: ImageSet) -> None:
    decisions = model(images.batch(slice(None))).argmax(1)
    labelled = ImageSet(images.data, "with decisions", labels=decisions)
    for own, other in zip(
        loss_gradients(model, images).values(), loss_gradients(model, labelled).values(), strict=True
    ):
        torch.testing.assert_close(own, other)


def test_new_statistics_are_those_of_the_images(model: nn.Module, images: ImageSet) -> None:
    shifted = ImageSet(images.data + 1, "shifted")
    network = with_new_statistics(model, shifted)
    mean = network.get_submodule("0")(shifted.batch(slice(None))).mean((0, 2, 3))
    torch.testing.assert_close(network.get_buffer("1.running_mean"), mean)
    assert not network.training
    with pytest.raises(AssertionError):
        torch.testing.assert_close(model.get_buffer("1.running_mean"), mean)


def test_every_way_has_a_row_and_earlier_ones_are_kept(model: nn.Module, images: ImageSet) -> None:
    study = Study(model, images.subset(range(60)), images.subset(range(60, 80)), 1)
    wanted = [(0.8, HIDDEN), (0.8, LOW_RANK), (0.8, WAYS[2]), (0.1, HIDDEN)]
    rows = list(run(study, wanted, Tuning(images, [0.8], 1)))
    assert [row["operations"] for row in rows[:3]] == pytest.approx([0.8] * 3, abs=0.05)
    assert all({"cut", "fitted", "tuned", "seconds"} <= row.keys() for row in rows[:3])
    assert rows[0]["widths"].keys() == {group.name for group in study.groups}
    assert "operations" not in rows[3]  # no widths are so small
    left = list(missing(rows, [0.8, 0.1]))
    assert len(left) == 2 * len(WAYS) - 4
    assert set(wanted).isdisjoint(left)
    del rows[0]["tuned"]
    assert next(missing(rows, [0.8], [0.8])) == (0.8, HIDDEN)
