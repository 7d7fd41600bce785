"""Which channels can be removed: what produces them, what lies between, what reads them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from compressor.channels.grouping import find_groups
from compressor.channels.groups import ChannelGroup, Reader
from compressor.channels.passes import calls_of
from compressor.network.architectures import build_model

EXAMPLE = torch.zeros(1, 3, 64, 64)


def groups_of(arch: str, side: int = 64) -> dict[str, ChannelGroup]:
    model = build_model(arch, 10).to("meta").eval()
    return {group.name: group for group in find_groups(model, torch.zeros(1, 3, side, side, device="meta"))}


def test_an_inverted_residual() -> None:
    group = groups_of("mobilenet_v2")["features.3.conv.0.0"]
    assert group.producers == ("features.3.conv.0.0",)
    assert group.between == ("features.3.conv.0.1", "features.3.conv.1.0", "features.3.conv.1.1")
    assert group.readers == (Reader("features.3.conv.2", "features.3.conv.3", 0, adds_right=True),)
    assert group.num_units == 144


def test_squeeze_and_excitation_shrinks_with_the_channels() -> None:
    groups = groups_of("efficientnet_b0")
    group = groups["features.2.1.block.0.0"]
    block = "features.2.1.block"
    assert group.producers == (f"{block}.0.0", f"{block}.2.fc2")
    assert group.reader_names == (f"{block}.2.fc1", f"{block}.3.0")
    assert groups[f"{block}.2.fc1"].reader_names == (f"{block}.2.fc2",)


def test_grouped_convolutions_lose_whole_groups() -> None:
    group = groups_of("resnext50_32x4d")["layer1.0.conv1"]
    assert group.num_units == 32
    assert "layer1.0.conv2" in group.between
    assert group.reader_names == ("layer1.0.conv3",)


def test_a_chain_into_the_flattened_linear_layer() -> None:
    group = groups_of("vgg11", 224)["features.18"]
    assert (group.num_units, group.reader_names) == (512, ("classifier.0",))


def test_several_readers() -> None:
    group = groups_of("squeezenet1_1")["features.3.squeeze"]
    assert group.reader_names == ("features.3.expand1x1", "features.3.expand3x3")


def test_hidden_units_of_perceptrons() -> None:
    model = build_model("swin_t", 10).to("meta").eval()
    groups = find_groups(model, torch.zeros(1, 3, 64, 64, device="meta"))
    assert len(groups) == 12
    assert groups[0].name.endswith("mlp.0")
    assert groups[0].num_units == 4 * 96


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "convnext_tiny", "densenet121"])
def test_residual_streams_and_outputs_stay(arch: str) -> None:
    groups = groups_of(arch)
    names = {name for group in groups.values() for name in group.producers}
    kept = {"resnet18": "layer1.0.conv2", "mobilenet_v2": "classifier.1", "convnext_tiny": "features.0.0"}
    assert kept.get(arch, "features.conv0") not in names
    assert groups


def chain(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), *between, nn.Conv2d(8, 4, 1), nn.Flatten(), nn.LazyLinear(2)).eval()


class Applied(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    "between",
    [
        nn.Hardswish(),
        nn.PReLU(8),
        nn.PReLU(),
        nn.BatchNorm2d(8),
        nn.MaxPool2d(2),
        nn.Upsample(scale_factor=2),
        nn.ZeroPad2d(1),
        nn.Conv2d(8, 16, 3, groups=8),
        Applied(lambda x: x * torch.sigmoid(1.702 * x)),
        Applied(lambda x: x + x.mean((2, 3), keepdim=True)),
        Applied(lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2)),
    ],
)
def test_what_acts_channel_by_channel_is_passed(between: nn.Module) -> None:
    model = chain(between)
    if isinstance(between, nn.Conv2d):
        model[2] = nn.Conv2d(16, 4, 1)
    model(EXAMPLE)
    names = [group.name for group in find_groups(model, EXAMPLE)]
    assert names == ["0", "2"]


@pytest.mark.parametrize(
    "between",
    [
        nn.LayerNorm([8, 62, 62]),
        nn.GroupNorm(2, 8),
        nn.Softmax(1),
        nn.ChannelShuffle(2),
        nn.BatchNorm2d(8, affine=False, track_running_stats=False),
        Applied(lambda x: x.roll(1, 1)),
        Applied(lambda x: torch.cat([x[:, 1:], x[:, :1]], 1)),
        Applied(lambda x: x * torch.arange(8.0)[:, None, None]),
        Applied(lambda x: x.cumsum(1)),
        Applied(lambda x: x.transpose(1, 2).transpose(1, 3).transpose(1, 2).mT),
    ],
)
def test_what_mixes_channels_keeps_all(between: nn.Module) -> None:
    model = chain(between)
    model(EXAMPLE)
    assert "0" not in [group.name for group in find_groups(model, EXAMPLE)]


def test_layers_that_run_twice_or_share_a_weight_keep_all() -> None:
    twice = nn.Conv2d(8, 8, 1)
    model = chain(twice, twice)
    model(EXAMPLE)
    assert [group.name for group in find_groups(model, EXAMPLE)] == ["3"]
    shared = chain(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    shared[1].weight = shared[2].weight
    shared(EXAMPLE)
    assert [group.name for group in find_groups(shared, EXAMPLE)] == ["3"]


def write_to_some(channels: Tensor) -> Tensor:
    channels[:, 6:] = 0
    return channels


def test_channels_that_are_written_to_by_their_place_keep_all() -> None:
    model = chain(Applied(write_to_some))
    model(EXAMPLE)
    assert [group.name for group in find_groups(model, EXAMPLE)] == ["2"]


class Residual(nn.Module):
    """A block of two layers, which adds its input in one way or another, perhaps behind a norm that both use."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor], with_norm: bool = False) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.norm = nn.BatchNorm2d(8) if with_norm else nn.Identity()
        self.add = add

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        return self.add(self.norm(self.second(self.first(stem).relu())), self.norm(stem)).mean((2, 3))


