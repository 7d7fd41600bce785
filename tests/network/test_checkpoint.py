"""Loading and recognizing checkpoints: every torchvision classifier by name and shape, and every bad file."""

import argparse
import importlib.abc
import json
import pickle
import sys
import types
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compressor.data.transforms import Transform
from compressor.errors import InputError
from compressor.network import architectures, checkpoint
from compressor.network.architectures import CLASSES, TOKENS
from compressor.network.checkpoint import load_model


def random_state(arch, num_classes, image_size=None):
    """A state_dict of `arch` with small random weights."""
    torch.manual_seed(0)
    state = {}
    for name, tensor in architectures.build_model(arch, num_classes, image_size).state_dict().items():
        if not tensor.is_floating_point():
            state[name] = tensor
        elif name.endswith("running_var"):
            state[name] = torch.ones(tensor.shape)
        else:
            state[name] = torch.empty(tensor.shape).uniform_(-0.05, 0.05)
    return state


@pytest.fixture(scope="module")
def squeezenet():
    return random_state("squeezenet1_1", 5)


def save(content, path):
    torch.save(content, path)
    return path


def refusal(path, **options):
    """The sentence with which a file is refused."""
    with pytest.raises(InputError) as caught:
        load_model(path, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 400
    return sentence


# --- Recognition -------------------------------------------------------------------------------------------


def test_every_architecture_is_recognized_and_no_two_are_alike(registry):
    assert len(registry) == 80
    for arch, fingerprint in registry.items():
        values = {CLASSES: 7, TOKENS: 197}
        shapes = {name: tuple(values.get(n, n) for n in shape) for name, shape in fingerprint.items()}
        fitting = [other for other in registry if architectures.first_difference(shapes, registry[other]) is None]
        assert fitting == [arch]
        assert architectures.free_sizes(shapes, fingerprint)[CLASSES] == 7


def test_no_architecture_looks_as_if_a_wrapper_had_prefixed_it(registry):
    for fingerprint in registry.values():
        assert len({name.partition(".")[0] for name in fingerprint}) > 1
        assert not any(name.startswith(checkpoint.AUXILIARY_HEADS) for name in fingerprint)


@pytest.mark.parametrize(
    ("arch", "num_classes", "side"),
    [
        ("resnet18", 10, 64),
        ("regnet_y_400mf", 3, 64),
        ("squeezenet1_1", 12, 64),
        ("mobilenet_v2", 37, 64),
        ("mnasnet0_5", 2, 64),
        ("shufflenet_v2_x0_5", 6, 64),
        ("efficientnet_b0", 1, 64),
        ("densenet121", 8, 64),
        ("swin_t", 9, 64),
    ],
)
def test_loads_strictly_and_computes(tmp_path, arch, num_classes, side):
    state = random_state(arch, num_classes)
    loaded = load_model(save(state, tmp_path / "model.pt"))
    assert (loaded.arch, loaded.num_classes, loaded.notes) == (arch, num_classes, [])
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in loaded.model.state_dict().items())
    with torch.inference_mode():
        assert loaded.model(torch.zeros(2, 3, side, side)).shape == (2, num_classes)


def test_network_computes_what_the_original_does(tmp_path):
    from torchvision.models import mobilenet_v3_small

    original = mobilenet_v3_small(num_classes=11).eval()
    loaded = load_model(save(original.state_dict(), tmp_path / "model.pth"))
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.model(x), original(x))


def test_building_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    architectures.build_model("vit_b_32", 3)
    architectures.build_model("convnext_tiny", 3)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("num_classes", "expected"), [(1000, True), (10, False)])
def test_googlenet_drops_auxiliary_heads_and_notes_its_guess(tmp_path, num_classes, expected):
    from torchvision.models import googlenet

    state = random_state("googlenet", num_classes)
    with architectures.SkipParameterData():
        whole = googlenet(num_classes=num_classes, aux_logits=True, init_weights=False).state_dict()
    heads = {name: torch.ones(t.shape) for name, t in whole.items() if name.startswith("aux")}
    assert heads
    for content in (state | heads,) if expected else (state, state | heads):
        loaded = load_model(save(content, tmp_path / "model.pt"))
        assert (loaded.arch, loaded.num_classes) == ("googlenet", num_classes)
        assert loaded.model.transform_input is expected
        assert "transform_input" in loaded.notes[0]
        assert "guess" in loaded.notes[0]


