"""Recipes: what may stand in one, and stages that go on where they were stopped."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor import compress
from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.network.serialization import changed_names, load_network
from compressor.pipeline.delivery import export
from compressor.pipeline.plan import Plan
from compressor.pipeline.recipe import Recipe, list_recipes, load_recipe, parse_recipe, recipe_text
from compressor.pipeline.settings import Settings
from compressor.pipeline.stages import build, prune
from compressor.pipeline.stages.recorded import STAGE
from compressor.pipeline.state import CompressedModel
from compressor.recovery.finetuning import FineTuning
from compressor.report.console import print_report
from compressor.report.page import render_report
from compressor.report.records import Report
from compressor.search.optimizer import Search, SearchSettings
from tests.browser import PHONE_WIDTH, on_a_phone, run_browser
from tests.cli.outcomes import listing, the_sentence

SMALL = """
[[stage]]
kind = "compress"
name = "convs"
of = "conv"
method = "spatial"
gamma = 1.0

[[stage]]
kind = "finetune"
name = "tune"
epochs = 2
schedule = "cyclic"
learning_rate = 0.01
batch_size = 8

[[stage]]
kind = "compress"
name = "linears"
of = "linear"
method = "svd"

[[stage]]
kind = "finetune"
name = "tune-again"
epochs = 1
by = "labels"
learning_rate = 0.001

