"""Reading checkpoint files: every format, wrapper and prefix, and every bad file."""

import argparse
import pickle
import sys
import types
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compressor.network.checkpoint import load_model
from compressor.network.checkpoints import matching
from tests.network.saved import random_state, refusal, save


@pytest.fixture(scope="module")
def squeezenet():
    return random_state("squeezenet1_1", 5)


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
    assert loaded.notes == [
        "weights taken from 'state_dict'; the file also holds 'state_dict_ema' (averaged): see --weights"
    ]
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


def test_old_names_of_vision_transformers():
    old = "encoder.layers.encoder_layer_0.mlp.linear_2.bias"
    assert matching.modern_name(old) == "encoder.layers.encoder_layer_0.mlp.3.bias"


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
        (pickle.dumps({"a": 1}, protocol=2), "the entries a and no network weights"),
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