def test_vision_transformer_gives_its_own_image_size(tmp_path):
    state = random_state("vit_b_32", 3, image_size=96)
    loaded = load_model(save(state, tmp_path / "model.pt"))
    assert (loaded.arch, loaded.transform.input_size) == ("vit_b_32", 96)
    assert loaded.model(torch.zeros(1, 3, 96, 96)).shape == (1, 3)


def test_published_transforms():
    assert architectures.published_transform("resnet18") == Transform(224, 256)
    b1 = architectures.published_transform("efficientnet_b1")
    assert (b1.input_size, b1.resize_size, b1.interpolation) == (240, 255, "bilinear")
    assert architectures.published_transform("efficientnet_b0").interpolation == "bicubic"
    assert architectures.published_transform("vit_h_14").input_size == 518
    assert architectures.published_transform("vit_h_14", image_size=224).input_size == 224


# --- What a file may look like -----------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "state_dict_ema", "my_network"])
def test_wrapped_state_dicts(tmp_path, squeezenet, key):
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": []}
    content = {"epoch": 3, key: squeezenet, "optimizer": optimizer, "args": argparse.Namespace(lr=0.1)}
    assert load_model(save(content, tmp_path / "model.pt")).arch == "squeezenet1_1"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "backbone."])
def test_prefixes_are_stripped(tmp_path, squeezenet, prefix):
    content = {prefix + name: tensor for name, tensor in squeezenet.items()}
    content["n_averaged"] = torch.tensor(4)
    assert load_model(save(content, tmp_path / "model.pt")).num_classes == 5


def test_other_weights_in_the_file_are_noted(tmp_path, squeezenet):
    content = {"state_dict": squeezenet, "state_dict_ema": {n: t * 0 for n, t in squeezenet.items()}}
    loaded = load_model(save(content, tmp_path / "model.pt"))
    assert loaded.notes == ["weights taken from 'state_dict'; the file also holds state_dict_ema"]
    assert loaded.model.state_dict()["classifier.1.weight"].any()


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_safetensors_by_content(tmp_path, name):
    save_file(random_state("mnasnet0_5", 4), tmp_path / name)
    assert load_model(tmp_path / name).arch == "mnasnet0_5"


def test_pickle_under_the_suffix_of_safetensors(tmp_path, squeezenet):
    assert load_model(save(squeezenet, tmp_path / "model.safetensors")).arch == "squeezenet1_1"


