"""Files for older and stricter runtimes: operator sets, format versions, a fixed batch, normalization in the graph."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer
from torchvision.transforms import Normalize

from compressor.errors import BocompressError, InputError
from compressor.factorization.interpolative import InterpolativeFactors
from compressor.network.attention import open_attention
from exporters.feeding import Normalization
from exporters.onnx import export_onnx
from exporters.opsets import translate
from exporters.verify import require_opset, verify_onnx

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Convolutions with batch norms, one of them as some of its rows and combinations of them."""
    torch.manual_seed(0)
    rows = InterpolativeFactors(nn.Conv2d(8, 12, 3, padding=1)).build(5)
    block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardswish())
    model = nn.Sequential(block, rows, nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    with torch.no_grad():
        model.train()(torch.randn(16, 3, 16, 16))
    return model.eval()


@pytest.fixture(scope="module")
def transformer(images: Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=4).eval()
    nn.init.normal_(model.heads.head.weight)
    return open_attention(model, images[:1])


def opset_and_ir(path: Path) -> tuple[int, int]:
    proto = onnx.load(path)
    return proto.opset_import[0].version, proto.ir_version


@pytest.mark.parametrize(("opset", "ir"), [(9, 4), (11, 6), (17, 8), (20, 9)])
def test_convolutions_have_every_operator_set_in_the_lowest_format(
    network: nn.Module, images: Tensor, tmp_path: Path, opset: int, ir: int
) -> None:
    export_onnx(network, images[:2], tmp_path / "a.onnx", {}, opset)
    assert opset_and_ir(tmp_path / "a.onnx") == (opset, ir)
    assert verify_onnx(tmp_path / "a.onnx", network, images, (1, 3)).batch_sizes == [1, 3]


def test_what_is_written_by_default_is_read_by_runtimes_of_2024(
    network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    export_onnx(network, images[:2], tmp_path / "a.onnx", {})
    assert opset_and_ir(tmp_path / "a.onnx")[1] <= 9  # ONNX Runtime 1.17


def test_attention_that_was_opened_has_operator_set_17(transformer: nn.Module, images: Tensor, tmp_path: Path) -> None:
    export_onnx(transformer, images[:2], tmp_path / "a.onnx", {}, 17)
    assert opset_and_ir(tmp_path / "a.onnx") == (17, 8)
    assert verify_onnx(tmp_path / "a.onnx", transformer, images).max_rel_error < 1e-5


@pytest.mark.slow
def test_below_its_lowest_operator_set_a_network_names_that(transformer: nn.Module, images: Tensor) -> None:
    with pytest.raises(InputError, match=r"--opset 11: .* set 11: the lowest that it can have is 1[3-7]$"):
        require_opset(transformer, images[:2], 11)


def test_an_operator_set_that_is_not_there_yet_is_one_sentence(network: nn.Module, images: Tensor) -> None:
    with pytest.raises(BocompressError, match="there is no ONNX operator set 99 here"):
        translate(network, images[:2], 99)


def test_weights_of_the_older_exporter_have_their_modules_names(
    network: nn.Module, images: Tensor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        export_onnx(network, images[:2], tmp_path / name, {}, 11)
    names = {tensor.name for tensor in onnx.load(tmp_path / "a").graph.initializer}
    assert {"0.0.weight", "0.0.bias", "1.keep.weight", "5.weight"} <= names
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("opset", [None, 11])
def test_a_file_of_one_batch_size_is_checked_with_it(
    network: nn.Module, images: Tensor, tmp_path: Path, opset: int | None
) -> None:
    export_onnx(network, images[:2], tmp_path / "a.onnx", {}, opset, static_batch=3)
    shape = onnx.load(tmp_path / "a.onnx").graph.input[0].type.tensor_type.shape
    assert [side.dim_value for side in shape.dim] == [3, 3, 16, 16]
    assert verify_onnx(tmp_path / "a.onnx", network, images, (3,)).batch_sizes == [3]


@pytest.mark.parametrize("opset", [None, 11])
def test_normalization_in_the_graph_takes_pixels(
    network: nn.Module, images: Tensor, tmp_path: Path, opset: int | None
) -> None:
    export_onnx(network, images[:2], tmp_path / "a.onnx", {}, opset, normalization=Normalization(MEAN, STD))
    verify_onnx(tmp_path / "a.onnx", nn.Sequential(Normalize(MEAN, STD), network), images)
    tensors = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "a.onnx").graph.initializer
    }
    np.testing.assert_allclose(tensors["normalization.mean"].ravel(), MEAN)
