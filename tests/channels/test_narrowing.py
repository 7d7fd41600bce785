"""Narrowed networks: exact counts by width, the same function where what is removed is not read, and ONNX."""

import os
from pathlib import Path

import pytest
import torch
import torchvision.models as models
from torch import nn
from torchvision.models import get_model, list_models

from compressor.channels.costs import ChannelCosts
from compressor.channels.grouping import find_groups
from compressor.channels.groups import ChannelGroup
from compressor.channels.narrowing import channels_of, narrow
from compressor.network.architectures import build_model
from compressor.network.macs import count_macs
from compressor.network.surgery import copy_sharing_tensors
from exporters.onnx import export_onnx
from exporters.verify import verify_onnx

SOME = [
    "alexnet",
    "inception_v3",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11_bn",
    "vit_b_32",
]
# All 80 take some minutes.
EVERY = bool(os.environ.get("BOCOMPRESS_EVERY_ARCHITECTURE"))
ARCHITECTURES = list_models(module=models) if EVERY else SOME
SLOW = ("inception_v3", "swin_t")


def widths_at(groups: list[ChannelGroup], share: float) -> list[int]:
    return [max(1, int(share * group.num_units)) for group in groups]


def num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=[pytest.mark.slow] if arch in SLOW else []) for arch in ARCHITECTURES]
)
def test_counts_are_exact_at_seven_tenths_of_every_group(arch: str) -> None:
    """On the meta device, where tensors have shapes alone."""
    model = build_model(arch, 10, 224 if arch.startswith("vit") else None).to("meta").eval()
    example = torch.zeros(1, 3, 224, 224, device="meta")
    groups = find_groups(model, example)
    assert groups
    costs = ChannelCosts(model, groups, example)
    assert costs.params(costs.num_units) == num_params(model)
    assert costs.macs(costs.num_units) == count_macs(model, example)[0]
    widths = widths_at(groups, 0.7)
    kept = {group.name: torch.arange(width) for group, width in zip(groups, widths, strict=True)}
    network = narrow(model, groups, kept)
    assert costs.params(widths) == num_params(network)
    assert costs.macs(widths) == count_macs(network, example)[0]
    assert [type(module) for module in network.modules()] == [type(module) for module in model.modules()]


def unread(model: nn.Module, groups: list[ChannelGroup], kept: dict[str, torch.Tensor]) -> nn.Module:
    """The network whose readers have weights of zero for the channels that are not kept."""
    network = copy_sharing_tensors(model)
    for group in groups:
        for name in group.reader_names:
            layer = network.get_submodule(name)
            weight = torch.zeros_like(layer.weight)
            index = channels_of(kept[group.name], group.num_units, weight.shape[1])
            weight[:, index] = layer.weight.detach()[:, index]
            layer.weight = nn.Parameter(weight, requires_grad=False)
    return network


@pytest.mark.parametrize(
    ("arch", "side"),
    [
        ("mobilenet_v2", 64),
        ("mobilenet_v3_small", 64),
        ("regnet_y_400mf", 64),
        ("squeezenet1_1", 64),
        ("shufflenet_v2_x0_5", 64),
        pytest.param("vgg11_bn", 32, marks=pytest.mark.slow),
    ],
)
def test_what_is_not_read_can_be_removed(arch: str, side: int) -> None:
    torch.manual_seed(0)
    model = get_model(arch, weights=None, num_classes=10)
    images = torch.randn(8, 3, side, side)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(images)
    model.eval().requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups = find_groups(model, images)
    generator = torch.Generator().manual_seed(1)
    kept = {
        group.name: torch.randperm(group.num_units, generator=generator)[: max(1, int(0.7 * group.num_units))]
        .sort()
        .values
        for group in groups
    }
    with torch.inference_mode():
        outputs, expected = narrow(model, groups, kept)(images), unread(model, groups, kept)(images)
        assert (model(images) - expected).abs().max() > 1e-3 * expected.abs().max()
    torch.testing.assert_close(outputs, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_with_all_kept_nothing_changes_and_tensors_are_shared() -> None:
    model = get_model("mobilenet_v2", weights=None, num_classes=10).eval()
    groups = find_groups(model, torch.zeros(1, 3, 64, 64))
    network = narrow(model, groups, {group.name: torch.arange(group.num_units) for group in groups})
    assert [id(value) for value in network.parameters()] == [id(value) for value in model.parameters()]


@pytest.mark.parametrize("arch", [pytest.param("mobilenet_v2", marks=pytest.mark.hard), "squeezenet1_1"])
def test_a_narrowed_network_is_exported_and_verified(arch: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = get_model(arch, weights=None, num_classes=10).eval().requires_grad_(False)
    images = torch.randn(2, 3, 64, 64)
    groups = find_groups(model, images)
    kept = {g.name: torch.arange(w) for g, w in zip(groups, widths_at(groups, 0.7), strict=True)}
    network = narrow(model, groups, kept)
    export_onnx(network, images, tmp_path / "model.onnx", {})
    assert verify_onnx(tmp_path / "model.onnx", network, images).max_rel_error < 1e-3
