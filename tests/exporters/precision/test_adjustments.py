"""Channels scaled to like ranges and biases that make up for rounding: exact in float, and worth it in int8."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization import quant_pre_process
from torch import Tensor, nn

from exporters.onnx import export_onnx
from exporters.precision import int8
from exporters.precision.bias_correction import bias_shifts, shift_biases
from exporters.precision.equalization import equalize_channels
from exporters.precision.int8 import QuantizationImages, quantize_int8
from exporters.precision.layers import GraphLayers, channel_statistics
from exporters.session import open_session, run_batches

LARGE = 5  # the stream's channel that is much larger than the others


class Stream(nn.Module):
    """A residual stream between linear layers, as MobileNetV2's, one channel forty times as large as the others."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.begin = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.expand, self.deep = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.project, self.head = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 24, 1)
        self.act, self.last = activation(), nn.Linear(24, 10)
        with torch.no_grad():
            for layer in (self.begin[0], self.project):
                layer.weight[LARGE] *= 40
            for layer in (self.expand, self.head):
                layer.weight[:, LARGE] /= 40

    def forward(self, images: Tensor) -> Tensor:
        stream = self.begin(images)
        stream = stream + self.project(self.act(self.deep(self.act(self.expand(stream)))))
        return self.last(self.act(self.head(stream)).mean([2, 3]))


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(1)
    return nn.functional.interpolate(torch.randn(64, 3, 4, 4), size=16, mode="bilinear") + 0.5


@pytest.fixture(scope="module", params=[nn.ReLU, nn.ReLU6, nn.Hardswish])
def source(request: pytest.FixtureRequest, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("float") / f"{request.param.__name__}.onnx"
    export_onnx(Stream(request.param).eval(), images[:2], path, {})
    return path


def prepared(source: Path, folder: Path) -> onnx.ModelProto:
    quant_pre_process(str(source), str(folder / "prepared.onnx"))
    return onnx.load(folder / "prepared.onnx")


def outputs_of(model: onnx.ModelProto, images: Tensor) -> np.ndarray:
    return run_batches(open_session(model.SerializeToString()), Path("model"), images, 8)


def equalize(model: onnx.ModelProto, images: Tensor, folder: Path) -> onnx.ModelProto:
    names = [layer.given for layer in GraphLayers(model).layers]
    found = channel_statistics(model, names, images, folder / "channels.onnx")
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    equalize_channels(changed, {name: largest for name, (largest, _) in found.items()})
    return changed


def test_scales_change_no_output_and_make_a_large_channel_like_the_others(
    source: Path, images: Tensor, tmp_path: Path
) -> None:
    model = prepared(source, tmp_path)
    changed = equalize(model, images, tmp_path)
    np.testing.assert_array_equal(outputs_of(changed, images), outputs_of(model, images))
    stream = next(layer.given for layer in GraphLayers(model).layers if layer.weight == "expand.weight")
    before, after = (channel_statistics(m, [stream], images, tmp_path / "c.onnx")[stream][0] for m in (model, changed))
    assert before[LARGE] / np.median(before) > 20
    assert after[LARGE] / np.median(after) < before[LARGE] / np.median(before) / 4


def test_inputs_outputs_and_what_other_operators_use_keep_their_scale(images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Softmax(1), nn.Conv2d(8, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 4, 1))
    export_onnx(network.eval(), images[:2], tmp_path / "net.onnx", {})
    model = prepared(tmp_path / "net.onnx", tmp_path)
    assert equalize(model, images, tmp_path).SerializeToString() == model.SerializeToString()


def test_shifts_are_what_rounding_adds_to_the_means(images: Tensor, tmp_path: Path) -> None:
    """Without padding exactly."""
    torch.manual_seed(0)
    export_onnx(nn.Sequential(nn.Conv2d(3, 6, 3)).eval(), images[:2], tmp_path / "net.onnx", {})
    model, rounded = onnx.load(tmp_path / "net.onnx"), onnx.ModelProto()
    (layer,) = GraphLayers(model).layers
    weight = numpy_helper.to_array(GraphLayers(model).tensors[layer.weight])
    scale = np.abs(weight).reshape(6, -1).max(1) / 7  # coarse
    values = np.rint(weight / scale[:, None, None, None]).astype(np.int8)
    names = (f"{layer.weight}_quantized", "scale")
    rounded.graph.initializer.extend(map(numpy_helper.from_array, (values, scale.astype(np.float32)), names))
    rounded.graph.node.append(onnx.helper.make_node("DequantizeLinear", names, ["weight"], axis=0))
    constant = images[:, :, :1, :1].expand(-1, -1, 16, 16)  # patches have the means of whole images
    means = {layer.given: constant.mean((0, 2, 3)).numpy()}
    (shift,) = bias_shifts(model, rounded, means).values()
    expected = outputs_of(model, constant).reshape(64, 6, -1).mean((0, 2))
    coarse = GraphLayers(model)
    coarse.set_weight(layer, (values * scale[:, None, None, None]).reshape(1, 6, 3, 9))
    found = outputs_of(model, constant).reshape(64, 6, -1).mean((0, 2))
    np.testing.assert_allclose(found - expected, shift, atol=1e-5)
    shift_biases(model, {layer.node: shift})
    np.testing.assert_allclose(outputs_of(model, constant).reshape(64, 6, -1).mean((0, 2)), expected, atol=1e-5)


def test_int8_adds_less_with_them(
    source: Path, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantize() -> object:
        chosen = QuantizationImages(images[:32], images[32:])
        return quantize_int8(source, tmp_path / "int8.onnx", chosen, 0.0, [], {})

    adjusted = quantize()
    monkeypatch.setattr(int8._Trials, "adjusted", lambda *_: None)
    plain = quantize()
    assert adjusted.adjusted
    assert not plain.adjusted
    assert adjusted.added_norm_all < plain.added_norm_all / 2
