"""A destroyed network or a missed target ends as no success, and what is named then would do."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import nn

from compressor import apply_plan, compress
from compressor.data.batches import from_batches
from compressor.data.folders import load_folder
from compressor.data.images import ImageSet
from compressor.data.transforms import Transform
from compressor.pipeline import context
from compressor.pipeline.delivery.verdict import make_verdict
from compressor.pipeline.settings import Settings
from compressor.pipeline.state import CompressedModel
from compressor.search.settings import SearchSettings

SEARCH = SearchSettings(max_evaluations=12, samples=8, certificate="pointwise", seed=1)
QUICK = ("--trust-pickle", "--input-size", "32", "--max-evaluations", "6", "--samples", "8", "--calibration", "0")

pytestmark = pytest.mark.usefixtures("with_pages")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(48, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)
    ).eval()


@pytest.fixture(scope="module")
def images() -> ImageSet:
    torch.manual_seed(1)
    return from_batches([torch.randn(160, 3, 4, 4)], 160)


@pytest.fixture(scope="module")
def destroyed(network: nn.Module, images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> CompressedModel:
    return compress(network, images, tmp_path_factory.mktemp("run") / "out", Settings(gamma=1e-6, search=SEARCH))


def test_python_is_told_without_an_exception_and_files_are_written(destroyed: CompressedModel) -> None:
    report, verdict = destroyed.report, destroyed.report.verdict
    assert report.fidelity.relative > 0.5
    assert verdict is not None
    assert not verdict.success
    assert f"relative function norm {report.fidelity.relative:.2f}" in verdict.reason
    assert f"try --gamma {verdict.gamma:g}, or --max-drop 1" in verdict.advice
    assert (destroyed.folder / "model.onnx").exists()
    assert json.loads((destroyed.folder / "report.json").read_text())["verdict"]["success"] is False
    assert 'role="alert"' in (destroyed.folder / "report.html").read_text()


def test_the_gamma_named_would_do(
    destroyed: CompressedModel, network: nn.Module, images: ImageSet, tmp_path: Path
) -> None:
    assert destroyed.report.verdict is not None
    gamma = destroyed.report.verdict.gamma
    again = compress(network, images, tmp_path / "out", Settings(gamma=gamma, search=SEARCH))
    assert again.report.verdict is not None
    assert again.report.verdict.success
    assert again.report.ratio < 1


@pytest.mark.parametrize(("gamma", "named"), [(1e-6, True), (1e3, False)])
def test_a_search_that_was_misled_is_said(destroyed: CompressedModel, gamma: float, named: bool) -> None:
    """It took its plans for useful: the default gamma would do, or more images."""
    search = destroyed.report.search
    assert search is not None
    good = [plan.model_copy(update={"function_norm": 1e-9}) for plan in search.pareto_front]
    misled = SimpleNamespace(gamma=gamma, search=search.model_copy(update={"pareto_front": good}))
    fidelity = destroyed.report.fidelity
    state: Any = SimpleNamespace(
        result=misled,
        test=SimpleNamespace(fidelity=fidelity, segmentation=None, detection=None),
        precisions=(),
        target=None,
        top1=None,
        records=(),
    )
    context_of: Any = SimpleNamespace(settings=Settings(gamma=gamma, search=SEARCH))
    verdict = make_verdict(context_of, state)
    if named:
        assert verdict.gamma is not None
        assert 4 <= verdict.gamma * fidelity.output_energy <= 10  # rounded up
        assert f"try --gamma {verdict.gamma:g}" in verdict.advice
    else:
        assert verdict.gamma is None
        assert "did not see it on the 8 images of an evaluation: give more (--samples 32)" in verdict.advice


def test_a_given_plan_that_destroys_is_no_success_either(
    destroyed: CompressedModel, network: nn.Module, images: ImageSet, tmp_path: Path
) -> None:
    verdict = apply_plan(network, images, destroyed.plan, tmp_path / "out").report.verdict
    assert verdict is not None
    assert not verdict.success
    assert "the plan compresses too far" in verdict.advice


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_ends_with_three(
    invoke: Callable[..., Result], fitted_checkpoint: Path, digit_images: Path, tmp_path: Path, as_json: bool
) -> None:
    out = tmp_path / "out"
    options = ["--data", digit_images, "--out", out, "--gamma", "1e-9", *(["--json"] if as_json else [])]
    result = invoke("bocompress-export", fitted_checkpoint, *QUICK, *options)
    assert result.exit_code == 3, result.output
    failure = "Not a success: the network no longer computes what the original does"
    if as_json:
        assert json.loads(result.stdout)["verdict"]["success"] is False
        assert result.stderr.splitlines()[-1].startswith(failure)
    else:
        assert result.stdout.splitlines()[0].startswith(failure)
    assert (out / "report.html").exists()


# All images that are left


def test_images_beyond_those_held_judge_the_result(
    network: nn.Module, digit_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = load_folder(digit_images, Transform(4, 4), 60, seed=0)
    assert held.further is not None
    assert len(held.further) == 60
    settings = Settings(gamma=0.1, search=SEARCH, calibration=0)
    run = compress(network, held, tmp_path / "all", settings)
    assert (run.report.images.search, run.report.images.test_images) == (30, 90)
    assert run.report.fidelity.images == 90
    assert "90 for the test" in (tmp_path / "all" / "report.html").read_text()
    monkeypatch.setattr(context, "MAX_TEST_IMAGES", 40)
    fewer = compress(network, held, tmp_path / "fewer", settings)
    assert fewer.report.fidelity.images == 40
    assert fewer.plan == run.plan