def test_legacy_format_of_torch_save(tmp_path, squeezenet):
    torch.save(squeezenet, tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    assert load_model(tmp_path / "model.pth").arch == "squeezenet1_1"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_with_a_note(tmp_path, squeezenet, dtype):
    content = {name: tensor.to(dtype) for name, tensor in squeezenet.items()}
    loaded = load_model(save(content, tmp_path / "model.pt"))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.notes == [f"weights stored as {str(dtype)[6:]} were cast to float32"]


def test_old_checkpoints_lack_counters_and_spell_names_otherwise(tmp_path):
    state = random_state("densenet121", 3)
    old = {}
    for name, tensor in state.items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            if ".denselayer" in name:
                name = name.replace(f".{part}.", f".{part[:4]}.{part[4]}.")
        if not name.endswith("num_batches_tracked"):
            old[name] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    loaded = load_model(save(old, tmp_path / "model.pth"))
    assert (loaded.arch, loaded.num_classes) == ("densenet121", 3)


def test_old_names_of_vision_transformers():
    old = "encoder.layers.encoder_layer_0.mlp.linear_2.bias"
    assert checkpoint.modern_name(old) == "encoder.layers.encoder_layer_0.mlp.3.bias"


def test_given_architecture_needs_no_registry(tmp_path, squeezenet, monkeypatch):
    monkeypatch.setattr(architectures, "registry_fingerprints", None)
    assert load_model(save(squeezenet, tmp_path / "a.pt"), arch="SqueezeNet1_1").arch == "squeezenet1_1"


# --- Bad files ---------------------------------------------------------------------------------------------


def test_missing_folder_and_empty(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.pt")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "empty.pt").touch()
    assert "is empty" in refusal(tmp_path / "empty.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"epoch,loss\n1,0.5\n", "a text file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (bytes(range(1, 200)), "a file of another kind"),
        (b"\x80\x02garbage", "is damaged"),
        (b"PK\x03\x04" + b"x" * 100, "damaged or cut short"),
        (pickle.dumps({"a": 1}, protocol=2), "is damaged, or not a file of torch.save"),
    ],
)
def test_files_of_other_kinds(tmp_path, content, words):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert words in refusal(path)


@pytest.mark.parametrize("kept", [0.5, 0.999])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_cut_short(tmp_path, squeezenet, suffix, kept):
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save(squeezenet, path)
    else:
        save_file(squeezenet, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert "damaged" in refusal(path)


def test_torchscript_and_other_archives(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    assert "TorchScript" in refusal(tmp_path / "script.pt")
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "torch.save did not write" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "an empty dict and no network weights"),
        ({"epoch": 3, "loss": 0.1}, "the entries epoch and loss and no network weights"),
        ({"state": {0: {"step": torch.ones(1)}}, "param_groups": []}, "an optimizer's state"),
        ({"optimizer": {"state": {}, "param_groups": []}, "epoch": 1}, "an optimizer's state"),
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
    ],
)
def test_files_without_weights(tmp_path, content, words):
    assert words in refusal(save(content, tmp_path / "model.pt"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path, squeezenet, value):
    broken = dict(squeezenet)
    broken["features.0.weight"] = squeezenet["features.0.weight"].clone()
    broken["features.0.weight"][0, 0, 0, 0] = value
    assert "NaN or infinite weights in 'features.0.weight'" in refusal(save(broken, tmp_path / "m.pt"))


def test_float64_weights_too_large_for_float32(tmp_path, squeezenet):
    broken = {name: tensor.double() for name, tensor in squeezenet.items()}
    broken["features.0.bias"] = broken["features.0.bias"] + 1e300
    assert "infinite weights in 'features.0.bias'" in refusal(save(broken, tmp_path / "m.pt"))


def test_integer_weights(tmp_path, squeezenet):
    broken = squeezenet | {"features.0.weight": torch.ones(64, 3, 3, 3, dtype=torch.int8)}
    assert "'features.0.weight' as int8" in refusal(save(broken, tmp_path / "m.pt"))


# --- Shapes that do not fit --------------------------------------------------------------------------------


def test_nearest_architecture_and_first_difference(tmp_path):
    state = random_state("resnet18", 10)
    small_images = state | {"conv1.weight": torch.ones(64, 3, 3, 3)}
    sentence = refusal(save(small_images, tmp_path / "m.pt"))
    assert "the nearest is resnet18" in sentence
    assert "'conv1.weight' has shape 64x3x3x3 instead of 64x3x7x7" in sentence
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    assert "it lacks 'fc.weight'" in refusal(save(headless, tmp_path / "m.pt"))
    assert "it has 'extra'" in refusal(save(state | {"extra": torch.ones(1)}, tmp_path / "m.pt"))
    divided = state | {"fc.bias": torch.ones(11)}
    assert "the class counts 10 and 11" in refusal(save(divided, tmp_path / "m.pt"))


def test_nothing_in_common(tmp_path):
    state = {"a.weight": torch.ones(2), "b.weight": torch.ones(2)}
    assert "none of its tensors" in refusal(save(state, tmp_path / "m.pt"))


def test_tie_asks_for_arch(tmp_path, squeezenet, registry, monkeypatch):
    twins = {"one": registry["squeezenet1_1"], "two": registry["squeezenet1_1"]}
    monkeypatch.setattr(architectures, "registry_fingerprints", lambda: twins)
    assert "fits one and two alike: say which with --arch" in refusal(save(squeezenet, tmp_path / "m.pt"))


def test_given_architecture_unknown_or_wrong(tmp_path, squeezenet):
    path = save(squeezenet, tmp_path / "m.pt")
    assert "resnet18" in refusal(path, arch="resnet-18")
    assert "does not fit resnet18: it lacks 'conv1.weight'" in refusal(path, arch="resnet18")
    assert "does not fit squeezenet1_0: it lacks 'features.5" in refusal(path, arch="squeezenet1_0")


# --- Whole modules -----------------------------------------------------------------------------------------


def test_whole_modules_only_when_trusted(tmp_path):
    from torchvision.models import squeezenet1_1

    path = save({"model": nn.DataParallel(squeezenet1_1(num_classes=6)).half()}, tmp_path / "m.pt")
    sentence = refusal(path)
    assert "--trust-pickle only if you trust" in sentence
    loaded = load_model(path, trust_pickle=True)
    assert (loaded.arch, loaded.num_classes) == ("squeezenet1_1", 6)
    assert not loaded.model.training
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert "does not fit resnet18" in refusal(path, arch="resnet18", trust_pickle=True)


def test_trusted_module_of_another_kind(tmp_path):
    path = save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3)), tmp_path / "m.pt")
    loaded = load_model(path, trust_pickle=True)
    assert (loaded.arch, loaded.num_classes, loaded.transform) == ("sequential", 3, Transform())
    assert "no classifier of torchvision" in loaded.notes[0]
    save(nn.ReLU(), path)
    assert "without a linear or convolutional layer" in refusal(path, trust_pickle=True)


