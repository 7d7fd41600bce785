"""MACs against hand counts and torchvision's published figures."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from compressor.network.macs import count_macs


def test_resnet18_has_its_known_macs() -> None:
    total, per_module = count_macs(torchvision.models.resnet18(), torch.zeros(1, 3, 224, 224))
    assert total == 1_814_073_344
    assert per_module["conv1"] == 7 * 7 * 3 * 64 * 112 * 112
    assert per_module["layer2.0.conv1"] == 3 * 3 * 64 * 128 * 28 * 28
    assert per_module["layer2.0.downsample.0"] == 64 * 128 * 28 * 28
    assert per_module["fc"] == 512 * 1000


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", "squeezenet1_0", "shufflenet_v2_x0_5"])
def test_modules_add_up_to_the_total_under_their_own_names(arch: str) -> None:
    model = torchvision.models.get_model(arch, weights=None)
    total, per_module = count_macs(model, torch.zeros(1, 3, 64, 64))
    assert sum(per_module.values()) == total
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert set(per_module) == layers


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), 8 * 9 * 16 * 16),
        (nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4), 12 * 2 * 9 * 16 * 16),
        (nn.Conv2d(8, 6, (3, 1), stride=(2, 1), padding=(1, 0)), 6 * 8 * 3 * 8 * 16),
    ],
)
def test_convolutions_against_hand_counts(layer: nn.Module, macs: int) -> None:
    assert count_macs(nn.Sequential(layer), torch.zeros(1, 8, 16, 16)) == (macs, {"0": macs})


def test_attention_is_not_hidden_by_the_fused_path() -> None:
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=5
    )
    total, per_module = count_macs(model, torch.zeros(1, 3, 32, 32))
    tokens, width = 17, 16
    projections = tokens * width * 3 * width + tokens * width * width
    attention = projections + 2 * tokens * tokens * width
    block = "encoder.layers.encoder_layer_0"
    assert per_module[f"{block}.self_attention"] == attention
    assert total == 16 * width * 3 * 64 + attention + 2 * tokens * width * 24 + width * 5
    assert torch.backends.mha.get_fastpath_enabled()


def test_counts_one_sample_of_a_larger_batch() -> None:
    assert count_macs(nn.Linear(6, 4), torch.zeros(9, 6)) == (24, {"": 24})


class SharedLayer(nn.Module):
    """One linear layer that hangs in two places and runs three times."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(5, 5)
        self.left = nn.Sequential(layer, nn.ReLU())
        self.right = nn.Sequential(layer, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.right(self.left(x)) @ x.new_ones(5, 2)


def test_a_shared_layer_is_charged_for_every_run_and_the_root_for_its_own() -> None:
    assert count_macs(SharedLayer(), torch.zeros(1, 5)) == (85, {"": 10, "left.0": 75})


def test_the_model_is_left_as_it_was() -> None:
    model = torchvision.models.resnet18(num_classes=10).train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_macs(model, torch.randn(1, 3, 32, 32))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
