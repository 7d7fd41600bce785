"""Fine-tuning at fixed ranks: it helps, it resumes, it leaves alone what is not its own."""

import copy
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.datasets.digits import MEAN, STD, as_inputs, load_digits_images
from benchmarks.datasets.training import train_classifier
from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.factorization.registry import METHODS
from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.layers import compressible, find_layers
from compressor.network.pruning import prune_smallest
from compressor.network.surgery import build_candidate, detach_from_original
from compressor.pipeline.image_splits import MIN_TRAIN_IMAGES, divide_training
from compressor.recovery.finetuning import FineTuning
from compressor.recovery.records import Schedule, TuneRecord
from compressor.recovery.schedules import TuneSettings, rate_at

CPU = torch.device("cpu")
SETTINGS = TuneSettings(epochs=3, learning_rate=0.003, batch_size=16)


def digit_set(first: int, last: int) -> ImageSet:
    images, labels = load_digits_images()
    data = torch.from_numpy(images[first:last].copy())[:, None, ::2, ::2].expand(-1, 3, -1, -1).contiguous()
    names = [str(digit) for digit in range(10)]
    return ImageSet(data, f"digits {first} to {last}", MEAN, STD, torch.from_numpy(labels[first:last].copy()), names)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
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
def student(teacher: nn.Module) -> nn.Module:
    """Every layer at a rank that hurts, by methods of every kind of module."""
    layers = compressible(find_layers(teacher, digit_set(0, 2).batch([0]), method="spatial"))
    methods = ["spatial", "interpolative", "tucker", "svd"]
    factors = {layer.name: METHODS[name].factorize(layer.module) for layer, name in zip(layers, methods, strict=True)}
    ranks = {layer.name: max(2, layer.break_even_rank // 4) for layer in layers}
    return detach_from_original(build_candidate(teacher, factors, ranks))


@pytest.fixture(scope="module")
def train() -> ImageSet:
    return digit_set(1000, 1200)


@pytest.fixture(scope="module")
def check() -> ImageSet:
    return digit_set(1200, 1300)


class Stopped(Exception):
    """What a person's Ctrl-C does, at a step of our choice."""


def tune(
    student: nn.Module, teacher: nn.Module, train: ImageSet, check: ImageSet, settings: TuneSettings, **more: object
) -> tuple[nn.Module, TuneRecord]:
    return FineTuning(student, teacher, train, check, settings, CPU, **more).run()  # type: ignore[arg-type]


def norm_on_unseen(network: nn.Module, teacher: nn.Module) -> float:
    norm = FunctionNorm(teacher, digit_set(1300, 1600), CPU)
    return norm.losses(network, np.arange(300)).mean


def test_distillation_brings_the_network_nearer_to_the_original(
    student: nn.Module, teacher: nn.Module, train: ImageSet, check: ImageSet
) -> None:
    before = copy.deepcopy(student.state_dict())
    tuned, record = tune(student, teacher, replace(train, labels=None), check, SETTINGS)
    assert norm_on_unseen(tuned, teacher) < 0.8 * norm_on_unseen(student, teacher)
    norms = [row.function_norm for row in record.rows]
    assert record.kept_epoch == int(np.argmin(norms)) > 0
    assert [row.epoch for row in record.rows] == [0, 1, 2, 3]
    assert record.stopped_because == "3 epochs done"
    # Shapes, indices and statistics stay, and so does the network that was given.
    after = tuned.state_dict()
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in before.items())
    assert {name: value.shape for name, value in after.items()} == {n: v.shape for n, v in before.items()}
    same = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert same == {name for name in before if "running" in name or "num_batches" in name or name.endswith("order")}
    assert not any(value.requires_grad for value in tuned.parameters())


def test_labels_teach_the_labels(student: nn.Module, teacher: nn.Module, train: ImageSet, check: ImageSet) -> None:
    def cross_entropy(network: nn.Module) -> float:
        with torch.inference_mode():
            assert check.labels is not None
            return float(nn.functional.cross_entropy(network(check.batch(slice(None))), check.labels))

    tuned, record = tune(student, teacher, train, check, replace(SETTINGS, by="labels"))
    assert cross_entropy(tuned) < cross_entropy(student)
    assert record.rows[record.kept_epoch].check_loss == pytest.approx(cross_entropy(tuned), rel=1e-4)


@pytest.mark.parametrize("schedule", ["cosine", "cyclic"])
def test_an_interrupted_fine_tuning_goes_on_as_if_nothing_had_happened(
    schedule: Schedule, student: nn.Module, teacher: nn.Module, train: ImageSet, check: ImageSet, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, schedule=schedule)
    wanted, whole = tune(student, teacher, train, check, settings)

    def stop(done: int, note: str) -> None:
        if done > 2 * math.ceil(len(train) / settings.batch_size) + 3:  # in the third epoch
            raise Stopped

    path = tmp_path / "finetune.safetensors"
    with pytest.raises(Stopped):
        tune(student, teacher, train, check, settings, checkpoint=path, on_step=stop)
    steps: list[tuple[int, str]] = []
    resumed, record = tune(
        student,
        teacher,
        train,
        check,
        settings,
        checkpoint=path,
        resume=True,
        on_step=lambda done, note: steps.append((done, note)),
    )
    assert min(steps)[0] >= 2 * math.ceil(len(train) / settings.batch_size)
    assert re.fullmatch(r"epoch 3 of 3, loss [\d.e-]+, 0 s left", steps[-1][1])
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in resumed.state_dict().items())
    assert [row.model_copy(update={"seconds": 0}) for row in record.rows] == [
        row.model_copy(update={"seconds": 0}) for row in whole.rows
    ]
    # Resumed once more, it only hands over what it has.
    again, _ = tune(student, teacher, train, check, settings, checkpoint=path, resume=True, on_step=stop)
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in again.state_dict().items())


