"""All widths of a group's readers at once: what is built for each, one by one."""

import pytest
import torch
from torch import Tensor, nn

from compressor.channels import statistics
from compressor.channels.factors import ChannelFactors
from compressor.channels.grouping import find_groups
from compressor.channels.groups import ChannelGroup, Reader
from compressor.channels.statistics import reader_moments
from compressor.channels.unfitted import UnfittedChannels, unfitted_channels
from compressor.data.batches import from_batches
from compressor.network.calibration.gradients import OutputGradients
from tests.factorization.fitted import check_along

CPU = torch.device("cpu")
LAYERS = ("2", "5", "7")  # a convolution, a linear layer that reads pixels, and one that reads features


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(150, 10), nn.ReLU(), nn.Linear(10, 4)).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("max_inputs", [5120, 20])
def test_fitted_readers(
    network: nn.Sequential, images: Tensor, name: str, max_inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether moments are of all inputs, or of units as those of a wide reader."""
    monkeypatch.setattr(statistics, "MAX_INPUTS", max_inputs)
    group = next(group for group in find_groups(network, images[:1]) if group.reader_names == (name,))
    gradients = OutputGradients(network.requires_grad_(False), from_batches([images], 40), CPU, 0)
    moments = reader_moments(gradients, {name: group.num_units})
    assert len(moments[name].covariance) == (
        group.num_units if name != "7" and max_inputs == 20 else moments[name].mean.numel()
    )
    factors = ChannelFactors(group, {name: network.get_submodule(name)}, moments)
    inputs = network[: int(name)](images[:2])
    widths = range(1, factors.max_rank + 1)
    check_along(factors.nested(name, factors.max_rank), [factors.build(width)[name] for width in widths], inputs)


@pytest.mark.parametrize("name", LAYERS)
def test_readers_that_keep_their_weights(network: nn.Sequential, images: Tensor, name: str) -> None:
    group = next(group for group in find_groups(network, images[:1]) if group.reader_names == (name,))
    network.requires_grad_(False)
    (factors,) = unfitted_channels(network, [group], from_batches([images], 40), CPU).values()
    inputs = network[: int(name)](images[:2])
    built = [factors.build(width)[name] for width in range(1, 4)]
    check_along(factors.nested(name, 3), built, inputs)


def test_linear_readers_of_images_that_lie_channels_last() -> None:
    """As in ConvNeXt and Swin: four axes, of which the last has the channels."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 5).requires_grad_(False)
    group = ChannelGroup("0", ("0",), (), (Reader("1"),), 8)
    spread = torch.randn(8, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    factors = UnfittedChannels(group, {"1": layer}, {"1": spread})
    built = [factors.build(width)["1"] for width in range(1, 9)]
    check_along(factors.nested("1", 8), built, torch.randn(2, 4, 3, 8))
