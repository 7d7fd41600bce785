"""Segmentation networks are recognized with any number of classes; what cannot be compressed is named."""

from pathlib import Path

import pytest
import torch

from compressor.errors import InputError
from compressor.network import architectures
from compressor.network.architectures import build_model, known_architecture, list_task
from compressor.network.checkpoints.building import build_matched
from compressor.network.checkpoints.class_names import find_class_names
from compressor.network.checkpoints.copies import explain_misfit, find_copies
from compressor.network.detection.building import build_detector

SEGMENTATION = {"lraspp_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_resnet50"}
SOME = {"resnet18", *SEGMENTATION, "r3d_18", "mc3_18"}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fingerprints of all take a minute."""
    known = {arch: architectures.architecture_fingerprint(arch) for arch in SOME}
    monkeypatch.setattr(architectures, "registry_fingerprints", lambda: known)


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("arch", sorted(SEGMENTATION))
def test_segmentation_networks(arch: str, auxiliary: bool) -> None:
    if auxiliary and arch.startswith("lraspp"):
        pytest.skip("has none")
    state = {f"model.{name}": value for name, value in build_model(arch, 5, auxiliary=auxiliary).state_dict().items()}
    (found,) = find_copies(state, None, "model.pt")
    assert found.match is not None
    assert (found.match.arch, found.match.num_classes, found.prefix) == (arch, 5, "model")
    network, transform = build_matched(found.match, found.tensors, {}, "model.pt", [])
    assert any(name.startswith("aux_classifier") for name, _ in network.named_parameters()) == auxiliary
    assert transform.input_size == transform.resize_size == 520


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("arch", ["r3d_18", "mc3_18"])
def test_networks_for_clips(arch: str, channels: int) -> None:
    state = build_model(arch, 5).state_dict()
    state["stem.0.weight"] = state["stem.0.weight"][:, :channels]
    (found,) = find_copies({f"net.{name}": value for name, value in state.items()}, None, "model.pt")
    assert found.match is not None
    assert (found.match.arch, found.match.num_classes, found.prefix) == (arch, 5, "net")
    network, transform = build_matched(found.match, found.tensors, {}, "model.pt", [])
    assert network.state_dict()["stem.0.weight"].shape[1] == transform.channels == channels
    assert transform.shape == (channels, 16, 112, 112)


@pytest.mark.parametrize("asked", [None, "ssdlite320_mobilenet_v3_large"])
def test_detectors(asked: str | None) -> None:
    arch = "ssdlite320_mobilenet_v3_large"
    network, _ = build_detector(arch, 5)
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    (found,) = find_copies(state, asked, "model.pt")
    assert found.match is not None
    assert (found.match.arch, found.match.num_classes, found.prefix) == (arch, 5, "model")
    rebuilt, transform = build_matched(found.match, found.tensors, {}, "model.pt", [])
    assert rebuilt.state_dict().keys() == network.state_dict().keys()
    assert (transform.shape, transform.mean) == ((3, 320, 320), (0.5, 0.5, 0.5))
    with pytest.raises(InputError, match="save its state_dict"):
        build_matched(found.match, found.tensors, {"": object()}, "model.pt", [])  # type: ignore[dict-item]
    assert not find_copies(state, "retinanet_resnet50_fpn", "model.pt")
    assert "does not fit" in explain_misfit({"conv.weight": torch.zeros(1)}, arch, "model.pt")


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("roi_heads.box_predictor.cls_score.weight", (5, 1024), "fits none of torchvision's detectors: fasterrcnn_"),
        ("head.regression_head.bbox_reg.weight", (36, 256, 3, 3), "its heads give no number of classes"),
    ],
)
def test_other_networks_are_refused_with_the_reason(name: str, shape: tuple[int, ...], words: str) -> None:
    state = {f"model.{name}": torch.empty(shape, device="meta")}
    assert words in explain_misfit(state, None, "model.pt")


def test_quantized_builders_are_refused_by_name() -> None:
    for arch in list_task("quantization"):
        with pytest.raises(InputError, match=f"{arch} is ") as caught:
            known_architecture(arch)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("idx_to_class", ["0", "1", "10", "2"]),
        ("id2label", ["0", "1", "10", "2"]),
        ("class_to_idx", ["0", "1", "3", "2"]),
    ],
)
def test_tables_of_numbers_are_read_by_what_their_name_says(key: str, expected: list[str]) -> None:
    """Folders of numbers in the order of their names: 10 comes before 2."""
    table = {"0": 0, "1": 1, "2": 3, "3": 2} if key == "class_to_idx" else {0: "0", 1: "1", 2: "10", 3: "2"}
    found = find_class_names({key: table}, Path("/nowhere/model.pt"), 4)
    assert found is not None
    assert found[0] == expected
