"""torchvision's classifiers: each recognized by names and shapes of its tensors, with a cache of these."""

import importlib.abc
import json
import sys
from pathlib import Path

import pytest
import torch

from compressor.data.transforms import Transform
from compressor.files import read_sealed
from compressor.network import architectures
from compressor.network.architectures import CLASSES, TOKENS
from compressor.network.checkpoint import load_model
from compressor.network.checkpoints import matching
from tests.network.saved import random_state, refusal, save


@pytest.fixture(scope="module")
def squeezenet():
    return random_state("squeezenet1_1", 5)


def test_every_architecture_is_recognized_and_no_two_are_alike(registry):
    assert len(registry) == 97  # 80 classifiers, 6 segmentation networks, 9 for clips, 2 of optical flow
    for arch, fingerprint in registry.items():
        values = {CLASSES: 7, TOKENS: 197}
        shapes = {name: tuple(values.get(n, n) for n in shape) for name, shape in fingerprint.items()}
        fitting = [other for other in registry if matching.first_difference(shapes, registry[other]) is None]
        assert fitting == [arch]
        assert matching.free_sizes(shapes, fingerprint).get(CLASSES) == (None if arch.startswith("raft") else 7)


def test_no_architecture_has_a_prefix_as_wrappers_add(registry):
    for fingerprint in registry.values():
        assert len({name.partition(".")[0] for name in fingerprint}) > 1
        assert not any(name.startswith(matching.AUXILIARY_HEADS) for name in fingerprint)


def test_building_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    architectures.build_model("vit_b_32", 3)
    architectures.build_model("convnext_tiny", 3)
    assert torch.equal(torch.rand(3), expected)


def test_published_transforms():
    assert architectures.published_transform("resnet18") == Transform(224, 256)
    b1 = architectures.published_transform("efficientnet_b1")
    assert (b1.input_size, b1.resize_size, b1.interpolation) == (240, 255, "bilinear")
    assert architectures.published_transform("efficientnet_b0").interpolation == "bicubic"
    assert architectures.published_transform("vit_h_14").input_size == 518
    assert architectures.published_transform("vit_h_14", image_size=224).input_size == 224


def test_given_architecture_needs_no_registry(tmp_path, squeezenet, monkeypatch):
    monkeypatch.setattr(architectures, "registry_fingerprints", None)
    assert load_model(save(squeezenet, tmp_path / "a.pt"), arch="SqueezeNet1_1").arch == "squeezenet1_1"


def test_nearest_architecture_and_first_difference(tmp_path):
    state = random_state("resnet18", 10)
    odd_stem = state | {"conv1.weight": torch.ones(64, 3, 5, 5)}
    sentence = refusal(save(odd_stem, tmp_path / "m.pt"))
    assert "the nearest is resnet18" in sentence
    assert "'conv1.weight' has shape 64x3x5x5 instead of 64x3x7x7" in sentence
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    assert "it lacks 'fc.weight'" in refusal(save(headless, tmp_path / "m.pt"))
    assert "it has 'extra'" in refusal(save(state | {"extra": torch.ones(5)}, tmp_path / "m.pt"))
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
    monkeypatch.setattr(architectures, "list_fingerprinted", lambda: ["alexnet", "vgg11"])


def test_cache_is_written_read_and_mended(tmp_path, two_architectures):
    fingerprints = architectures.registry_fingerprints(tmp_path / "new" / "cache")
    (cache,) = (tmp_path / "new" / "cache").iterdir()
    assert architectures.registry_fingerprints(tmp_path / "new" / "cache") == fingerprints
    for damage in ("", "{", "[]", '{"alexnet": 3, "vgg11": {}}', json.dumps({"alexnet": {"a": [1]}})):
        cache.write_text(damage)
        assert architectures.registry_fingerprints(cache.parent) == fingerprints
        assert set(read_sealed(cache, "cache")) == {"alexnet", "vgg11"}


def test_the_cache_is_parsed_once(tmp_path, two_architectures, monkeypatch):
    architectures.registry_fingerprints(tmp_path)
    first = architectures.registry_fingerprints(tmp_path)
    monkeypatch.setattr(architectures, "read_sealed", None)
    assert architectures.registry_fingerprints(tmp_path) is first


def test_cache_that_cannot_be_written(tmp_path, two_architectures):
    (tmp_path / "file").write_text("in the way")
    assert set(architectures.registry_fingerprints(tmp_path / "file")) == {"alexnet", "vgg11"}
    assert (tmp_path / "file").read_text() == "in the way"


def test_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = architectures.cache_file()
    assert cache.parent == tmp_path / "bocompress"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    # Earlier platformdirs take a relative folder as it is; there is no cache then.
    assert architectures.cache_file() in (None, tmp_path / ".cache" / "bocompress" / cache.name)


def test_no_cache_without_a_home_directory(monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: Path("~/.cache/bocompress"))
    assert architectures.cache_file() is None