class Attack:
    """Unpickling this would write a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_code_in_a_pickle_does_not_run(tmp_path):
    path = save({"state_dict": Attack(tmp_path / "written")}, tmp_path / "m.pt")
    assert "pickled code" in refusal(path)
    assert not (tmp_path / "written").exists()


def test_pickled_class_that_is_gone(tmp_path, monkeypatch):
    module = types.ModuleType("gone")
    module.Net = type("Net", (nn.Module,), {"__module__": "gone"})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gone", module)
        save(module.Net(), tmp_path / "m.pt")
    assert "--trust-pickle" in refusal(tmp_path / "m.pt")
    assert "cannot be found here" in refusal(tmp_path / "m.pt", trust_pickle=True)


# --- torchvision and the cache -----------------------------------------------------------------------------


class BrokenTorchvision(importlib.abc.MetaPathFinder):
    """Fails as torchvision does beside a torch that it was not built for."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")


def test_torchvision_of_another_torch(tmp_path, squeezenet, monkeypatch):
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.setattr(sys, "meta_path", [BrokenTorchvision(), *sys.meta_path])
    sentence = refusal(save(squeezenet, tmp_path / "m.pt"))
    assert "do not belong together" in sentence
    assert "pip install --upgrade --force-reinstall torch torchvision" in sentence


def test_torchvision_missing(tmp_path, squeezenet, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "pip install torch torchvision" in refusal(save(squeezenet, tmp_path / "m.pt"))


@pytest.fixture
def two_architectures(monkeypatch):
    monkeypatch.setattr(architectures, "list_architectures", lambda: ["alexnet", "vgg11"])


def test_cache_is_written_read_and_mended(tmp_path, two_architectures):
    fingerprints = architectures.registry_fingerprints(tmp_path / "new" / "cache")
    (cache,) = (tmp_path / "new" / "cache").iterdir()
    assert architectures.registry_fingerprints(tmp_path / "new" / "cache") == fingerprints
    for damage in ("", "{", "[]", '{"alexnet": 3, "vgg11": {}}', json.dumps({"alexnet": {"a": [1]}})):
        cache.write_text(damage)
        assert architectures.registry_fingerprints(cache.parent) == fingerprints
        assert set(json.loads(cache.read_text())) == {"alexnet", "vgg11"}


def test_cache_that_cannot_be_written(tmp_path, two_architectures):
    (tmp_path / "file").write_text("in the way")
    assert set(architectures.registry_fingerprints(tmp_path / "file")) == {"alexnet", "vgg11"}
    assert (tmp_path / "file").read_text() == "in the way"


def test_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert architectures.cache_file().parent == tmp_path / "bocompress"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert architectures.cache_file().parent == tmp_path / ".cache" / "bocompress"