[[stage]]
kind = "prune"
fraction = 0.2
"""
SETTINGS = Settings(search=SearchSettings(max_evaluations=3, samples=8, certificate="pointwise", seed=1), gamma=0.5)

pytestmark = pytest.mark.usefixtures("with_pages")


@pytest.fixture(scope="module")
def run(
    with_pages: None, network: nn.Module, images: ImageSet, tmp_path_factory: pytest.TempPathFactory
) -> CompressedModel:
    folder = tmp_path_factory.mktemp("recipe") / "out"
    return compress(network, images, folder, SETTINGS, parse_recipe(SMALL, "small"))


# A recipe at work


def test_every_stage_leaves_its_line_and_its_checkpoint(
    run: CompressedModel, network: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = run.report.stages
    assert [stage.name for stage in stages] == ["original", "convs", "tune", "linears", "tune-again", "prune"]
    assert [stage.kind for stage in stages] == ["original", "compress", "finetune", "compress", "finetune", "prune"]
    ratios = [stage.ratio for stage in stages]
    assert ratios[0] == 1.0
    assert ratios[1] < 0.9
    assert ratios[3] < 0.9 * ratios[2]
    assert ratios[5] < 0.9 * ratios[4]
    assert stages[0].metrics.top1 == 1.0
    assert all(stage.metrics.top5 is not None for stage in stages)
    assert stages[2].metrics.function_norm < stages[1].metrics.function_norm
    assert stages[5].metrics.function_norm == pytest.approx(run.report.fidelity.function_norm, rel=1e-4)
    assert [stage.gamma for stage in stages] == [None, 1.0, None, 0.5, None, None]
    assert stages[1].search is not None
    assert stages[4].tuning is not None
    assert stages[4].tuning.by == "labels"
    folders = sorted(path.name for path in (run.folder / "stages").iterdir())
    assert folders == ["1-convs", "2-tune", "3-linears", "4-tune-again", "5-prune", "recipe.json"]
    last = load_network(network, run.folder / "stages" / "5-prune" / "network.safetensors")
    inputs = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(last(inputs), run.model(inputs))
    assert set(changed_names(network, run.model)) == {row.name for row in run.plan.layers if row.rank}
    assert {row.name: row.method for row in run.plan.layers} == {"0": "spatial", "3": "spatial", "7": "svd", "9": "svd"}
    assert Plan.model_validate_json((run.folder / "plan.json").read_text()).prune_fraction == 0.2
    print_report(run.report, run.folder)
    assert "tune-again" in capsys.readouterr().out
    page = render_report(run.report)
    assert "The recipe, stage by stage" in page
    assert "There was no search" not in page


def test_the_page_has_every_stage_and_fits_a_phone(run: CompressedModel, tmp_path: Path) -> None:
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    found = on_a_phone(page, tmp_path)
    assert found["scroll"] <= found["inner"] == PHONE_WIDTH
    dom = run_browser(tmp_path, run.folder / "report.html", "--dump-dom")
    table = re.search(r'<caption id="stage-table".*?</table>', dom, re.DOTALL)
    assert table is not None
    for stage in run.report.stages:
        assert stage.name in table[0]
    assert table[0].count("<tr") == 1 + len(run.report.stages)


@pytest.mark.parametrize(
    ("at", "owner", "name", "call"),
    [
        pytest.param("1-convs", Search, "_test", 2, marks=pytest.mark.hard),
        pytest.param("2-tune", FineTuning, "_epoch", 2, marks=pytest.mark.slow),
        pytest.param("3-linears", build, "build", 2, marks=pytest.mark.hard),
        pytest.param("4-tune-again", FineTuning, "_epoch", 3, marks=pytest.mark.hard),
        pytest.param("5-prune", prune, "prune_smallest", 1, marks=pytest.mark.hard),
        ("the files", export, "export_both", 1),
    ],
)
def test_a_recipe_goes_on_at_the_stage_that_was_interrupted(
    at: str,
    owner: object,
    name: str,
    call: int,
    run: CompressedModel,
    network: nn.Module,
    images: ImageSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, original, count = parse_recipe(SMALL, "small"), getattr(owner, name), 0

    def stop(*arguments: object, **named: object) -> object:
        nonlocal count
        count += 1
        if count == call:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, stop)
    with pytest.raises(KeyboardInterrupt):
        compress(network, images, tmp_path / "out", SETTINGS, recipe)
    done = [folder for folder in recipe.folders if (tmp_path / "out" / "stages" / folder / STAGE).exists()]
    assert done == [folder for folder in recipe.folders if folder < at]
    kept = {folder: (tmp_path / "out" / "stages" / folder / STAGE).stat().st_mtime_ns for folder in done}
    resumed = compress(network, images, tmp_path / "out", SETTINGS, recipe, resume=True)
    assert kept == {folder: (tmp_path / "out" / "stages" / folder / STAGE).stat().st_mtime_ns for folder in done}
    weights = resumed.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in run.model.state_dict().items())
    assert resumed.plan == run.plan
    assert [stage.metrics for stage in resumed.report.stages] == [stage.metrics for stage in run.report.stages]


def test_a_recipe_is_not_resumed_with_another(
    run: CompressedModel, network: nn.Module, images: ImageSet, tmp_path: Path
) -> None:
    commented = parse_recipe(f"# a remark\ndescription = 'mine'\n{SMALL}", "small")
    before = listing(run.folder / "stages")
    again = compress(network, images, run.folder, SETTINGS, commented, resume=True)
    assert again.plan == run.plan
    assert listing(run.folder / "stages") == before
    other = parse_recipe(SMALL.replace("epochs = 2", "epochs = 3"), "small")
    with pytest.raises(InputError, match="was written with other recipe; --resume needs the same"):
        compress(network, images, run.folder, SETTINGS, other, resume=True)
    with pytest.raises(InputError, match="was written with other images"):
        compress(network, images.subset(range(100)), run.folder, SETTINGS, commented, resume=True)
    with pytest.raises(InputError, match="was written with other settings"):
        compress(network, images, run.folder, replace(SETTINGS, gamma=2.0), commented, resume=True)
    with pytest.raises(InputError, match="was written with other labels, settings"):
        compress(network, images, run.folder, replace(SETTINGS, fidelity="risk"), commented, resume=True)
    with pytest.raises(InputError, match="was written with other settings, timed with"):
        compress(network, images, run.folder, replace(SETTINGS, rank_multiple=None), commented, resume=True)
    with pytest.raises(InputError, match="stages have their own layers, method and target"):
        compress(network, images, run.folder, replace(SETTINGS, layers=("0",)), commented, resume=True)
    assert listing(run.folder / "stages") == before


def test_a_second_stage_for_the_same_layers_takes_those_that_stayed_dense(
    network: nn.Module, images: ImageSet, tmp_path: Path
) -> None:
    """With a huge gamma nothing is worth factorizing; then all is; then nothing is left."""
    stages = "".join(
        f'[[stage]]\nkind = "compress"\nname = "s{n}"\nmethod = "spatial"\ngamma = {g}\n'
        for n, g in enumerate((1e9, 1e-9, 1))
    )
    result = compress(network, images, tmp_path / "out", SETTINGS, parse_recipe(stages, "thrice"))
    whats = [stage.what for stage in result.report.stages[1:]]
    assert whats == ["0 of 4 layers factorized, gamma 1e+09", "4 of 4 layers factorized, gamma 1e-09", *whats[2:]]
    assert whats[2] == "no layer was left to compress"
    assert len(result.plan.layers) == 4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {'of = "linear"': 'layers = ["features.*"]'},
            "stage 3 of the recipe: the layer pattern 'features.\\*'",
        ),
        ({'of = "linear"': 'of = "linear"\nlayers = ["0"]'}, "stage 3 of the recipe finds no layer to compress"),
    ],
)
def test_stages_without_layers_are_refused_before_any_work(
    changes: dict[str, str], sentence: str, network: nn.Module, images: ImageSet, tmp_path: Path
) -> None:
    text = SMALL
    for old, new in changes.items():
        text = text.replace(old, new)
    with pytest.raises(InputError, match=sentence):
        compress(network, images, tmp_path / "out", SETTINGS, parse_recipe(text, "small"))
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_tunes_needs_images(network: nn.Module, images: ImageSet, tmp_path: Path) -> None:
    synthetic = replace(images, synthetic=True)
    with pytest.raises(InputError, match="needs images of the task"):
        compress(network, synthetic, tmp_path / "out", SETTINGS, parse_recipe(SMALL, "small"))
    assert not (tmp_path / "out").exists()


# What may stand in a recipe


def test_the_papers_recipe_comes_along() -> None:
    assert list_recipes() == ["vgg"]
    recipe = load_recipe("vgg")
    assert [stage.kind for stage in recipe.stage] == ["compress", "finetune", "compress", "finetune", "prune"]
    convs, tune, linears, again, prune = (stage.model_dump() for stage in recipe.stage)
    assert (convs["of"], convs["method"]) == ("conv", "spatial")
    assert (linears["of"], linears["method"]) == ("linear", "svd")
    assert (tune["epochs"], tune["schedule"], tune["learning_rate"]) == (5, "step", 1e-4)
    assert (again["schedule"], again["learning_rate"]) == ("cyclic", 1e-4)
    assert prune["fraction"] == 0.2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stage = 1", "stage: Input should be a valid"),
        ("", "stage: Field required"),
        ("[[stage]", "no TOML"),
        ("[[stage]]\nname = 'x'", "stage 1: it has no kind; kinds are compress, finetune, prune"),
        ("[[stage]]\nkind = 'quantize'", "stage 1: unknown kind 'quantize'; kinds are compress, finetune, prune"),
        ("[[stage]]\nkind = 'compress'\n[[stage]]\nkind = 'prune'\nshare = 1", "stage 2: fraction: Field required"),
        ("[[stage]]\nkind = 'compress'\ngama = 1", "stage 1: unknown key 'gama'"),
        ("[[stages]]\nkind = 'compress'", "stage: Field required"),
        ("[[stage]]\nkind = 'compress'\ngamma = -1", "stage 1: gamma: Input should be greater than or equal to"),
        ("[[stage]]\nkind = 'compress'\ngamma = nan", "stage 1: gamma: Input should be"),
        ("[[stage]]\nkind = 'finetune'\nepochs = 0", "stage 1: epochs: Input should be greater than or equal to 1"),
        ("[[stage]]\nkind = 'prune'\nfraction = 0.1", "none of its stages compresses"),
        ("[[stage]]\nkind = 'compress'\nname = '../up'", "the name of stage 1 may have letters"),
    ],
)
def test_wrong_recipes_are_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(text, "my.toml")
    assert str(caught.value).startswith("my.toml")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--recipe", "resnet"), "there is no recipe 'resnet'; those that come along are vgg"),
        (("--recipe", "my.toml"), "cannot read the recipe my.toml: No such file or directory"),
        (("--recipe", "vgg", "--finetune", 3), "--recipe and --finetune contradict each other: the stages set it"),
        (("--recipe", "vgg", "--prune", "none"), "--recipe and --prune contradict each other: the stages set it"),
        (("--recipe", "own.toml", "--gamma", 1), "--recipe and --gamma contradict each other: every stage that"),
        (("--recipe", "vgg"), "a recipe with fine-tuning needs images of the task: give --data or --train-data"),
    ],
)
def test_contradictions_are_refused_at_once(
    options: tuple[object, ...],
    sentence: str,
    invoke: Callable,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text("[[stage]]\nkind = 'compress'\ngamma = 0.1\n")
    before = listing(tmp_path)
    result = invoke("bocompress-export", tiny_checkpoint, "--trust-pickle", *options, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert the_sentence(result.stderr).removeprefix("error: ").startswith(sentence)
    assert listing(tmp_path) == before


def test_the_command_line_runs_a_recipe_copied_and_changed(
    invoke: Callable, tiny_checkpoint: Path, digit_images: Path, tmp_path: Path
) -> None:
    printed = invoke("bocompress", "recipes", "vgg").stdout
    assert printed == recipe_text("vgg")
    assert invoke("bocompress", "recipes").stdout.startswith("vgg: ")
    path = tmp_path / "mine.toml"
    path.write_text(printed.replace("epochs = 5", "epochs = 1"))
    evaluations = ("--max-evaluations", 1, "--samples", 4, "--gamma", 0.01, "--factors", "weight", "--no-recalibrate")
    command = (tiny_checkpoint, "--trust-pickle", "--input-size", 32, "--data", digit_images, "--max-images", 60)
    result = invoke("bocompress-export", *command, *evaluations, "--recipe", path, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "stage 5 of 5, prune (prune)" in result.stderr
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_text())
    assert [stage.name for stage in report.stages] == [
        *("original", "convolutions", "tune", "linear", "tune-again", "prune")
    ]
    assert report.prune_fraction == 0.2


def test_folders_of_stages_are_numbered() -> None:
    recipe = Recipe.model_validate({"stage": [{"kind": "compress"}, {"kind": "prune", "name": "p", "fraction": 0.1}]})
    assert recipe.folders == ["1-compress", "2-p"]
