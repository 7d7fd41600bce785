"""Fine-tuning within the whole job: which images it sees, what the report says, and what is refused at once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from compressor import apply_plan, compress
from compressor.data.batches import from_batches
from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.pipeline.outputs import CHECKPOINT
from compressor.pipeline.settings import Settings
from compressor.pipeline.state import CompressedModel
from compressor.recovery.finetuning import FineTuning
from compressor.recovery.settings import TuneSettings
from compressor.report.console import print_report
from compressor.report.page import render_report
from compressor.report.records import Report
from compressor.search.optimizer import SearchSettings
from tests.cli.outcomes import listing, the_sentence

SEARCH = SearchSettings(max_evaluations=4, samples=8, certificate="pointwise", seed=1)
TUNE = TuneSettings(epochs=2, learning_rate=0.003, batch_size=8)
SETTINGS = Settings(search=SEARCH, tune=TUNE, gamma=1.0, prune_fraction=0.2)

pytestmark = pytest.mark.usefixtures("unmeasured")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    ).eval()


@pytest.fixture(scope="module")
def run(
    unmeasured: None, network: nn.Module, images: ImageSet, tmp_path_factory: pytest.TempPathFactory
) -> CompressedModel:
    return compress(network, images, tmp_path_factory.mktemp("tuned") / "out", SETTINGS)


def test_the_report_says_what_tuning_brought(run: CompressedModel, capsys: pytest.CaptureFixture[str]) -> None:
    record = run.report.tuning
    assert record is not None
    assert record.before is not None
    assert record.after is not None
    # Lower on the check images by construction; on test images two epochs on a few images change it by chance.
    assert record.after.function_norm < 1.05 * record.before.function_norm
    assert record.after.function_norm == pytest.approx(run.report.fidelity.function_norm, rel=1e-4)
    assert run.report.top1 is not None
    assert record.after.top1 == run.report.top1.compressed
    images = run.report.images
    assert record.train_images + record.check_images == images.calibration + images.search
    stored = load_file(run.folder / "compressed.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in run.model.state_dict().items())
    assert run.report.nonzero_params.compressed < 0.9 * run.report.params.compressed
    print_report(run.report, run.folder)
    assert f"fine-tuning: epoch {record.kept_epoch} of 2 kept, function norm" in capsys.readouterr().out
    page = render_report(run.report).replace("\u202f", " ").replace("\xa0", " ")
    assert '<h2 id="tuning">Fine-tuning</h2>' in page
    assert "by distillation from the original’s outputs, without labels" in page.replace("\u202f", " ").replace(
        "\xa0", " "
    )
    assert Report.model_validate_json((run.folder / "report.json").read_text()) == run.report


def test_a_run_killed_while_tuning_ends_as_one_that_was_not(
    run: CompressedModel, network: nn.Module, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = FineTuning._epoch

    def fail(tuning: FineTuning, number: int) -> object:
        if number == 2:
            raise KeyboardInterrupt
        return epoch(tuning, number)

    monkeypatch.setattr(FineTuning, "_epoch", fail)
    with pytest.raises(KeyboardInterrupt):
        compress(network, images, tmp_path / "out", SETTINGS)
    assert (tmp_path / "out" / CHECKPOINT).exists()
    numbers: list[int] = []
    monkeypatch.setattr(FineTuning, "_epoch", lambda tuning, number: numbers.append(number) or epoch(tuning, number))
    resumed = compress(network, images, tmp_path / "out", SETTINGS, resume=True)
    assert numbers == [2]
    weights = resumed.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in run.model.state_dict().items())


def test_a_plan_is_applied_and_tuned_on_images_of_its_own(
    run: CompressedModel, network: nn.Module, images: ImageSet, tmp_path: Path
) -> None:
    """Those of them that check or judge are left out, and said to be."""
    settings = Settings(factors=None, search=SEARCH, tune=TUNE)
    result = apply_plan(network, images, run.plan, tmp_path / "out", settings, train_images=images)
    record = result.report.tuning
    assert record is not None
    assert record.excluded == 120 - record.train_images == record.check_images + result.report.images.test_images
    assert any(f"{record.excluded} images of --train-data" in warning for warning in result.report.warnings)


def test_what_cannot_be_learnt_is_refused_before_anything_is_written(
    network: nn.Module, images: ImageSet, tmp_path: Path
) -> None:
    unlabelled = from_batches(images.data, 120)
    by_labels = Settings(search=SEARCH, tune=TuneSettings(epochs=1, by="labels"))
    cases = [
        (unlabelled, by_labels, None, "--finetune-by labels: no labels"),
        (images, by_labels, unlabelled, "--finetune-by labels: no labels"),
        (from_batches([(images.data, torch.full((120,), 10))], 120), by_labels, None, "the network has 10 outputs"),
        (
            images,
            SETTINGS,
            from_batches(torch.randn(20, 3, 9, 9), 20),
            "to train on are 3 x 9 x 9, the others 3 x 8 x 8",
        ),
    ]
    for given, settings, train, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            compress(network, given, tmp_path / "out", settings, train_images=train)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--finetune", 2), "--finetune needs images of the task: give --data or --train-data"),
        (("--train-data", "."), "--train-data is for fine-tuning: give --finetune EPOCHS as well"),
        (("--learning-rate", 0.1), "--learning-rate is for fine-tuning: give --finetune EPOCHS as well"),
        (("--finetune", 1, "--train-data", "nowhere"), "nowhere does not exist"),
    ],
)
def test_wrong_options_are_one_sentence(
    arguments: tuple[object, ...], sentence: str, invoke: Callable, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    command = (tiny_checkpoint, "--trust-pickle", "--input-size", 32, *arguments, "--out", tmp_path / "out")
    result = invoke("bocompress-export", *command)
    assert result.exit_code == 2
    assert the_sentence(result.stderr).removeprefix("error: ") == sentence
    assert listing(tmp_path) == {}


def test_the_command_line_tunes(invoke: Callable, fitted_checkpoint: Path, digit_images: Path, tmp_path: Path) -> None:
    network = (fitted_checkpoint, "--trust-pickle", "--input-size", 32)
    command = (*network, "--data", digit_images, "--out", tmp_path / "out")
    evaluations = ("--max-evaluations", 1, "--samples", 4, "--factors", "weight", "--no-recalibrate")
    tuning = ("--finetune", 1, "--schedule", "cyclic", "--learning-rate", 0.001, "--finetune-by", "labels")
    result = invoke("bocompress-export", *command, *evaluations, *tuning)
    assert result.exit_code in (0, 3), result.output  # one evaluation may find no more than a destroyed network
    assert "fine-tuning: done" in result.stderr
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_text())
    assert report.tuning is not None
    assert (report.tuning.by, report.tuning.schedule, report.tuning.learning_rate) == ("labels", "cyclic", 0.001)
