"""Labels are held against the original's own decisions before anything uses them."""

import numpy as np
import pytest
import torch
from torch import nn

from compressor import compress
from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.fidelity.label_check import check_labels
from compressor.pipeline.settings import Settings
from compressor.recovery.settings import TuneSettings

CPU = torch.device("cpu")
CLASSES = 12
NAMES = [str(number) for number in range(CLASSES)]
ALPHABETICAL = tuple(sorted(NAMES).index(name) for name in NAMES)


class Reader(nn.Module):
    """A network whose outputs are its inputs: a set of images is what it decides."""

    def forward(self, x):
        return x.flatten(1)


def decided(decisions, num_outputs=CLASSES):
    """Inputs (n, outputs) for which `Reader` decides so."""
    return nn.functional.one_hot(torch.as_tensor(decisions), num_outputs).float()


def images(decisions, labels, num_outputs=CLASSES, **fields):
    return ImageSet(decided(decisions, num_outputs), "made", labels=torch.as_tensor(labels), **fields)


def draw(count, classes=CLASSES, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, classes, count))


def check(made):
    return check_labels(Reader(), made, CPU)


def test_labels_that_the_original_knows_are_used():
    labels = draw(200)
    some = torch.where(torch.arange(200) % 3 == 0, draw(200, seed=1), labels)  # right on two thirds
    for decisions in (labels, some):
        made = images(decisions, labels)
        assert not check(made).note
        assert check(made).apply(made) is made


@pytest.mark.parametrize("seed", range(5))
def test_labels_no_better_than_chance_are_dropped_with_the_reason(seed):
    made = images(draw(200, seed=seed + 10), draw(200, seed=seed + 20), class_names=NAMES)
    found = check(made)
    assert "no more than chance gives" in found.reason
    kept = found.apply(made)
    assert (kept.labels, kept.class_names, kept.label_note) == (None, None, found.reason)
    assert kept.notes == (f"labels are not used: {found.reason}",)
    assert torch.equal(kept.data, made.data)


def test_the_most_common_class_gains_nothing():
    labels = (torch.arange(200) % 20 == 0).long()  # 95 % are of class 0
    assert check(images(torch.zeros(200, dtype=torch.int64), labels, 2)).reason
    unbalanced = torch.where(torch.arange(200) % 40 == 0, labels, 0 * labels)  # half of the rare ones are found
    assert not check(images(unbalanced, labels, 2)).reason


def test_one_class_alone_is_held_against_guessing():
    labels = torch.full((60,), 3)
    assert not check(images(labels, labels)).reason
    assert check(images(draw(60), labels)).reason


def test_too_few_images_say_nothing():
    assert not check(images([0, 1, 1], [1, 0, 0], 2)).reason


def test_labels_that_do_not_fit_are_dropped():
    made = images(draw(50), draw(50), class_names=["a", "b"])
    assert "the folder has 2 classes and the network 12 outputs" in check(made).reason


def test_a_single_output_by_its_sign():
    signs = draw(80, 2)
    made = ImageSet((signs * 2.0 - 1)[:, None], "made", labels=signs, class_names=["bad", "good"])
    assert not check(made).note
    assert check(ImageSet(made.data, "made", labels=draw(80, 2, seed=5))).reason


def test_the_original_chooses_between_two_usual_orders():
    numbers = draw(240)
    made = images(torch.tensor(ALPHABETICAL)[numbers], numbers, class_names=NAMES, other_order=ALPHABETICAL)
    found = check(made)
    assert found.renumbered
    assert "the order 0, 1, 10, 11, ..., as the original's decisions say: it is right on 100%" in found.note
    kept = found.apply(made)
    assert torch.equal(kept.labels, torch.tensor(ALPHABETICAL)[numbers])
    assert kept.class_names == sorted(NAMES)
    assert torch.equal(kept.renumbered().labels, numbers)
    assert kept.renumbered().class_names == NAMES
    by_number = images(numbers, numbers, class_names=NAMES, other_order=ALPHABETICAL)
    assert not check(by_number).note


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(fidelity="risk"), "--fidelity risk needs labels: the original decides"),
        (Settings(tune=TuneSettings(epochs=1, by="labels")), "--finetune-by labels: the original decides"),
    ],
)
def test_what_needs_labels_is_refused_at_once(tmp_path, settings, words):
    network = nn.Sequential(nn.Linear(CLASSES, CLASSES, bias=False))
    nn.init.eye_(network[0].weight)
    made = images(draw(300), draw(300, seed=1))
    with pytest.raises(InputError, match=words):
        compress(network, made, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
