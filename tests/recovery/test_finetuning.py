"""Fine-tuning at fixed ranks: it helps, it resumes, and it changes nothing but what it trains."""

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.demo.digits import MEAN, STD, as_inputs, load_digits_images
from benchmarks.demo.training import train_classifier
from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.factorization.registry import METHODS
from compressor.fidelity.function_norm import FunctionNorm
from compressor.files.tensors import write_tensors
from compressor.network.layers import compressible, find_layers
from compressor.network.pruning import prune_smallest
from compressor.network.surgery import build_candidate, detach_from_original
from compressor.pipeline.image_splits import MIN_TRAIN_IMAGES, divide_training
from compressor.recovery.finetuning import FineTuning
from compressor.recovery.records import Schedule, TuneRecord
from compressor.recovery.schedules import make_scheduler
from compressor.recovery.settings import TuneSettings

CPU = torch.device("cpu")
SETTINGS = TuneSettings(epochs=3, learning_rate=0.003, batch_size=16)


def digit_set(first: int, last: int) -> ImageSet:
    images, labels = load_digits_images()
    data = torch.from_numpy(images[first:last].copy())[:, None, ::2, ::2].expand(-1, 3, -1, -1).contiguous()
    names = [str(digit) for digit in range(10)]
    return ImageSet(data, f"digits {first} to {last}", MEAN, STD, torch.from_numpy(labels[first:last].copy()), names)


@pytest.fixture(scope="module")
def original() -> nn.Module:
    """About 95 % right after a second of training."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    images, labels = load_digits_images()
    inputs = as_inputs(images[:1000])[..., ::2, ::2].contiguous()
    train_classifier(network, inputs, torch.from_numpy(labels[:1000]), 3, 50, 0.05, lambda *_: None)
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def compressed(original: nn.Module) -> nn.Module:
    """Every layer at a rank that hurts, by methods of every kind of module."""
    layers = compressible(find_layers(original, digit_set(0, 2).batch([0]), method="spatial"))
    methods = ["spatial", "interpolative", "tucker", "svd"]
    factors = {layer.name: METHODS[name].factorize(layer.module) for layer, name in zip(layers, methods, strict=True)}
    ranks = {layer.name: max(2, layer.break_even_rank // 4) for layer in layers}
    return detach_from_original(build_candidate(original, factors, ranks))


@pytest.fixture(scope="module")
def train() -> ImageSet:
    return digit_set(1000, 1200)


@pytest.fixture(scope="module")
def check() -> ImageSet:
    return digit_set(1200, 1300)


class Stopped(Exception):
    """Stands for Ctrl-C at a step of the test's choice."""


def tune(
    compressed: nn.Module, original: nn.Module, train: ImageSet, check: ImageSet, settings: TuneSettings, **more: object
) -> tuple[nn.Module, TuneRecord]:
    return FineTuning(compressed, original, train, check, settings, CPU, **more).run()  # type: ignore[arg-type]


def norm_on_unseen(network: nn.Module, original: nn.Module) -> float:
    norm = FunctionNorm(original, digit_set(1300, 1600), CPU)
    return norm.losses(network, np.arange(300)).mean


def test_distillation_brings_the_network_nearer_to_the_original(
    compressed: nn.Module, original: nn.Module, train: ImageSet, check: ImageSet
) -> None:
    before = copy.deepcopy(compressed.state_dict())
    tuned, record = tune(compressed, original, replace(train, labels=None), check, SETTINGS)
    assert norm_on_unseen(tuned, original) < 0.8 * norm_on_unseen(compressed, original)
    norms = [row.function_norm for row in record.rows]
    assert record.kept_epoch == int(np.argmin(norms)) > 0
    assert [row.epoch for row in record.rows] == [0, 1, 2, 3]
    assert record.stopped_because == "3 epochs done"
    # Shapes, indices and statistics stay, and so does the network that was given.
    after = tuned.state_dict()
    assert all(torch.equal(value, compressed.state_dict()[name]) for name, value in before.items())
    assert {name: value.shape for name, value in after.items()} == {n: v.shape for n, v in before.items()}
    same = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert same == {name for name in before if "running" in name or "num_batches" in name or name.endswith("order")}
    assert not any(value.requires_grad for value in tuned.parameters())


def test_labels_teach_the_labels(compressed: nn.Module, original: nn.Module, train: ImageSet, check: ImageSet) -> None:
    def cross_entropy(network: nn.Module) -> float:
        with torch.inference_mode():
            assert check.labels is not None
            return float(nn.functional.cross_entropy(network(check.batch(slice(None))), check.labels))

    tuned, record = tune(compressed, original, train, check, replace(SETTINGS, by="labels"))
    assert cross_entropy(tuned) < cross_entropy(compressed)
    assert record.rows[record.kept_epoch].check_loss == pytest.approx(cross_entropy(tuned), rel=1e-4)


