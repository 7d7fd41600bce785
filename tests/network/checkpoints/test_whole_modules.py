"""Pickled modules and reparametrized weights: code that is not lost, and what is refused."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.transforms import Normalize

from compressor.network.checkpoint import load_model
from compressor.network.clips.flow import FlowNetwork
from compressor.network.detection.raw import RawDetector
from tests.network.checkpoints.kinds import Around, network, same_outputs
from tests.network.raft import tiny_raft
from tests.network.saved import refusal, save

# --- Whole modules, of which nothing is loaded -------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_whole_module_shows_its_layers(tmp_path, legacy):
    original = network()
    original.conv1 = nn.Conv2d(1, 64, 3, stride=2, padding=1, bias=False)
    original.fc = nn.Sequential(nn.Linear(512, 8), nn.GELU(), nn.Linear(8, 4))
    path = tmp_path / "m.pt"
    torch.save({"net": nn.DataParallel(original)}, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_model(path)
    assert same_outputs(loaded, original, channels=1)
    assert "none of whose code ran" in loaded.notes[-1]
    assert not any("assumed" in note for note in loaded.notes)


def test_whole_module_with_other_layers_is_refused(tmp_path):
    original = network()
    original.layer1[0].relu = nn.SiLU()
    assert "its 'layer1.0.relu' is a SiLU, not a ReLU" in refusal(save(original, tmp_path / "m.pt"))


class Doubled(ResNet):
    """A subclass with a forward of its own."""

    def __init__(self):
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=5)

    def forward(self, x):
        return super().forward(2 * x)


class ReLU(nn.Module):
    """Not torch's."""


def double(_module, _args, output):
    return 2 * output


def with_hook():
    original = network()
    original.layer1.register_forward_hook(double)
    return original


def with_own_part():
    original = network()
    original.layer1[0].relu = ReLU()
    return original


def with_own_forward():
    original = network()
    original.forward = original._forward_impl
    return original


UNKNOWN_CODE = {
    "normalized": (lambda: nn.Sequential(Normalize([0.5] * 3, [0.5] * 3), network()), "Sequential(Normalize, ResNet)"),
    "softmax": (lambda: nn.Sequential(network(), nn.Softmax(1)), "Sequential(ResNet, Softmax)"),
    "around": (lambda: {"model": Around()}, "kinds.Around"),
    "subclass": (Doubled, "test_whole_modules.Doubled"),
    "traced": (lambda: torch.fx.symbolic_trace(Around()), "torch.fx.graph_module.reduce_graph_module"),
    "hook": (with_hook, "test_whole_modules.double"),
    "part": (with_own_part, "test_whole_modules.ReLU"),
    "forward": (with_own_forward, "torchvision.models.resnet.ResNet"),
}


@pytest.mark.parametrize("kind", UNKNOWN_CODE)
@pytest.mark.parametrize("arch", [None, "resnet18"])
def test_code_around_a_pickled_network_is_not_lost(tmp_path, kind, arch):
    make, name = UNKNOWN_CODE[kind]
    sentence = refusal(save(make(), tmp_path / "m.pt"), arch=arch)
    assert f"{name}, which is not run" in sentence
    assert "--trust-pickle" in sentence


def test_modules_that_only_call_the_network(tmp_path):
    original = network()
    averaged = torch.optim.swa_utils.AveragedModel(original)
    for module in (nn.Sequential(nn.Dropout(), original), averaged, torch.compile(original)):
        assert same_outputs(load_model(save(nn.DataParallel(module), tmp_path / "m.pt")), original)
    (note,) = load_model(save(nn.Sequential(nn.Softmax(1), original).state_dict(), tmp_path / "s.pt")).notes
    assert "under '1', as in a Sequential" in note


def test_trusted_module_keeps_what_is_around_the_network(tmp_path):
    assert load_model(save(Around(), tmp_path / "m.pt"), trust_pickle=True).arch == "around"


# --- Weights stored as two, and quantized ones -------------------------------------------------------------


def test_pruning_masks_and_norms(tmp_path):
    original = network("mobilenet_v2")
    for layer in original.modules():
        if isinstance(layer, nn.Conv2d):
            prune.random_unstructured(layer, "weight", 0.5)
    parametrizations.weight_norm(original.classifier[1])
    loaded = load_model(save(original.state_dict(), tmp_path / "m.pt"))
    assert same_outputs(loaded, original)
    assert loaded.notes == [
        "pruning masks applied to 52 weights",
        "weight norm applied to 1 weight",
    ]


def test_spectral_norm(tmp_path):
    original = network("mobilenet_v2").train()
    parametrizations.spectral_norm(original.classifier[1])
    torch.nn.utils.spectral_norm(original.features[0][0])
    original(torch.randn(2, 3, 64, 64))
    assert same_outputs(load_model(save(original.state_dict(), tmp_path / "m.pt")), original)


def test_parametrizations_by_code(tmp_path):
    original = network("mobilenet_v2")
    parametrizations.orthogonal(original.classifier[1])
    assert "remove_parametrizations" in refusal(save(original.state_dict(), tmp_path / "m.pt"))


def test_quantized_weights_are_named(tmp_path):
    quantized = torch.ao.quantization.quantize_dynamic(network(), {nn.Linear})
    assert "is a quantized state_dict (fc." in refusal(save(quantized.state_dict(), tmp_path / "m.pt"))
    save(quantized, tmp_path / "m.pt")
    for trusted in (False, True):
        sentence = refusal(tmp_path / "m.pt", trust_pickle=trusted)
        assert "a quantized network (torch.ao.nn.quantized.dynamic.modules.linear.Linear)" in sentence


def test_quantization_aware_training_is_named(tmp_path):
    from torch.ao import quantization
    from torchvision.models.quantization import resnet18

    fused = resnet18(quantize=False, num_classes=3).train()
    fused.fuse_model(is_qat=True)
    plain = network()
    for prepared in (fused, plain.train()):
        prepared.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        quantization.prepare_qat(prepared, inplace=True)
    sentence = refusal(save(fused.state_dict(), tmp_path / "m.pt"))
    assert "quantization-aware training ('conv1.weight_fake_quant.fake_quant_enabled')" in sentence
    assert load_model(save(plain.state_dict(), tmp_path / "m.pt")).arch == "resnet18"  # its observers hold infinities


@pytest.mark.parametrize(
    ("strange", "words"),
    [(lambda weight: weight.to("meta"), "without values"), (torch.Tensor.to_sparse, "as a sparse tensor (to_dense()")],
)
def test_tensors_that_are_no_weights(tmp_path, small, strange, words):
    state = small | {"classifier.1.weight": strange(small["classifier.1.weight"])}
    assert words in refusal(save({"model": state, "again": dict(state)}, tmp_path / "m.pt"))


def test_a_trusted_detector_and_raft_become_networks_of_one_input(tmp_path):
    detector = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
    loaded = load_model(save(detector, tmp_path / "detector.pt"), trust_pickle=True)
    assert isinstance(loaded.model, RawDetector)
    assert (loaded.arch, loaded.num_classes, loaded.transform.shape) == ("ssd", 5, (3, 320, 320))
    loaded = load_model(save(tiny_raft(), tmp_path / "raft.pt"), trust_pickle=True)
    assert isinstance(loaded.model, FlowNetwork)
    assert (loaded.arch, loaded.transform.frames) == ("raft", 2)