@pytest.mark.parametrize(
    ("add", "is_known"),
    [
        (lambda block, stem: block + stem, True),
        (lambda block, stem: block.add(other=stem), True),
        (lambda block, stem: torch.add(stem, block, alpha=0.1), False),
        (lambda block, stem: torch.add(stem, alpha=0.1, other=block), False),
    ],
)
def test_what_is_added_behind_a_reader_is_known_where_it_is_a_plain_sum(
    add: Callable[[Tensor, Tensor], Tensor], is_known: bool
) -> None:
    model = Residual(add).eval()
    readers = find_groups(model, EXAMPLE)[-1].readers
    assert [reader.addition is not None for reader in readers] == [is_known]
    assert [call.other is not None for _, call in calls_of(model, readers, EXAMPLE)] == [is_known]


def test_a_norm_of_several_branches_is_no_part_of_what_a_reader_gives() -> None:
    groups = find_groups(Residual(lambda block, stem: block + stem, with_norm=True).eval(), EXAMPLE)
    assert [(group.name, group.readers) for group in groups] == [("first", (Reader("second"),))]


def test_a_network_that_counts_on_its_channels_keeps_those() -> None:
    model = chain(Applied(lambda x: x.view(1, 8, -1).view(x.shape) if x.shape[1] == 8 else x.view(1, 8, -1)))
    model(EXAMPLE)
    assert [group.name for group in find_groups(model, EXAMPLE)] == ["2"]


def test_what_is_found_names_modules_of_the_network() -> None:
    model = get_model("mobilenet_v3_small", weights=None).eval()
    modules = dict(model.named_modules())
    for group in find_groups(model, EXAMPLE):
        assert {*group.producers, *group.between, *group.reader_names} <= set(modules)