@pytest.mark.parametrize("schedule", get_args(Schedule))
def test_an_interrupted_fine_tuning_ends_with_the_same_bits(
    schedule: Schedule, compressed: nn.Module, original: nn.Module, train: ImageSet, check: ImageSet, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, schedule=schedule)
    expected, whole = tune(compressed, original, train, check, settings)

    def stop(done: int, note: str) -> None:
        if done > 2 * math.ceil(len(train) / settings.batch_size) + 3:  # in the third epoch
            raise Stopped

    path = tmp_path / "finetune.safetensors"
    with pytest.raises(Stopped):
        tune(compressed, original, train, check, settings, checkpoint=path, on_step=stop)
    steps: list[tuple[int, str]] = []
    resumed, record = tune(
        compressed,
        original,
        train,
        check,
        settings,
        checkpoint=path,
        resume=True,
        on_step=lambda done, note: steps.append((done, note)),
    )
    assert min(steps)[0] >= 2 * math.ceil(len(train) / settings.batch_size)
    assert re.fullmatch(r"epoch 3 of 3, loss [\d.e-]+", steps[-1][1])
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in resumed.state_dict().items())
    assert [row.model_copy(update={"seconds": 0}) for row in record.rows] == [
        row.model_copy(update={"seconds": 0}) for row in whole.rows
    ]
    # Resumed once more, it only returns what it has.
    again, _ = tune(compressed, original, train, check, settings, checkpoint=path, resume=True, on_step=stop)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in again.state_dict().items())


def test_pruned_weights_stay_zero(compressed: nn.Module, original: nn.Module, train: ImageSet, check: ImageSet) -> None:
    def weights(network: nn.Module) -> list[Tensor]:
        return [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]

    pruned = prune_smallest(copy.deepcopy(compressed), 0.3)
    tuned, record = tune(pruned, original, train, check, SETTINGS)
    assert record.kept_epoch > 0
    for before, after in zip(weights(pruned), weights(tuned), strict=True):
        assert torch.equal(before == 0, after == 0)
        assert not torch.equal(before, after)
    assert sum(int((weight == 0).sum()) for weight in weights(tuned)) > 100


def test_a_learning_rate_that_destroys_the_network_leaves_it_as_it_was(
    compressed: nn.Module, original: nn.Module, train: ImageSet, check: ImageSet
) -> None:
    tuned, record = tune(compressed, original, train, check, replace(SETTINGS, learning_rate=1e6))
    assert record.kept_epoch == 0
    assert "choose a lower --learning-rate" in record.stopped_because
    assert all(torch.equal(value, compressed.state_dict()[name]) for name, value in tuned.state_dict().items())


def test_it_stops_when_the_loss_on_other_images_no_longer_falls(
    compressed: nn.Module, original: nn.Module, train: ImageSet
) -> None:
    """Trained towards the labels of noise, it can only get worse on true ones."""
    labels = torch.randint(10, (len(train),), generator=torch.Generator().manual_seed(0))
    settings = replace(SETTINGS, by="labels", epochs=9, patience=2)
    _, record = tune(compressed, original, replace(train, labels=labels), digit_set(1200, 1300), settings)
    assert record.rows[-1].epoch == record.kept_epoch + 2 < 9
    assert record.stopped_because == "the loss on other images has not fallen for 2 epochs"


def test_bfloat16_trains_weights_of_float32(
    compressed: nn.Module, original: nn.Module, train: ImageSet, check: ImageSet
) -> None:
    tuned, record = tune(compressed, original, train, check, replace(SETTINGS, epochs=1, autocast=True))
    _, exact = tune(compressed, original, train, check, replace(SETTINGS, epochs=1))
    assert {value.dtype for value in tuned.parameters()} == {torch.float32}
    assert record.rows[1].function_norm == pytest.approx(exact.rows[1].function_norm, rel=0.1)
    assert record.rows[1].function_norm != exact.rows[1].function_norm


