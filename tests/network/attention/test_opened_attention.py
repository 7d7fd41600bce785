"""Opened attention: the same function and the same tensors, in linear layers that are called."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import swin_transformer as swin

from compressor import apply_plan
from compressor.data.transforms import Transform
from compressor.errors import InputError
from compressor.factorization.registry import METHODS
from compressor.network.attention import SelfAttention, WindowAttention, open_attention
from compressor.network.checkpoint import LoadedModel
from compressor.network.layers import compressible
from compressor.network.macs import count_macs
from compressor.network.surgery import build_candidate
from compressor.pipeline.plan import LayerPlan, Plan
from exporters.onnx import export_onnx
from exporters.verify import verify_onnx
from tests.network.attention.networks import (
    EMBED,
    NETWORKS,
    Attends,
    attention_layers,
    error,
    every_network,
    images,
    random_weights,
    swin_network,
    vit,
)

# The same function


@every_network
def test_the_opened_network_computes_the_same(network: str) -> None:
    model = NETWORKS[network]()
    opened = open_attention(model, images())
    replaced = [type(module) for module in opened.modules() if isinstance(module, SelfAttention | WindowAttention)]
    assert len(replaced) == (2 if network == "vit" else 4)
    assert not any(isinstance(module, nn.MultiheadAttention) for module in opened.modules())
    assert error(opened, model, images()) < 1e-5


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((36, 44), (4, 4)),  # padded in both directions, then shifted
        ((16, 40), (4, 2)),  # one row of windows: shifted sideways only
        ((40, 16), (2, 4)),
        ((8, 12), (4, 4)),  # less than one window
    ],
)
def test_windows_are_padded_and_shifted_as_in_torchvision(
    version: int, size: tuple[int, int], window: tuple[int, int]
) -> None:
    model = swin_network(version, window)
    assert error(open_attention(model, images(*size)), model, images(*size)) < 1e-5


def test_the_scale_of_the_second_version_has_its_ceiling() -> None:
    model = swin_network(2)
    inputs = images()
    for name, parameter in model.named_parameters():
        if name.endswith("logit_scale"):
            parameter.data.fill_(6.0)
    assert error(open_attention(model, inputs), model, inputs) < 1e-5


@every_network
def test_training_drops_what_the_original_drops(network: str) -> None:
    model = NETWORKS[network]()
    opened = open_attention(model, images())
    outputs = []
    for candidate in (model.train(), opened.train()):
        torch.manual_seed(3)
        outputs.append(candidate(images()))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    torch.manual_seed(4)
    assert not torch.allclose(opened(images()), outputs[1])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_of_either_layout_with_and_without_bias(batch_first: bool, bias: bool) -> None:
    model = random_weights(Attends(batch_first=batch_first, bias=bias))
    tokens = torch.randn(4, 5, EMBED)
    opened = open_attention(model, tokens)
    assert isinstance(opened.attention, SelfAttention)
    assert error(opened, model, tokens) < 1e-5


def test_windows_without_biases() -> None:
    for attention in (swin.ShiftedWindowAttention, swin.ShiftedWindowAttentionV2):
        model = random_weights(attention(8, [2, 2], [1, 1], 2, qkv_bias=False, proj_bias=False))
        tokens = torch.randn(2, 5, 4, 8)
        opened = open_attention(model, tokens)
        assert isinstance(opened, WindowAttention)
        assert error(opened, model, tokens) < 1e-5


# The same tensors, and nothing else changed


@every_network
def test_the_original_is_left_alone(network: str) -> None:
    model = NETWORKS[network]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules, random_state = list(model.named_modules()), torch.get_rng_state()
    open_attention(model, images())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert list(model.named_modules()) == modules
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_every_tensor_of_a_vit_is_shared_and_in_its_place() -> None:
    model = vit()
    opened = open_attention(model, images()).state_dict(keep_vars=True)
    original = model.state_dict(keep_vars=True)
    assert [name.replace("in_proj.", "in_proj_") for name in opened] == list(original)
    assert all(value is original[name.replace("in_proj.", "in_proj_")] for name, value in opened.items())


def test_every_tensor_of_a_swin_is_shared_and_in_its_place() -> None:
    model = swin_network(1)
    opened = open_attention(model, images()).state_dict(keep_vars=True)
    original = model.state_dict(keep_vars=True)
    assert list(opened) == list(original)
    assert all(value is original[name] for name, value in opened.items())


def test_the_second_swin_has_a_bias_without_keys_and_a_table_of_its_own() -> None:
    model = swin_network(2).requires_grad_(False)
    opened = open_attention(model, images()).state_dict(keep_vars=True)
    original = model.state_dict(keep_vars=True)
    new = [name for name in opened if name not in original or opened[name] is not original[name]]
    assert {name.partition("attn.")[2] for name in new} == {"qkv.bias", "relative_position_bias_table"}
    gone = {name.partition("attn.")[2].partition(".")[0] for name in original if name not in opened}
    assert gone == {"cpb_mlp", "relative_coords_table"}
    assert not any(opened[name].requires_grad for name in new)
    for name in new:
        if name.endswith("qkv.bias"):
            keys = slice(len(opened[name]) // 3, 2 * len(opened[name]) // 3)
            assert not opened[name][keys].any()
            assert original[name][keys].any()


@every_network
def test_what_is_open_already_stays(network: str) -> None:
    opened = open_attention(NETWORKS[network](), images())
    assert open_attention(opened, images()) is opened


def test_attention_in_two_places_is_opened_in_both() -> None:
    model = random_weights(nn.Sequential(Attends(), Attends()))
    model[1].attention = model[0].attention
    tokens = torch.randn(2, 5, EMBED)
    opened = open_attention(model, tokens)
    assert opened[0].attention is opened[1].attention
    assert isinstance(opened[0].attention, SelfAttention)
    assert error(opened, model, tokens) < 1e-5


# What it is for: layers that can be factorized, and exported


@every_network
def test_at_full_rank_factorized_attention_is_the_original_and_at_rank_one_it_is_not(network: str) -> None:
    model = NETWORKS[network]()
    opened = open_attention(model, images())
    layers = attention_layers(opened, images())
    assert len(layers) == (4 if network == "vit" else 8)
    assert compressible(layers) == layers
    factors = {layer.name: METHODS["svd"].factorize(layer.module) for layer in layers}
    full = build_candidate(opened, factors, {name: factor.max_rank for name, factor in factors.items()})
    assert error(full, model, images()) < 1e-4
    for name in factors:
        assert error(build_candidate(opened, factors, {name: 1}), model, images()) > 1e-4


def attention_of_every_kind() -> nn.Module:
    """Swin v1's, v2's shifted and a transformer's, without the rest: an export takes seconds for every block."""
    first, second = (swin_network(version, depths=(2,)) for version in (1, 2))
    windows = (first.features[1][0].attn, second.features[1][1].attn)
    return nn.Sequential(first.features[0], *windows, nn.Flatten(1, 2), random_weights(Attends(width=16)), nn.Flatten())


