"""Checkpoints as people bring them: each kind loads to what its owner trained, and notes say what was inferred."""

import argparse
import json
import os
import pathlib
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.transforms import Normalize

from compressor.network.checkpoint import load_model
from tests.network.saved import random_state, refusal, save


def network(arch="resnet18", num_classes=5, seed=0):
    from torchvision.models import get_model

    torch.manual_seed(seed)
    return get_model(arch, weights=None, num_classes=num_classes).eval()


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def same_outputs(loaded, original, channels=3, side=64):
    x = torch.randn(2, channels, side, side)
    with torch.inference_mode():
        return torch.allclose(loaded.model(x), original.eval()(x), atol=1e-5)


@pytest.fixture(scope="module")
def small():
    """The smallest of torchvision's state_dicts with a linear head."""
    return random_state("mnasnet0_5", 5)


@pytest.fixture(scope="module")
def other(small):
    """A second copy with other weights."""
    return {name: tensor * 0.5 if tensor.is_floating_point() else tensor for name, tensor in small.items()}


# --- Tensors beside the network ----------------------------------------------------------------------------


def test_profilers_and_wrappers(tmp_path, small):
    counters = {
        f"module.{name}": torch.zeros(1, dtype=torch.float64) for name in ("total_ops", "layers.0.total_params")
    }
    torch.save(prefixed(small, "module.") | counters, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    loaded = load_model(tmp_path / "m.pt")
    assert (loaded.arch, loaded.notes) == (
        "mnasnet0_5",
        ["2 counters in the file left out: 'module.total_ops' and 'module.layers.0.total_params'"],
    )
    assert load_model(save(prefixed(small, "net.module."), tmp_path / "n.pt")).notes == []


def test_losses_and_metrics(tmp_path, small):
    state = prefixed(small, "model._orig_mod.") | {"criterion.weight": torch.ones(5), "train_acc.tp": torch.ones(5)}
    content = {"epoch": 3, "state_dict": state, "optimizer_states": [{"state": {}, "param_groups": []}]}
    (note,) = load_model(save(content, tmp_path / "m.ckpt")).notes
    assert "2 other tensors in the file left out: 'state_dict.criterion.weight'" in note
    assert load_model(save(small | {"loss_fn.weight": torch.ones(5)}, tmp_path / "flat.pt")).arch == "mnasnet0_5"
    assert "it has 'attention.weight'" in refusal(
        save(small | {"attention.weight": torch.ones(5, 5)}, tmp_path / "a.pt")
    )
    followed = prefixed(small, "backbone.") | {"head.weight": torch.ones(2, 5)}
    assert "if it follows" in load_model(save(followed, tmp_path / "f.pt")).notes[-1]


@pytest.mark.parametrize(
    ("beside", "options"),
    [
        ({"mean": [0.485, 0.456, 0.406], "std": [0.2, 0.2, 0.25]}, "--mean 0.485,0.456,0.406 --std 0.2,0.2,0.25;"),
        ({"pixel_mean": [127.5], "pixel_std": [51.0]}, "--mean 0.5,0.5,0.5 --std 0.2,0.2,0.2, divided by 255"),
        ({"normalize.mean": [0.5, 0.25, 0.125]}, "looks like a normalization of the images"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "m."])
def test_normalization_beside_the_network(tmp_path, small, beside, options, prefix):
    state = {name: torch.tensor(values).view(1, -1, 1, 1) for name, values in beside.items()}
    loaded = load_model(save({"state_dict": prefixed(small, prefix) | state}, tmp_path / "m.pt"))
    assert len(loaded.notes) == 1
    assert options in loaded.notes[0]


def test_wrappers_of_parts(tmp_path, small):
    inside = {name.replace("layers.", "layers._orig_mod.", 1): tensor for name, tensor in small.items()}
    inside = {name.replace("_orig_mod.8", "8._checkpoint_wrapped_module"): tensor for name, tensor in inside.items()}
    assert load_model(save({"model._fsdp_wrapped_module": inside}, tmp_path / "m.pt")).notes == []
    parallel = {name.replace("layers.", "layers.module."): tensor for name, tensor in small.items()}
    parallel["__flops__"] = torch.ones(2)
    assert "1 counter" in load_model(save(parallel, tmp_path / "p.pt"), arch="mnasnet0_5").notes[0]


def test_whole_modules_with_wrappers_of_parts(tmp_path):
    original = network()
    original.layer1 = nn.DataParallel(original.layer1)
    assert same_outputs(load_model(save(original, tmp_path / "m.pt")), original)
    around = Around()
    around.module = original.layer1.module
    original.layer1 = around
    assert "test_kinds.Around, which is not run" in refusal(save(original, tmp_path / "m.pt"))


# --- Several networks in one file --------------------------------------------------------------------------


def first_weight(loaded):
    return loaded.model.state_dict()["layers.0.weight"]


def test_averages_can_be_chosen(tmp_path, small, other):
    averaged = prefixed(other, "module.") | {"n_averaged": torch.tensor(3)}
    path = save({"model": small, "model_ema": averaged, "args": argparse.Namespace(lr=0.1)}, tmp_path / "m.pth")
    loaded = load_model(path)
    assert loaded.notes == [
        "weights taken from 'model'; the file also holds 'model_ema.module' (averaged): see --weights"
    ]
    name = "layers.0.weight"
    assert torch.equal(first_weight(loaded), small[name])
    for weights in ("ema", "model_ema", "model_ema.module."):
        assert torch.equal(first_weight(load_model(path, weights=weights)), other[name])
    sentence = refusal(path, weights="nothing")
    assert "a whole network under 'nothing'" in sentence
    assert "'model' and 'model_ema.module'" in sentence
    alone = save({"state_dict": prefixed(other, "ema.")}, tmp_path / "alone.pt")
    assert "weights that are no average" in refusal(alone, weights="model")


def test_lightning_swaps_the_average_in(tmp_path, small, other):
    path = save(
        {"state_dict": prefixed(other, "net."), "current_model_state": prefixed(small, "net.")}, tmp_path / "m.pt"
    )
    assert torch.equal(first_weight(load_model(path)), small["layers.0.weight"])
    assert torch.equal(first_weight(load_model(path, weights="ema")), other["layers.0.weight"])


def test_an_average_alone_is_said_to_be_one(tmp_path, small):
    for content in (
        {"state_dict_ema": small},
        prefixed(small, "module.") | {"n_averaged": torch.tensor(3)},
    ):
        (note,) = load_model(save(content, tmp_path / "m.pt")).notes
        assert "is an average of weights over training" in note


@pytest.mark.parametrize("name", ["model_EMA", "EMA", "modelEma", "Averaged"])
def test_averages_are_found_whatever_their_case(tmp_path, small, other, name):
    path = save({name: other, "raw": small}, tmp_path / "m.pt")
    assert torch.equal(first_weight(load_model(path)), small["layers.0.weight"])
    for weights in ("ema", name.lower()):
        assert torch.equal(first_weight(load_model(path, weights=weights)), other["layers.0.weight"])


@pytest.mark.parametrize(
    ("first", "second"), [("student", "teacher"), ("online_net", "target_net"), ("Student", "Teacher")]
)
def test_pairs(tmp_path, small, other, first, second):
    path = save(prefixed(other, f"{second}.") | prefixed(small, f"{first}."), tmp_path / "m.pt")
    assert torch.equal(first_weight(load_model(path)), small["layers.0.weight"])
    assert torch.equal(first_weight(load_model(path, weights=second)), other["layers.0.weight"])


def test_copies_alike_are_refused_unless_equal(tmp_path, small, other):
    sentence = refusal(save({"left": small, "right": other}, tmp_path / "m.pt"))
    assert "several networks, 'left' and 'right': say which with --weights left" in sentence
    assert load_model(save({"left": small, "right": dict(small)}, tmp_path / "m.pt")).arch == "mnasnet0_5"


# --- Heads -------------------------------------------------------------------------------------------------


def linear_relu_linear(features):
    return nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))


