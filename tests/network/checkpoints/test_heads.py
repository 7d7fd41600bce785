"""Heads and stems that are not torchvision's: known where they can be, refused where they cannot."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from compressor.network.checkpoint import load_model
from tests.network.checkpoints.kinds import network, same_outputs
from tests.network.saved import refusal, save

# --- Heads -------------------------------------------------------------------------------------------------


def linear_relu_linear(features):
    return nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))


HEADS = {
    "dropout": ("resnet18", "fc", nn.Sequential(nn.Dropout(), nn.Linear(512, 4)), "512 -> linear 4"),
    "two": ("resnet18", "fc", linear_relu_linear(512), "linear 16 -> assumed ReLU -> linear 4"),
    "norm": (
        "resnet18",
        "fc",
        nn.Sequential(
            nn.BatchNorm1d(512), nn.Linear(512, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4, bias=False)
        ),
        "batch norm 512 -> linear 8 -> assumed ReLU -> batch norm 8 -> linear 4",
    ),
    "linear": ("resnet18", "fc", nn.Sequential(nn.Linear(512, 8), nn.Linear(8, 4)), "512 -> linear 8 -> linear 4"),
    "prelu": ("resnet18", "fc", nn.Sequential(nn.Linear(512, 8), nn.PReLU(), nn.Linear(8, 4)), "prelu 1"),
    "blocks": ("resnet18", "fc", nn.Sequential(nn.Sequential(nn.Linear(512, 8), nn.ReLU()), nn.Linear(8, 4)), "ReLU"),
    "bare": ("mobilenet_v2", "classifier", nn.Linear(1280, 4), "1280 -> linear 4"),
    "last": ("mobilenet_v3_small", "classifier.3", linear_relu_linear(1024), "'classifier.3'"),
    "as before": (
        "mobilenet_v3_small",
        "classifier",
        nn.Sequential(nn.Linear(576, 16), nn.Hardswish(), nn.Dropout(), nn.Linear(16, 4)),
        "assumed Hardswish",
    ),
    "names": (
        "densenet121",
        "classifier",
        nn.Sequential(OrderedDict(fc1=nn.Linear(1024, 8), relu=nn.ReLU(), fc2=nn.Linear(8, 4))),
        "assumed ReLU",
    ),
    "flattened": ("convnext_tiny", "classifier.2", nn.Sequential(nn.Dropout(), nn.Linear(768, 4)), "768 -> linear 4"),
    "swin": ("swin_t", "head", linear_relu_linear(768), "assumed ReLU"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_heads(tmp_path, kind):
    arch, slot, head, words = HEADS[kind]
    original = network(arch)
    original.set_submodule(slot, head)
    loaded = load_model(save(original.state_dict(), tmp_path / "m.pt"))
    assert (loaded.arch, loaded.num_classes) == (arch, 4)
    assert same_outputs(loaded, original)
    assert words in loaded.notes[0]
    if "ReLU" in words:
        assert "--arch module:function" in loaded.notes[0]


def test_representation_of_vision_transformers(tmp_path):
    from torchvision.models import vit_b_32

    original = vit_b_32(num_classes=3, representation_size=8, image_size=64).eval()
    nn.init.normal_(original.heads.head.weight)
    loaded = load_model(save(original.state_dict(), tmp_path / "m.pt"))
    assert same_outputs(loaded, original)
    assert "assumed Tanh" in loaded.notes[0]


def test_heads_that_cannot_be_known(tmp_path, small):
    body = {name: tensor for name, tensor in small.items() if not name.startswith("classifier")}
    many = {"classifier.0.weight": torch.ones(4, 1280), "classifier.9.weight": torch.ones(4, 4)}
    strange = {"classifier.query.weight": torch.ones(4, 1280, 1)}
    for head in (many, strange):
        sentence = refusal(save(body | head, tmp_path / "m.pt"))
        for way_out in ("--arch module:function", "--trust-pickle", "compressor.compress"):
            assert way_out in sentence


# --- Stems -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "stem"), [("mobilenet_v2", "features.0.0"), ("densenet121", "features.conv0")])
@pytest.mark.parametrize(("channels", "bias"), [(1, True), (2, False), (4, False)])
def test_channels_follow_the_first_convolution(tmp_path, arch, stem, channels, bias):
    original = network(arch)
    own = original.get_submodule(stem)
    conv = nn.Conv2d(channels, own.out_channels, own.kernel_size, own.stride, own.padding, bias=bias)
    original.set_submodule(stem, conv)
    loaded = load_model(save(original.state_dict(), tmp_path / "m.pt"))
    assert same_outputs(loaded, original, channels)
    assert loaded.transform.channels == len(loaded.transform.std) == channels
    assert ("grey" in loaded.notes[0]) == (channels == 1)


def test_stem_of_small_images(tmp_path):
    original = network()
    original.conv1, original.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    loaded = load_model(save(original.state_dict(), tmp_path / "m.pt"))
    assert same_outputs(loaded, original, side=32)
    assert loaded.transform.input_size == 32
    assert "stride 1 and no max pooling, which a state_dict does not show" in loaded.notes[0]