def test_a_checkpoint_of_another_run_is_refused(
    compressed: nn.Module, original: nn.Module, train: ImageSet, check: ImageSet, tmp_path: Path
) -> None:
    settings, path = replace(SETTINGS, epochs=1), tmp_path / "finetune.safetensors"
    small = train.subset(range(32))
    tune(compressed, original, small, check, settings, checkpoint=path, about={"plan": "one"})
    for other, about, word in (
        (replace(settings, learning_rate=0.1), {"plan": "one"}, "fine-tuning settings"),
        (settings, {"plan": "two"}, "plan"),
    ):
        with pytest.raises(InputError, match=f"was written with other {word}; --resume needs the same"):
            tune(compressed, original, small, check, other, checkpoint=path, about=about, resume=True)
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    for content in (b"", b"no checkpoint"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not a checkpoint of a fine-tuning"):
            tune(compressed, original, small, check, settings, checkpoint=path, resume=True)
    save_file(tensors, path)  # without what it is about
    with pytest.raises(InputError, match="is not a checkpoint of a fine-tuning"):
        tune(compressed, original, small, check, settings, checkpoint=path, resume=True)


@pytest.mark.parametrize("damage", ["momentum of another shape", "another scheduler", "no rows", "other layers"])
def test_a_checkpoint_of_another_network_is_refused(
    damage: str, compressed: nn.Module, original: nn.Module, train: ImageSet, check: ImageSet, tmp_path: Path
) -> None:
    """Each is a whole file that is about this run, made by hand."""
    settings, path = replace(SETTINGS, epochs=1), tmp_path / "finetune.safetensors"
    small = train.subset(range(32))
    tune(compressed, original, small, check, settings, checkpoint=path)
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    if damage == "momentum of another shape":
        tensors["optimizer/0/momentum_buffer"] = torch.zeros(7, 7)
    if damage == "another scheduler":
        state["scheduler"]["step"] = "a method's name"
    if damage == "no rows":
        del state["rows"]
    if damage == "other layers":
        tensors = {name: value for name, value in tensors.items() if not name.startswith("network/0")}
    save_file(tensors, path, {"state": json.dumps(state)})
    with pytest.raises(InputError, match="is not a checkpoint of a fine-tuning as it was written"):
        tune(compressed, original, small, check, settings, checkpoint=path, resume=True)
    write_tensors(path, tensors, {"state": json.dumps(state)})
    with pytest.raises(InputError, match="is no checkpoint of this network"):
        tune(compressed, original, small, check, settings, checkpoint=path, resume=True)


# Learning rates


def rate_at(schedule: Schedule, highest: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The formulas: divided by 10 each epoch; 1e-7 to the highest and back once an epoch; half a cosine."""
    epoch, within = divmod(step, steps_per_epoch)
    if schedule == "step":
        return highest / 10.0**epoch
    if schedule == "cyclic":
        height = 1 - abs(2 * (within + 0.5) / steps_per_epoch - 1)
        return 1e-7 + (highest - 1e-7) * height
    return highest * (1 + math.cos(math.pi * step / (steps_per_epoch * epochs))) / 2


def scheduled_rates(schedule: Schedule, highest: float, steps_per_epoch: int, epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=highest, momentum=0.9)
    scheduler = make_scheduler(optimizer, schedule, steps_per_epoch, epochs)
    rates = []
    for _ in range(steps_per_epoch * epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize(("highest", "steps_per_epoch", "epochs"), [(1e-4, 100, 2), (0.01, 13, 30), (3.0, 1, 5)])
def test_torchs_schedulers_follow_the_formulas(
    schedule: Schedule, highest: float, steps_per_epoch: int, epochs: int
) -> None:
    expected = [rate_at(schedule, highest, step, steps_per_epoch, epochs) for step in range(steps_per_epoch * epochs)]
    assert scheduled_rates(schedule, highest, steps_per_epoch, epochs) == pytest.approx(expected, rel=1e-9)


def test_learning_rates_follow_the_paper() -> None:
    step = scheduled_rates("step", 1e-4, 10, 5)
    assert step[0] == step[9] == 1e-4
    assert step[10] == pytest.approx(1e-5)
    assert step[49] == pytest.approx(1e-8)
    cyclic = scheduled_rates("cyclic", 1e-4, 100, 2)
    assert 1e-7 < min(cyclic) < 2e-6
    assert 0.98e-4 < max(cyclic) <= 1e-4
    assert np.argmax(cyclic) in (49, 50)
    assert cyclic[:100] == pytest.approx(cyclic[100:])
    cosine = scheduled_rates("cosine", 0.01, 100, 2)
    assert cosine[0] == 0.01
    assert cosine[-1] < 1e-5
    assert cosine == sorted(cosine, reverse=True)


# Which images


def numbered(first: int, last: int) -> ImageSet:
    return ImageSet(torch.arange(float(first), float(last))[:, None], "numbers")


def values(images: ImageSet) -> set[float]:
    return set(images.data.flatten().tolist())


def test_without_images_of_its_own_training_takes_all_but_the_test_images() -> None:
    parts = numbered(0, 30), numbered(30, 100), numbered(100, 150)
    found = divide_training(None, *parts, seed=0)
    assert values(found.train) | values(found.check) == set(range(100))
    assert len(found.train) + len(found.check) == 100
    assert len(found.check) == 20
    assert found.excluded == 0


def test_images_given_for_training_are_no_check_and_no_test_images() -> None:
    parts = numbered(0, 30), numbered(30, 100), numbered(100, 150)
    found = divide_training(numbered(20, 200), *parts, seed=0)
    assert values(found.train) == {*range(20, 30), *range(150, 200)}
    assert values(found.check) == set(range(30, 100))
    assert found.excluded == 120


def test_synthetic_images_neither_train_nor_check() -> None:
    synthetic = [replace(part, synthetic=True) for part in (numbered(0, 30), numbered(30, 100), numbered(100, 150))]
    with pytest.raises(InputError, match="--finetune needs images of the task"):
        divide_training(None, *synthetic, seed=0)
    found = divide_training(numbered(200, 300), *synthetic, seed=0)
    assert values(found.train) | values(found.check) == set(range(200, 300))
    assert len(found.check) == 20


def test_too_few_images_to_train_on_are_an_error() -> None:
    parts = numbered(0, 0), numbered(0, 4), numbered(4, 8)
    with pytest.raises(InputError, match=f"4 images are left to train on, of {MIN_TRAIN_IMAGES} at least"):
        divide_training(numbered(0, 12), *parts, seed=0)
