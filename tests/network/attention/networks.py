"""Networks with attention, and whether two networks agree."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import swin_transformer as swin
from torchvision.models.vision_transformer import VisionTransformer

from compressor.network.layers import FoundLayer, find_layers

ATTENTION = ("in_proj", "out_proj", "qkv", "proj", "to_qkv", "merge")  # the last two are MaxViT's
EMBED = 8


def random_weights(model: nn.Module) -> nn.Module:
    """Random values in every parameter: new networks have zeros, which would hide a mistake."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    return model.eval()


def vit(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    # Other dropout would draw other numbers: the original's output lies transposed in memory.
    return random_weights(VisionTransformer(32, 8, layers, 4, 32, 64, attention_dropout=0.2, num_classes=10))


def swin_network(version: int, window: tuple[int, int] = (4, 4), depths: tuple[int, ...] = (2, 2)) -> nn.Module:
    torch.manual_seed(0)
    blocks = {1: swin.SwinTransformerBlock, 2: swin.SwinTransformerBlockV2}
    merging = {1: swin.PatchMerging, 2: swin.PatchMergingV2}
    heads = [2, 4][: len(depths)]
    dropouts = {"dropout": 0.1, "attention_dropout": 0.2, "num_classes": 10}
    network = swin.SwinTransformer(
        [4, 4],
        16,
        list(depths),
        heads,
        list(window),
        block=blocks[version],
        downsample_layer=merging[version],
        **dropouts,
    )
    return random_weights(network)


def images(height: int = 32, width: int = 32, count: int = 3) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(2))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "swin v1": partial(swin_network, 1),
    "swin v2": partial(swin_network, 2),
}
every_network = pytest.mark.parametrize("network", NETWORKS)


def error(candidate: nn.Module, model: nn.Module, inputs: Tensor) -> float:
    with torch.inference_mode():
        expected = model(inputs)
        return float((candidate(inputs) - expected).abs().max() / expected.abs().max())


def attention_layers(model: nn.Module, example: Tensor) -> list[FoundLayer]:
    return [layer for layer in find_layers(model, example) if layer.name.rpartition(".")[2] in ATTENTION]


class Attends(nn.Module):
    """One attention module, called with the arguments of the test."""

    def __init__(self, call: dict[str, Any] | None = None, width: int = EMBED, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, **{"batch_first": True, **options})
        self.call = {"need_weights": False} if call is None else call

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, **self.call)[0]
