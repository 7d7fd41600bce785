"""Video Swin's attention, opened: the same outputs in clips of every size, and layers that are called."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video import swin_transformer as swin

from compressor.network.attention import open_attention
from tests.network.attention.networks import attention_layers, error, random_weights


def network(window: tuple[int, int, int] = (2, 4, 4)) -> nn.Module:
    torch.manual_seed(0)
    build = partial(swin.SwinTransformer3d, [2, 4, 4], 16, [2, 2], [2, 4], list(window))
    return random_weights(build(dropout=0.1, attention_dropout=0.2, num_classes=5))


def clips(*sizes: int) -> Tensor:
    return torch.randn(2, 3, *sizes, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("sizes", [(8, 32, 32), (6, 36, 20), (2, 16, 64), (5, 17, 33)], ids=str)
@pytest.mark.parametrize("window", [(2, 4, 4), (4, 3, 7)], ids=str)
def test_it_computes_the_same(sizes: tuple[int, ...], window: tuple[int, int, int]) -> None:
    original, inputs = network(window), clips(*sizes)
    opened = open_attention(original, inputs)
    assert error(opened, original, inputs) < 1e-5
    assert {id(value) for value in opened.parameters()} == {id(value) for value in original.parameters()}


def test_its_layers_can_be_compressed() -> None:
    original, inputs = network(), clips(4, 32, 32)
    closed = [layer for layer in attention_layers(original, inputs) if ".attn." in layer.name]
    assert {layer.skipped for layer in closed} == {
        "its forward is never called (unused, or its owner reads the weight)"
    }
    opened = attention_layers(open_attention(original, inputs), inputs)
    layers = [layer for layer in opened if ".attn." in layer.name]
    assert len(layers) == 8
    assert {layer.skipped for layer in layers} == {None}