HEADS = {
    "dropout": ("resnet18", "fc", nn.Sequential(nn.Dropout(), nn.Linear(512, 4)), "512 -> linear 4"),
    "two": ("resnet18", "fc", linear_relu_linear(512), "linear 16 -> assumed ReLU -> linear 4"),
    "norm": (
        "resnet18",
        "fc",
        nn.Sequential(
            nn.BatchNorm1d(512), nn.Linear(512, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4, bias=False)
        ),
        "batch norm 512 -> linear 8 -> assumed ReLU -> batch norm 8 -> linear 4",
    ),
    "linear": ("resnet18", "fc", nn.Sequential(nn.Linear(512, 8), nn.Linear(8, 4)), "512 -> linear 8 -> linear 4"),
    "prelu": ("resnet18", "fc", nn.Sequential(nn.Linear(512, 8), nn.PReLU(), nn.Linear(8, 4)), "prelu 1"),
    "blocks": ("resnet18", "fc", nn.Sequential(nn.Sequential(nn.Linear(512, 8), nn.ReLU()), nn.Linear(8, 4)), "ReLU"),
    "bare": ("mobilenet_v2", "classifier", nn.Linear(1280, 4), "1280 -> linear 4"),
    "last": ("mobilenet_v3_small", "classifier.3", linear_relu_linear(1024), "'classifier.3'"),
    "as before": (
        "mobilenet_v3_small",
        "classifier",
        nn.Sequential(nn.Linear(576, 16), nn.Hardswish(), nn.Dropout(), nn.Linear(16, 4)),
        "assumed Hardswish",
    ),
    "names": (
        "densenet121",
        "classifier",
        nn.Sequential(OrderedDict(fc1=nn.Linear(1024, 8), relu=nn.ReLU(), fc2=nn.Linear(8, 4))),
        "assumed ReLU",
    ),
    "flattened": ("convnext_tiny", "classifier.2", nn.Sequential(nn.Dropout(), nn.Linear(768, 4)), "768 -> linear 4"),
    "swin": ("swin_t", "head", linear_relu_linear(768), "assumed ReLU"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_heads(tmp_path, kind):
    arch, slot, head, words = HEADS[kind]
    original = network(arch)
    original.set_submodule(slot, head)
    loaded = load_model(save(original.state_dict(), tmp_path / "m.pt"))
    assert (loaded.arch, loaded.num_classes) == (arch, 4)
    assert same_outputs(loaded, original)
    assert words in loaded.notes[0]
    if "ReLU" in words:
        assert "--arch module:function" in loaded.notes[0]


def test_representation_of_vision_transformers(tmp_path):
    from torchvision.models import vit_b_32

    original = vit_b_32(num_classes=3, representation_size=8, image_size=64).eval()
    nn.init.normal_(original.heads.head.weight)
    loaded = load_model(save(original.state_dict(), tmp_path / "m.pt"))
    assert same_outputs(loaded, original)
    assert "assumed Tanh" in loaded.notes[0]


def test_heads_that_cannot_be_known(tmp_path, small):
    body = {name: tensor for name, tensor in small.items() if not name.startswith("classifier")}
    many = {"classifier.0.weight": torch.ones(4, 1280), "classifier.9.weight": torch.ones(4, 4)}
    strange = {"classifier.query.weight": torch.ones(4, 1280, 1)}
    for head in (many, strange):
        sentence = refusal(save(body | head, tmp_path / "m.pt"))
        for way_out in ("--arch module:function", "--trust-pickle", "compressor.compress"):
            assert way_out in sentence


# --- Stems -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "stem"), [("mobilenet_v2", "features.0.0"), ("densenet121", "features.conv0")])
@pytest.mark.parametrize(("channels", "bias"), [(1, True), (2, False), (4, False)])
def test_channels_follow_the_first_convolution(tmp_path, arch, stem, channels, bias):
    original = network(arch)
    own = original.get_submodule(stem)
    conv = nn.Conv2d(channels, own.out_channels, own.kernel_size, own.stride, own.padding, bias=bias)
    original.set_submodule(stem, conv)
    loaded = load_model(save(original.state_dict(), tmp_path / "m.pt"))
    assert same_outputs(loaded, original, channels)
    assert loaded.transform.channels == len(loaded.transform.std) == channels
    assert ("grey" in loaded.notes[0]) == (channels == 1)


def test_stem_of_small_images(tmp_path):
    original = network()
    original.conv1, original.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    loaded = load_model(save(original.state_dict(), tmp_path / "m.pt"))
    assert same_outputs(loaded, original, side=32)
    assert loaded.transform.input_size == 32
    assert "stride 1 and no max pooling, which a state_dict does not show" in loaded.notes[0]


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


class Around(nn.Module):
    """A module around a network, under the name that parallel training uses."""

    def __init__(self):
        super().__init__()
        self.module = network()

    def forward(self, x):
        return self.module(2 * x)


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
    "around": (lambda: {"model": Around()}, "test_kinds.Around"),
    "subclass": (Doubled, "test_kinds.Doubled"),
    "traced": (lambda: torch.fx.symbolic_trace(Around()), "torch.fx.graph_module.reduce_graph_module"),
    "hook": (with_hook, "test_kinds.double"),
    "part": (with_own_part, "test_kinds.ReLU"),
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


# --- What is no tensor -------------------------------------------------------------------------------------


class Runs:
    """Unpickling this would run a command."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_nothing_of_the_file_runs_and_the_weights_load(tmp_path, small, monkeypatch):
    library = types.ModuleType("trainlib")
    library.Config = type("Config", (dict,), {"__module__": "trainlib"})
    content = {
        "model": small,
        "best": np.float64(91.2),
        "history": np.arange(6.0).reshape(2, 3),
        "args": argparse.Namespace(out=pathlib.PosixPath("runs/a"), scheduler=Runs(tmp_path / "written")),
        "config": library.Config(lr=1),
        "random": np.random.default_rng(0),
        "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [Runs(tmp_path / "written")]},
    }
    for legacy in (False, True):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "trainlib", library)
            torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
        loaded = load_model(tmp_path / "m.pt")
        assert (loaded.arch, loaded.notes) == ("mnasnet0_5", ["1 other tensor in the file left out: 'history'"])
    assert not (tmp_path / "written").exists()


def test_weights_as_numpy_arrays(tmp_path, small):
    content = {name: tensor.numpy() for name, tensor in small.items()}
    assert torch.equal(first_weight(load_model(save(content, tmp_path / "m.pt"))), small["layers.0.weight"])
    for plain in (content, {"model": small}, {name: tensor.half() for name, tensor in small.items()}):
        (tmp_path / "plain.pkl").write_bytes(pickle.dumps(plain))
        assert torch.allclose(first_weight(load_model(tmp_path / "plain.pkl")), small["layers.0.weight"], rtol=1e-3)
    assert "a plain pickle, not a file of torch.save" in refusal(tmp_path / "plain.pkl", trust_pickle=True)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"model": small, "run": Runs(tmp_path / "written")}))
    assert load_model(tmp_path / "plain.pkl").arch == "mnasnet0_5"
    assert not (tmp_path / "written").exists()


# --- Class names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "beside",
    [
        {"class_to_idx": {"e": 4, "a": 0, "b": 1, "c": 2, "d": 3}},
        {"args": argparse.Namespace(classes=["a", "b", "c", "d", "e"])},
        {"hyper_parameters": {"idx_to_class": dict(enumerate("abcde"))}},
        {"meta": {"categories": np.array(["a", "b", "c", "d", "e"])}},
        {"meta": {"CLASSES": ("a", "b", "c", "d", "e")}},
    ],
)
def test_class_names_in_the_checkpoint(tmp_path, small, beside):
    loaded = load_model(save({"model": small, **beside}, tmp_path / "m.pt"))
    assert loaded.class_names == ["a", "b", "c", "d", "e"]
    assert "class names taken from" in loaded.notes[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "a\nb\nc\nd\ne\n"),
        ("class_to_idx.json", '{"b": 1, "a": 0, "c": 2, "d": 3, "e": 4}'),
        ("m.labels.txt", "a\r\nb\r\nc\r\nd\r\ne"),
        ("class_names.json", '{"0": "a", "1": "b", "2": "c", "3": "d", "4": "e"}'),
    ],
)
def test_class_names_beside_the_checkpoint(tmp_path, small, name, text):
    path = save(small, tmp_path / "m.pt")
    (tmp_path / name).write_text(text)
    assert load_model(path).class_names == ["a", "b", "c", "d", "e"]


def test_lists_of_imagenet(tmp_path, small):
    path = save(small, tmp_path / "m.pt")
    ids = [f"n0000000{number}" for number in range(5)]
    (tmp_path / "my_class_index.json").write_text(json.dumps({n: [id_, f"word{n}"] for n, id_ in enumerate(ids)}))
    assert load_model(path).class_names == ids
    (tmp_path / "my_class_index.json").unlink()
    (tmp_path / "imagenet-synsets.txt").write_text("\n".join(ids))
    assert load_model(path).class_names == ids
    (tmp_path / "imagenet-synsets.txt").write_text("".join(f"{id_} word, other\n" for id_ in ids[::-1]))
    assert load_model(path).class_names is None
    (tmp_path / "LOC_synset_mapping.txt").write_text("".join(f"{id_} word, other\n" for id_ in ids))
    assert load_model(path).class_names == ids


@pytest.mark.parametrize("names", [["a", "b"], ["a", "a", "b", "c", "d"], {"a": 1, "b": 2}, 7])
def test_names_of_other_things_are_not_taken(tmp_path, small, names):
    assert load_model(save({"model": small, "classes": names}, tmp_path / "m.pt")).class_names is None
