"""Readers refitted to fewer channels: exact where nothing is lost, better where something is."""

from functools import cached_property

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.channels.factors import ChannelFactors
from compressor.channels.grouping import find_groups
from compressor.channels.passes import Passes
from compressor.channels.reduction import Reduction
from compressor.channels.refitting import equations_of, readers_in_order, wanted_rows
from compressor.channels.statistics import reader_moments
from compressor.data.batches import from_batches
from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.calibration.gradients import OutputGradients
from compressor.network.surgery import build_candidate

CPU = torch.device("cpu")


class Block(nn.Module):
    """A residual block with a depthwise convolution."""

    def __init__(self, outer: int = 6, inner: int = 16) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(outer, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.project, self.norm3 = nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm1(self.expand(x)).relu()
        return x + self.norm3(self.project(self.norm2(self.depthwise(hidden)).relu()))


class Subject:
    """A small network with random statistics, its groups, and images."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3, stride=2), Block(), nn.ReLU(), Block(), nn.Conv2d(6, 12, 3), nn.ReLU(inplace=True)]
        self.model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5))
        self.images = from_batches([torch.randn(60, 3, 24, 24)], 60)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
                nn.init.uniform_(module.weight, 0.5, 1.5)
        self.model.train()(self.images.batch(slice(None)))
        self.model.eval().requires_grad_(False)
        self.fit, self.check = self.images.subset(range(40)), self.images.subset(range(40, 60))
        self.groups = find_groups(self.model, self.images.batch([0]))
        self.norm = FunctionNorm(self.model, self.check, CPU)

    @cached_property
    def factors(self) -> list[ChannelFactors]:
        readers = {name: group.num_units for group in self.groups for name in group.reader_names}
        moments = reader_moments(OutputGradients(self.model, self.fit, CPU, 0), readers)
        return [
            ChannelFactors(group, {name: self.model.get_submodule(name) for name in group.reader_names}, moments)
            for group in self.groups
        ]

    def reduction(self) -> Reduction:
        return Reduction(self.model, self.factors, self.fit, self.norm, CPU)

    def widths(self, share: float) -> np.ndarray:
        return np.array([max(1, int(share * group.num_units)) for group in self.groups])

    def loss(self, network: nn.Module) -> float:
        return self.norm.losses(network, np.arange(len(self.check))).mean


def masked(subject: Subject, factors: ChannelFactors, width: int) -> nn.Module:
    """The network with readers that ignore the channels which are removed at a width."""
    return build_candidate(subject.model, {"group": factors}, {"group": width})


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject()


def test_groups_of_the_subject(subject: Subject) -> None:
    assert [group.num_units for group in subject.groups] == [16, 16, 12]
    additions = [group.readers[0].addition for group in subject.groups]
    assert additions == [0, 1, None]


def test_all_channels_are_the_network(subject: Subject) -> None:
    network = subject.reduction().start(subject.widths(1.0))
    assert subject.loss(network) == 0
    for factors in subject.factors:
        assert factors.losses[-1] == 0
        assert subject.loss(masked(subject, factors, factors.max_rank)) < 1e-9


@pytest.mark.parametrize("number", range(3))
def test_a_narrowed_group_computes_what_its_masked_readers_do(subject: Subject, number: int) -> None:
    widths = subject.widths(1.0)
    widths[number] //= 2
    network = subject.reduction().start(widths)
    images = subject.check.batch(slice(None))
    expected = masked(subject, subject.factors[number], int(widths[number]))(images)
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("number", range(3))
def test_all_widths_at_once_are_those_built_one_by_one(subject: Subject, number: int) -> None:
    factors = subject.factors[number]
    (name,) = factors.group.reader_names
    nested = factors.nested(name, factors.max_rank)
    layer = subject.model.get_submodule(name)
    shape = (4, 16, 7, 7) if isinstance(layer, nn.Conv2d) else (4, 48)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    features = nested.features(inputs)
    rows = features if nested.channels_last else features.movedim(1, -1)
    for width in (1, factors.max_rank // 2, factors.max_rank):
        found = rows[..., : width * nested.width] @ nested.outputs[0, : width * nested.width] + nested.bias
        expected = factors.build(width)[name](inputs)
        expected = expected if nested.channels_last else expected.movedim(1, -1)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_losses_by_first_order_are_near_the_measured_ones(subject: Subject) -> None:
    for factors in subject.factors[:2]:
        width = factors.max_rank - 4
        measured = subject.loss(masked(subject, factors, width))
        assert 0.05 < factors.losses[width] / measured < 20


def test_refits_lower_the_loss_and_only_those_are_kept(subject: Subject) -> None:
    widths, reduction = subject.widths(0.5), subject.reduction()
    before = subject.loss(reduction.start(widths))
    network = reduction.run(widths)
    after = subject.loss(network)
    assert after < 0.9 * before
    assert after == pytest.approx(min(step.after if step.kept else step.before for step in reduction.steps), rel=1e-5)
    assert len(reduction.steps) == 3


def test_a_residual_block_makes_up_for_what_it_is_added_to(subject: Subject) -> None:
    """Where the first block's outputs are shifted, the second block's projection is wanted to shift back."""
    readers = readers_in_order(subject.model, subject.groups, subject.images.batch([0]))
    wanted = wanted_rows(subject.model, readers, Passes(subject.model, readers, subject.fit, CPU), 0)
    network = subject.reduction().start(subject.widths(1.0))
    reader = readers[1]
    exact = equations_of(network, reader, wanted[reader.name], Passes(network, readers, subject.fit, CPU))
    network[2] = nn.Sequential(nn.ReLU(), Shifted(0.5))
    shifted = equations_of(network, reader, wanted[reader.name], Passes(network, readers, subject.fit, CPU))
    norm = network[3].norm3
    expected = -0.5 * (norm.running_var + norm.eps).sqrt() / norm.weight
    torch.testing.assert_close(shifted.target_mean - exact.target_mean, expected.double(), rtol=1e-3, atol=1e-3)


class Shifted(nn.Module):
    """Adds a number, but not by a call that counts as an addition of tensors."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x.sub(-self.by)


def test_the_original_stays_as_it_was(subject: Subject) -> None:
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    subject.reduction().run(subject.widths(0.5))
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())


@pytest.mark.parametrize("width", [0, 17])
def test_widths_outside_are_refused(subject: Subject, width: int) -> None:
    with pytest.raises(ValueError, match="width"):
        subject.factors[0].build(width)
