"""Compressed networks in files: put together again whatever their factors."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import VisionTransformer, mnasnet0_5

from compressor.errors import InputError
from compressor.factorization.records import Method
from compressor.factorization.registry import METHODS
from compressor.network.attention import open_attention
from compressor.network.layers import compressible, find_layers, with_method
from compressor.network.pruning import prune_smallest
from compressor.network.serialization import changed_names, load_network, save_network
from compressor.network.surgery import build_candidate
from compressor.pipeline.delivery.weights import load_compressed, save_compressed


@pytest.mark.parametrize("method", ["spatial", "tucker", "cp", "interpolative", "svd"])
def test_a_network_of_any_factors_is_put_together_again(method: Method, network: nn.Module, tmp_path: Path) -> None:
    layers = [
        with_method(layer, method if layer.kind == "conv" and method != "svd" else layer.method or "svd")
        for layer in compressible(find_layers(network, torch.zeros(1, 3, 8, 8)))
    ]
    factors = {layer.name: METHODS[layer.method or "svd"].factorize(layer.module) for layer in layers}
    made = prune_smallest(build_candidate(network, factors, {layer.name: 3 for layer in layers[1:]}), 0.1)
    save_network(network, made, tmp_path / "network.safetensors")
    found = load_network(network, tmp_path / "network.safetensors")
    inputs = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(found(inputs), made(inputs))
    assert changed_names(network, found) == [layer.name for layer in layers[1:]]
    layers_written = json.loads(_metadata(tmp_path / "network.safetensors")["layers"])
    assert set(layers_written) == {layer.name for layer in layers[1:]}
    assert load_file(tmp_path / "network.safetensors").keys() == made.state_dict().keys()


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_a_network_that_asks_for_its_version_is_put_together_again(tmp_path: Path) -> None:
    original = mnasnet0_5(num_classes=4).eval()
    save_network(original, original, tmp_path / "network.safetensors")
    found = load_network(original, tmp_path / "network.safetensors")
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in original.state_dict().items())


def test_attention_is_loaded_from_a_run(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return VisionTransformer(16, 8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=4).eval()

    original, example = make(), torch.zeros(1, 3, 16, 16)
    opened = open_attention(original, example)
    layers = compressible(find_layers(opened, example))
    factors = {layer.name: METHODS[layer.method or "svd"].factorize(layer.module) for layer in layers}
    network = build_candidate(opened, factors, {layer.name: 2 for layer in layers})
    save_compressed(opened, network, example, tmp_path)
    loaded, inputs = load_compressed(make(), tmp_path), torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(loaded(inputs), network(inputs))
    with pytest.raises(InputError, match=r"compressed\.safetensors does not hold a network compressed from this one"):
        load_compressed(mnasnet0_5(num_classes=4), tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        load_compressed(original, tmp_path / "nowhere")


def test_a_file_of_another_network_is_refused(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    save_network(network, network, path)
    with pytest.raises(InputError, match="does not hold a network compressed from this one"):
        load_network(nn.Sequential(nn.Linear(2, 2)), path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is not a compressed network"):
        load_network(network, path)