def test_half_ranks_survive_the_export(tmp_path: Path) -> None:
    model, inputs = attention_of_every_kind(), images(36, 44, 7)
    opened = open_attention(model, inputs)
    layers = attention_layers(opened, inputs)
    assert len(layers) == 6
    factors = {layer.name: METHODS["svd"].factorize(layer.module) for layer in layers}
    candidate = build_candidate(opened, factors, {layer.name: layer.break_even_rank // 2 for layer in layers})
    assert error(candidate, model, inputs) > 1e-3
    export_onnx(candidate, inputs[:1], tmp_path / "model.onnx", {})
    assert verify_onnx(tmp_path / "model.onnx", candidate, inputs, (1, 2, 5)).batch_sizes == [1, 2, 5]


@pytest.mark.parametrize(("arch", "side"), [("vit_b_16", 224), ("swin_t", 224), ("swin_v2_t", 256), ("maxvit_t", 224)])
def test_every_layer_of_attention_in_torchvisions_networks_is_listed(arch: str, side: int) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(arch, weights=None).eval()
        example = torch.zeros(1, 3, side, side)
    opened = open_attention(model, example)
    assert (opened is model) == (arch == "maxvit_t")  # that one calls its layers already
    attention = attention_layers(opened, example)
    assert len(attention) == 2 * {"maxvit_t": 22}.get(arch, 12)
    assert compressible(attention) == attention
    assert not any("cpb_mlp" in name for name, _ in opened.named_modules())


def test_costs_stay_and_are_those_of_the_layers() -> None:
    model, example = vit(), images()
    opened = open_attention(model, example)
    (total, _), (opened_total, macs) = count_macs(model, example), count_macs(opened, example)
    assert opened_total == total
    assert macs["encoder.layers.encoder_layer_0.self_attention.in_proj"] == 17 * 32 * 96
    assert macs["encoder.layers.encoder_layer_0.self_attention"] == 2 * 17 * 17 * 32


# Where it is used


def test_inspect_lists_the_layers_of_attention(invoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = LoadedModel("vit", 10, vit(1), Transform(input_size=32), [])
    monkeypatch.setattr("compressor.network.checkpoint.load_model", lambda *_: loaded)
    path = tmp_path / "vit.pt"
    path.write_bytes(b"not read")
    result = invoke("bocompress", "inspect", str(path), "--json")
    skipped = {row["name"]: row["skipped"] for row in json.loads(result.stdout)}
    assert {name.rpartition(".")[2] for name, reason in skipped.items() if reason is None} >= {"in_proj", "out_proj"}


def test_a_run_finds_the_layers_of_attention(tmp_path: Path) -> None:
    """Too high a rank in the plan is refused only for layers that a run would factorize."""
    model = vit(1)
    in_proj = attention_layers(open_attention(model, images()), images())[0]
    row = LayerPlan(
        name=in_proj.name,
        method="svd",
        rank=in_proj.break_even_rank + 1,
        break_even_rank=in_proj.break_even_rank,
    )
    with pytest.raises(InputError, match=r"in_proj rank \d+, above its break-even rank"):
        apply_plan(model, [images(count=8)], Plan(arch="vit", layers=[row]), tmp_path / "out")
