"""Outputs of any structure in ONNX files: names, shapes, sizes of images, and the check of every output."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from compressor.errors import VerificationError
from exporters.onnx import export_onnx
from exporters.verify import verify_files, verify_onnx
from tests.outputs.networks import Detections, Pair, as_dict, structured

PACKS: dict[str, tuple[Callable[[Tensor, Tensor], Any], list[str]]] = {
    "tuple": (lambda scores, maps: (scores, maps), ["output0", "output1"]),
    "dataclass": (lambda scores, maps: Detections(scores, [maps]), ["scores", "maps.0"]),
    "named": (Pair, ["scores", "maps"]),
}


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(5, 3, 32, 40)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, images: Tensor) -> Path:
    path = tmp_path_factory.mktemp("structures") / "model.onnx"
    export_onnx(structured(as_dict), images, path, {})
    return path


@pytest.mark.parametrize("kind", PACKS)
@pytest.mark.parametrize("opset", [13, pytest.param(None, marks=pytest.mark.hard)])
def test_every_structure_is_exported_and_checked(kind: str, opset: int | None, images: Tensor, tmp_path: Path) -> None:
    pack, names = PACKS[kind]
    network = structured(pack)
    export_onnx(network, images, tmp_path / "a.onnx", {}, opset)
    record = verify_onnx(tmp_path / "a.onnx", network, images)
    assert record.outputs == names
    assert record.max_rel_error < 1e-5
    weights = {tensor.name for tensor in onnx.load(tmp_path / "a.onnx").graph.initializer}
    assert {"body.0.weight", "maps.weight"} <= weights  # as the network's modules are named


def test_maps_leave_height_and_width_free(exported: Path, images: Tensor) -> None:
    given, scores, maps = (each.shape for each in signature(exported))
    assert given == ["batch", 3, "height", "width"]
    assert scores == ["batch", 4]
    assert maps[:2] == ["batch", 5]
    record = verify_onnx(exported, structured(as_dict), images)
    assert record.image_sizes == [(32, 40), (64, 104)]
    assert record.agreement_of == "top-1 class"


def signature(path: Path) -> list[Any]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [*session.get_inputs(), *session.get_outputs()]


def test_a_fixed_batch_leaves_the_size_free(images: Tensor, tmp_path: Path) -> None:
    export_onnx(structured(as_dict), images, tmp_path / "a.onnx", {}, 13, static_batch=3)
    assert signature(tmp_path / "a.onnx")[0].shape == [3, 3, "height", "width"]
    assert verify_onnx(tmp_path / "a.onnx", structured(as_dict), images, (3,)).batch_sizes == [3]


class FixedSize(nn.Module):
    """Knows maps of one size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.positions = nn.Parameter(torch.randn(1, 4, 32, 40))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.conv(images) + self.positions}


def test_a_network_of_one_size_keeps_it(images: Tensor, tmp_path: Path) -> None:
    network = FixedSize().eval()
    export_onnx(network, images, tmp_path / "a.onnx", {})
    assert signature(tmp_path / "a.onnx")[0].shape == ["batch", 3, 32, 40]
    assert verify_onnx(tmp_path / "a.onnx", network, images).image_sizes == []


def test_a_second_output_that_is_wrong_fails(exported: Path, images: Tensor) -> None:
    other = structured(as_dict)
    nn.init.constant_(other.maps.bias, 9.0)
    with pytest.raises(VerificationError, match="does not compute what the torch network computes"):
        verify_onnx(exported, other, images)
    with pytest.raises(VerificationError, match="gives the outputs scores, maps where torch gives logits"):
        verify_onnx(exported, structured(lambda scores, maps: scores), images)


def test_files_are_compared_in_all_outputs_that_both_name(exported: Path, images: Tensor, tmp_path: Path) -> None:
    other = structured(as_dict)
    nn.init.constant_(other.maps.bias, 9.0)
    export_onnx(other, images, tmp_path / "b.onnx", {}, 18)
    assert verify_files(exported, exported, images).output == "scores, maps"
    record = verify_files(exported, tmp_path / "b.onnx", images)
    assert not record.same
    assert (record.outputs, record.top1_agreement) == (2, 1.0)  # the scores are the same
