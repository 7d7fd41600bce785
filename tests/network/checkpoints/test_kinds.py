"""Checkpoints as people bring them: each kind loads to what its owner trained, and notes say what was inferred."""

import argparse
import json
import os
import pathlib
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from compressor.network.checkpoint import load_model
from tests.network.checkpoints.kinds import Around, network, prefixed, same_outputs
from tests.network.saved import refusal, save

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
    assert "kinds.Around, which is not run" in refusal(save(original, tmp_path / "m.pt"))


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
