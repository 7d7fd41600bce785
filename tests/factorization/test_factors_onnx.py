"""Networks factorized by CP and by interpolation as ONNX files: the same outputs, and the expected operators."""

from collections import Counter
from math import prod
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from compressor.factorization.records import MethodChoice
from compressor.factorization.registry import METHODS
from compressor.network.layers import FoundLayer, find_layers
from compressor.network.surgery import build_candidate
from exporters.onnx import export_onnx
from exporters.verify import verify_onnx


class Tokens(nn.Module):
    """Images to tokens (N, T, C), on which a linear layer works."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).transpose(1, 2)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding="same", padding_mode="reflect", bias=False),
        nn.ReLU(),
        nn.Conv2d(16, 24, (3, 5), stride=2, padding=(1, 2)),
        nn.ReLU(),
        nn.Conv2d(24, 32, 1),
        nn.ReLU(),
        Tokens(),
        nn.Linear(32, 20),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20 * 16, 10),
    ).eval()


def params_at(layer: FoundLayer, rank: int) -> int:
    return layer.params_by_rank()[rank - 1]


def compress(method: MethodChoice) -> tuple[nn.Module, dict[str, int]]:
    """The network with every layer at half its break-even rank, and the parameters of each."""
    network = small_network()
    layers = find_layers(network, torch.zeros(1, 3, 8, 8), method=method)
    assert [layer.skipped for layer in layers] == [None] * 5
    ranks = {layer.name: max(1, layer.break_even_rank // 2) for layer in layers}
    factors = {layer.name: METHODS[layer.method].factorize(layer.module) for layer in layers}
    candidate = build_candidate(network, factors, ranks)
    return candidate, {layer.name: params_at(layer, ranks[layer.name]) for layer in layers}


def weights_of(graph: onnx.GraphProto, operator: str) -> list[tuple[int, ...]]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return [shapes[node.input[1]] for node in graph.node if node.op_type == operator]


@pytest.fixture(scope="module", params=["cp", "interpolative"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    network, params = compress(request.param)
    path = tmp_path_factory.mktemp("factors") / f"{request.param}.onnx"
    export_onnx(network, torch.zeros(1, 3, 8, 8), path, {})
    return request.param, network, params, path


def test_the_file_computes_what_the_factors_compute(exported: tuple[str, nn.Module, dict[str, int], Path]) -> None:
    _, network, _, path = exported
    record = verify_onnx(path, network, torch.randn(8, 3, 8, 8))
    assert record.max_rel_error < 1e-5


def test_the_file_has_the_expected_operators_and_weights(exported: tuple[str, nn.Module, dict[str, int], Path]) -> None:
    method, _, params, path = exported
    graph = onnx.load(path).graph
    convolutions = weights_of(graph, "Conv")
    assert sum(map(prod, convolutions)) == sum(params[name] for name in ("0", "2", "4"))
    operators = Counter(node.op_type for node in graph.node)
    if method == "cp":
        assert operators["Conv"] == 4 + 4 + 2
        assert [shape[1] for shape in convolutions if shape[2:] != (1, 1)] == [1, 1, 1, 1]
    else:
        assert operators["Conv"] == 3 * 2
        assert min(operators["Concat"], operators["Gather"]) >= 5
        assert max(map(prod, convolutions)) < max(params[name] for name in ("0", "2", "4"))
