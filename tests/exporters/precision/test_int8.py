"""Int8 and fp16 files: what they compute, which layers stay in float, and what cannot be converted."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from compressor.errors import BocompressError
from compressor.factorization.interpolative import Interpolated
from compressor.network.attention import open_attention
from compressor.network.detection.raw import RawDetector
from exporters.onnx import export_onnx
from exporters.precision.float16 import convert_fp16
from exporters.precision.int8 import QuantizationImages, function_norm, quantize_int8
from exporters.precision.places import LOOKUPS
from exporters.precision.sensitivity import choose_float_groups, group_nodes
from exporters.session import open_session, run_batches
from tests.network.detection.networks import SIDE, make_detector
from tests.network.raft import two_updates


class Attention(nn.Module):
    """A patch embedding, self-attention as torch holds it, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.head((tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]).mean(1))


def chain(last: nn.Module) -> nn.Sequential:
    """A spatial split (k x 1, then 1 x k), a layer of another kind, and a head."""
    split = nn.Sequential(nn.Conv2d(3, 6, (3, 1), padding=(1, 0), bias=False), nn.Conv2d(6, 16, (1, 3), padding=(0, 1)))
    return nn.Sequential(split, nn.ReLU(), last, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def interpolated() -> nn.Module:
    return Interpolated(nn.Conv2d(16, 5, 3, padding=1), nn.Conv2d(5, 11, 1), torch.randperm(16))


def networks(images: Tensor) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "chain": chain(nn.Conv2d(16, 16, 3, padding=1)).eval(),
        "interpolative": chain(interpolated()).eval(),
        "attention": open_attention(Attention().eval(), images[:1]),
    }


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(1)
    return nn.functional.interpolate(torch.randn(96, 3, 4, 4), size=16, mode="bilinear")


@pytest.fixture(scope="module")
def files(images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("float")
    for name, network in networks(images).items():
        export_onnx(network, images[:2], folder / f"{name}.onnx", {"version": "1", "gamma": "0.1"})
    return {path.stem: path for path in folder.iterdir()}


def outputs(path: Path, images: Tensor, size: int = 8) -> np.ndarray:
    return run_batches(open_session(path), path, images, size)


def quantize(source: Path, target: Path, images: Tensor, allowed: float, layers: tuple[str, ...] = ("0",)) -> object:
    chosen = QuantizationImages(images[:32], images[32:64])
    return quantize_int8(source, target, chosen, allowed, layers, {"precision": "int8"})


@pytest.mark.parametrize("name", ["chain", "interpolative", "attention"])
def test_int8_computes_nearly_the_same_at_any_batch_size(
    name: str, files: dict[str, Path], images: Tensor, tmp_path: Path
) -> None:
    record = quantize(files[name], tmp_path / "int8.onnx", images, allowed=1e9)
    expected, found = outputs(files[name], images[64:]), outputs(tmp_path / "int8.onnx", images[64:])
    assert 0 < function_norm(found, expected) < 0.002 * function_norm(expected, 0 * expected)
    np.testing.assert_allclose(outputs(tmp_path / "int8.onnx", images[64:67], 1), found[:3], atol=1e-5)
    assert record.float_layers == []
    assert record.added_norm == record.added_norm_all
    proto = onnx.load(tmp_path / "int8.onnx")
    assert {entry.key: entry.value for entry in proto.metadata_props} == {"precision": "int8"}
    assert proto.producer_name == "bocompress"
    assert [entry.domain for entry in proto.opset_import] == [""]
    weights = [tensor for tensor in proto.graph.initializer if len(tensor.dims) > 1]
    assert len(weights) >= 3
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}
    for tensor in weights:  # seven bits: x86 without VNNI saturates at eight
        assert np.abs(onnx.numpy_helper.to_array(tensor)).max() <= 64


def test_the_layer_that_costs_most_stays_in_float(images: Tensor, tmp_path: Path) -> None:
    """One layer has huge weights for an input that is always 0: a scale that holds them loses all others."""
    torch.manual_seed(0)
    network = chain(nn.Conv2d(16, 16, 3, padding=1)).eval()
    with torch.no_grad():
        network[0][1].bias[0] = -100.0
        network[2].weight[:, 0] = 1000.0
    export_onnx(network, images[:2], tmp_path / "float.onnx", {})
    everything = quantize(tmp_path / "float.onnx", tmp_path / "all.onnx", images, 1e9)
    allowed = everything.added_norm / 4
    record = quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", images, allowed)
    assert [layer.name for layer in record.float_layers] == ["2"]
    assert record.layers == 3
    assert record.added_norm <= allowed < record.added_norm_all
    expected = outputs(tmp_path / "float.onnx", images[64:])
    norms = [function_norm(outputs(tmp_path / name, images[64:]), expected) for name in ("int8.onnx", "all.onnx")]
    assert norms[0] < norms[1] / 2
    weights = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    assert weights["2.weight"] == onnx.TensorProto.FLOAT