def test_pruned_weights_stay_zero(student: nn.Module, teacher: nn.Module, train: ImageSet, check: ImageSet) -> None:
    def weights(network: nn.Module) -> list[Tensor]:
        return [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]

    pruned = prune_smallest(copy.deepcopy(student), 0.3)
    tuned, record = tune(pruned, teacher, train, check, SETTINGS)
    assert record.kept_epoch > 0
    for before, after in zip(weights(pruned), weights(tuned), strict=True):
        assert torch.equal(before == 0, after == 0)
        assert not torch.equal(before, after)
    assert sum(int((weight == 0).sum()) for weight in weights(tuned)) > 100


def test_a_learning_rate_that_destroys_the_network_leaves_it_as_it_was(
    student: nn.Module, teacher: nn.Module, train: ImageSet, check: ImageSet
) -> None:
    tuned, record = tune(student, teacher, train, check, replace(SETTINGS, learning_rate=1e6))
    assert record.kept_epoch == 0
    assert "choose a lower --learning-rate" in record.stopped_because
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in tuned.state_dict().items())


def test_it_stops_when_the_loss_on_other_images_no_longer_falls(
    student: nn.Module, teacher: nn.Module, train: ImageSet
) -> None:
    """Trained towards the labels of noise, it can only get worse on true ones."""
    labels = torch.randint(10, (len(train),), generator=torch.Generator().manual_seed(0))
    settings = replace(SETTINGS, by="labels", epochs=9, patience=2)
    _, record = tune(student, teacher, replace(train, labels=labels), digit_set(1200, 1300), settings)
    assert record.rows[-1].epoch == record.kept_epoch + 2 < 9
    assert record.stopped_because == "the loss on other images has not fallen for 2 epochs"


def test_bfloat16_trains_weights_of_float32(
    student: nn.Module, teacher: nn.Module, train: ImageSet, check: ImageSet
) -> None:
    tuned, record = tune(student, teacher, train, check, replace(SETTINGS, epochs=1, autocast=True))
    _, exact = tune(student, teacher, train, check, replace(SETTINGS, epochs=1))
    assert {value.dtype for value in tuned.parameters()} == {torch.float32}
    assert record.rows[1].function_norm == pytest.approx(exact.rows[1].function_norm, rel=0.1)
    assert record.rows[1].function_norm != exact.rows[1].function_norm


def test_a_checkpoint_of_another_run_is_refused(
    student: nn.Module, teacher: nn.Module, train: ImageSet, check: ImageSet, tmp_path: Path
) -> None:
    settings, path = replace(SETTINGS, epochs=1), tmp_path / "finetune.safetensors"
    small = train.subset(range(32))
    tune(student, teacher, small, check, settings, checkpoint=path, about={"plan": "one"})
    for other, about, word in (
        (replace(settings, learning_rate=0.1), {"plan": "one"}, "fine-tuning settings"),
        (settings, {"plan": "two"}, "plan"),
    ):
        with pytest.raises(InputError, match=f"was written with other {word}; --resume needs the same"):
            tune(student, teacher, small, check, other, checkpoint=path, about=about, resume=True)
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    for content in (b"", b"no checkpoint"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not a checkpoint of a fine-tuning"):
            tune(student, teacher, small, check, settings, checkpoint=path, resume=True)
    save_file(tensors, path)  # without what it is about
    with pytest.raises(InputError, match="is not a checkpoint of a fine-tuning"):
        tune(student, teacher, small, check, settings, checkpoint=path, resume=True)


def test_learning_rates_follow_the_paper() -> None:
    step = [rate_at("step", 1e-4, number, 10, 5) for number in range(50)]
    assert step[0] == step[9] == 1e-4
    assert step[10] == pytest.approx(1e-5)
    assert step[49] == pytest.approx(1e-8)
    cyclic = [rate_at("cyclic", 1e-4, number, 100, 2) for number in range(200)]
    assert 1e-7 < min(cyclic) < 2e-6
    assert 0.98e-4 < max(cyclic) <= 1e-4
    assert np.argmax(cyclic) in (49, 50)
    assert cyclic[:100] == pytest.approx(cyclic[100:])
    cosine = [rate_at("cosine", 0.01, number, 100, 2) for number in range(200)]
    assert cosine[0] == 0.01
    assert cosine[-1] < 1e-5
    assert cosine == sorted(cosine, reverse=True)


# Which images


def numbered(first: int, last: int) -> ImageSet:
    return ImageSet(torch.arange(float(first), float(last))[:, None], "numbers")


def values(images: ImageSet) -> set[float]:
    return set(images.data.flatten().tolist())


def test_without_images_of_its_own_training_takes_all_but_the_judges() -> None:
    parts = numbered(0, 30), numbered(30, 100), numbered(100, 150)
    found = divide_training(None, *parts, seed=0)
    assert values(found.train) | values(found.check) == set(range(100))
    assert len(found.train) + len(found.check) == 100
    assert len(found.check) == 20
    assert found.excluded == 0


def test_images_given_for_training_never_check_nor_judge() -> None:
    parts = numbered(0, 30), numbered(30, 100), numbered(100, 150)
    found = divide_training(numbered(20, 200), *parts, seed=0)
    assert values(found.train) == {*range(20, 30), *range(150, 200)}
    assert values(found.check) == set(range(30, 100))
    assert found.excluded == 120


def test_drawn_images_neither_teach_nor_check() -> None:
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
