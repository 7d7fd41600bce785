"""The ONNX file: names, free batch, provenance, no traces of the user's machine, whole or not at all."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor, nn

from compressor.errors import BocompressError, InputError
from exporters import onnx as exporter
from exporters.onnx import export_onnx
from exporters.opsets import BATCH_NAME, INPUT_NAME, OUTPUT_NAME

METADATA = {"arch": "squeezenet1_0", "gamma": "0.0005", "ranks": '{"conv1": 12}', "version": "0.1.0"}


def digit_images(count: int, size: int) -> Tensor:
    """Handwritten digits as (count, 3, size, size), zero mean and unit deviation."""
    images = torch.tensor(load_digits().images[:count], dtype=torch.float32)[:, None]
    images = nn.functional.interpolate((images - images.mean()) / images.std(), size=size, mode="bilinear")
    return images.repeat(1, 3, 1, 1)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 200), nn.Linear(200, 10))


def run_onnx(path: Path, images: Tensor) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT_NAME], {INPUT_NAME: images.numpy()})[0]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return digit_images(5, 32)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.squeezenet1_0(num_classes=10).train()


@pytest.fixture(scope="module")
def exported(model: nn.Module, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, images[:1], path, METADATA)
    return path


def test_the_file_is_valid_and_alone(exported: Path) -> None:
    onnx.checker.check_model(exported, full_check=True)
    assert [file.name for file in exported.parent.iterdir()] == ["model.onnx"]


def test_names_and_the_free_batch(exported: Path) -> None:
    graph = onnx.load(exported).graph
    (given,), (result,) = graph.input, graph.output
    assert (given.name, result.name) == (INPUT_NAME, OUTPUT_NAME)
    assert given.type.tensor_type.shape.dim[0].dim_param == BATCH_NAME
    assert result.type.tensor_type.shape.dim[0].dim_param == BATCH_NAME


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_every_batch_size_gives_torchs_logits(exported: Path, model: nn.Module, images: Tensor, batch: int) -> None:
    with torch.no_grad():
        expected = exporter.frozen_copy(model)(images[:batch]).numpy()
    np.testing.assert_allclose(run_onnx(exported, images[:batch]), expected, atol=1e-4)


def test_provenance_is_in_the_file(exported: Path) -> None:
    proto = onnx.load(exported)
    assert {entry.key: entry.value for entry in proto.metadata_props} == METADATA
    assert (proto.producer_name, proto.producer_version) == ("bocompress", "0.1.0")


def test_no_trace_of_the_machine_is_in_the_file(exported: Path) -> None:
    content = exported.read_bytes()
    for trace in (b"site-packages", b"stack_trace", b"pkg.torch", b"torchvision.models", b"\nFile ", b".py"):
        assert trace not in content
    weights = sum(len(tensor.raw_data) for tensor in onnx.load(exported).graph.initializer)
    assert len(content) - weights < 100_000


def test_the_callers_model_is_left_alone(exported: Path, model: nn.Module) -> None:
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_exporter_is_silent_and_repeats_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("a.onnx", "b.onnx"):
        export_onnx(small_network(), torch.zeros(3, 3, 8, 8), tmp_path / name, {})
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_operator_set_can_be_chosen(tmp_path: Path) -> None:
    export_onnx(small_network(), torch.zeros(1, 3, 8, 8), tmp_path / "a.onnx", {}, opset=18)
    assert [entry.version for entry in onnx.load(tmp_path / "a.onnx").opset_import] == [18]


def test_an_operator_set_out_of_reach_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BocompressError, match="ONNX"):
        export_onnx(small_network(), torch.zeros(1, 3, 8, 8), tmp_path / "a.onnx", {}, opset=7)
    assert list(tmp_path.iterdir()) == []


class Nothing(nn.Module):
    """Gives no tensor."""

    def forward(self, x: Tensor) -> dict[str, int]:
        return {"count": len(x)}


class Total(nn.Module):
    """Gives a tensor without a row for each image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(0, keepdim=True)


class Branching(nn.Module):
    """Decides on the values it sees: no fixed graph holds it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if float(x.detach().sum()) > 1.5 else -x.flatten(1)


@pytest.mark.parametrize(
    ("network", "example", "error", "sentence"),
    [
        (Nothing(), torch.zeros(1, 3), InputError, "gives a dict without tensors"),
        (Total(), torch.zeros(1, 3), InputError, r"gives 'logits' of shape \[1, 3\] for a batch of 2 images"),
        (nn.Linear(5, 4), torch.zeros(1, 3), InputError, r"cannot run on inputs of shape \[3\]"),
        (nn.Linear(5, 4), torch.zeros(0, 5), InputError, "at least one example"),
        (Branching(), torch.zeros(1, 3), BocompressError, "torch cannot export Branching"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence_and_no_file(
    network: nn.Module, example: Tensor, error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=sentence) as caught:
        export_onnx(network, example, tmp_path / "a.onnx", {})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_more_weights_than_one_file_holds_go_into_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = nn.Linear(60, 50).eval()
    monkeypatch.setattr("exporters.onnx.MAX_WEIGHT_BYTES", 4 * 60 * 50)  # the bias is too much
    export_onnx(network, torch.zeros(1, 60), tmp_path / "a.onnx", {})
    assert (tmp_path / "a.onnx.data").stat().st_size >= 4 * 60 * 50
    assert (tmp_path / "a.onnx").stat().st_size < 4000
    inputs = torch.randn(3, 60)
    session = ort.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"input": inputs.numpy()})
    np.testing.assert_allclose(outputs, network(inputs).detach().numpy(), atol=1e-5)


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from compressor.errors import InputError
from exporters.onnx import export_onnx
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    export_onnx(torch.nn.Linear(300, 100), torch.zeros(1, 300), Path(sys.argv[1]), {})
except InputError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the old file")
    command = [sys.executable, "-B", "-c", FULL_DISK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot write {path}: File too large\n"
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        export_onnx(nn.Linear(3, 2), torch.zeros(1, 3), tmp_path / "none" / "a.onnx", {})