def test_factors_are_one_group_and_products_without_weights_their_own(files: dict[str, Path]) -> None:
    assert list(group_nodes(onnx.load(files["chain"]), ["0", "2", "6"])) == ["0", "2", "6"]
    chain = onnx.load(files["chain"])
    kinds = {node.name: node.op_type for node in chain.graph.node}
    first, second, _ = group_nodes(chain, ["0", "2", "6"]).values()
    assert [kinds[name] for name in first] == ["Conv", "Conv", "Relu"]
    assert [kinds[name] for name in second][:2] == ["Conv", "Relu"]
    attention = onnx.load(files["attention"])
    nodes = [node.name for node in attention.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    grouped = group_nodes(attention, ["patches", "head"])
    assert set(nodes) <= {name for group in grouped.values() for name in group}
    assert {"patches", "head", "attention.in_proj", "attention.out_proj"} <= set(grouped)
    assert len(grouped) == 6


def test_many_layers_are_merged_to_a_bounded_number() -> None:
    nodes = [
        onnx.helper.make_node("MatMul", [f"x{n}", f"m{n}.weight"], [f"x{n + 1}"], name=f"n{n}") for n in range(100)
    ]
    weights = [onnx.helper.make_tensor(f"m{n}.weight", 1, [1], [1.0]) for n in range(100)]
    groups = group_nodes(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], weights)), [])
    assert len(groups) == 34
    assert groups["m0 to m2"] == ["n0", "n1", "n2"]
    assert sum(map(len, groups.values())) == 100


ALONE = {"a": 1.0, "b": 8.0, "c": 0.5, "d": 2.0, "e": 0.1, "f": 0.1}


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [(4.0, ["b"]), (1.0, ["b", "d", "a"]), (1e-9, ["b", "d", "a"])],
    ids=["one", "more", "out of reach: half of them"],
)
def test_no_more_layers_than_the_budget_needs_stay_in_float(allowed: float, expected: list[str]) -> None:
    def measure(names: list[str]) -> float:
        return sum(ALONE.values()) - sum(ALONE[name] for name in names)

    chosen, norm = choose_float_groups(ALONE, sum(ALONE.values()), allowed, measure)
    assert chosen == expected
    assert norm == pytest.approx(measure(expected))


def test_layers_stay_in_int8_where_float_does_not_help() -> None:
    assert choose_float_groups({"a": 1.0, "b": 1.0, "c": 1.0}, 3.0, 0.1, lambda names: 2.95) == ([], 3.0)


def test_fp16_halves_the_file_and_keeps_float32_outside(files: dict[str, Path], images: Tensor, tmp_path: Path) -> None:
    for name, source in files.items():
        target = tmp_path / f"{name}.onnx"
        convert_fp16(source, target, images[:32], {"precision": "fp16"})
        np.testing.assert_allclose(outputs(target, images[:6], 6), outputs(source, images[:6]), atol=5e-3)
        proto = onnx.load(target)
        sides = [*proto.graph.input, *proto.graph.output]
        assert {value.type.tensor_type.elem_type for value in sides} == {onnx.TensorProto.FLOAT}
        assert onnx.TensorProto.FLOAT not in {tensor.data_type for tensor in proto.graph.initializer}


def test_what_cannot_be_quantized_is_an_error_in_one_sentence(images: Tensor, tmp_path: Path) -> None:
    node = onnx.helper.make_node("ReduceMean", ["input"], ["logits"], keepdims=0)
    sides = [
        onnx.helper.make_tensor_value_info("input", 1, ["batch", 3, 16, 16]),
        onnx.helper.make_tensor_value_info("logits", 1, []),
    ]
    graph = onnx.helper.make_graph([node], "mean", sides[:1], sides[1:])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(proto, tmp_path / "mean.onnx")
    with pytest.raises(BocompressError, match=r"^the network cannot be quantized to int8"):
        quantize(tmp_path / "mean.onnx", tmp_path / "int8.onnx", images, 1.0)
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("name", ["maskrcnn", pytest.param("raft", marks=pytest.mark.hard)])
def test_places_that_features_are_looked_up_at_stay_in_float(name: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    network, many = RawDetector(make_detector("maskrcnn")).eval(), torch.randn(12, 3, SIDE, SIDE)
    if name == "raft":
        network, many = two_updates(), torch.rand(4, 3, 2, 128, 128) * 2 - 1
    export_onnx(network, many[:2], tmp_path / "float.onnx", {})
    chosen = QuantizationImages(many[:2], many[2:4])
    quantize_int8(tmp_path / "float.onnx", tmp_path / "int8.onnx", chosen, 1e9, [], {})
    float32, int8 = (open_session(tmp_path / f"{kind}.onnx") for kind in ("float", "int8"))
    expected, found = (session.run(None, {session.get_inputs()[0].name: many.numpy()}) for session in (float32, int8))
    for target, output in zip(expected, found, strict=True):
        moved = np.square(output - target).mean(axis=tuple(range(1, target.ndim)))
        assert moved.max() < 0.05 * np.square(target).mean()
    ends = {node.output[0]: node for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    lookups = [node for node in ends.values() if node.op_type in LOOKUPS]
    assert lookups
    assert all(
        ends[place].op_type != "DequantizeLinear" for node in lookups for place in node.input[1:] if place in ends
    )
