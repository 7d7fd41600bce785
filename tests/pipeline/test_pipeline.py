"""Calibration and recalibration within the whole job: who sees which images, and what the report says of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from compressor import apply_plan, compress
from compressor.data.batches import from_batches
from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.pipeline.image_splits import MIN_CALIBRATION_IMAGES, divide_images
from compressor.pipeline.outputs import FACTORS
from compressor.pipeline.plan import Plan
from compressor.pipeline.settings import Settings
from compressor.pipeline.stages import cost
from compressor.pipeline.stages.factorize import Decomposer
from compressor.pipeline.state import CompressedModel, Decomposed
from compressor.search.optimizer import SearchSettings

SEARCH = SearchSettings(max_evaluations=6, samples=8, seed=1)

pytestmark = pytest.mark.usefixtures("unmeasured")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 10),
    ).eval()


@pytest.fixture(scope="module")
def images() -> ImageSet:
    torch.manual_seed(1)
    return from_batches([nn.functional.interpolate(torch.randn(100, 3, 3, 3) + 0.5, size=8, mode="bilinear")], 100)


@pytest.fixture(scope="module")
def run(
    unmeasured: None, network: nn.Module, images: ImageSet, tmp_path_factory: pytest.TempPathFactory
) -> CompressedModel:
    """The defaults, but ranks alone."""
    settings = Settings(search=SEARCH, method="spatial")
    return compress(network, images, tmp_path_factory.mktemp("run") / "out", settings)


def images_for_tests(images: ImageSet, settings: Settings) -> ImageSet:
    return divide_images(images, settings)[2]


def function_norm(network: nn.Module, other: nn.Module, images: ImageSet) -> float:
    inputs = images.batch(slice(None))
    with torch.inference_mode():
        return float((network(inputs) - other(inputs)).double().flatten(1).square().sum(1).mean())


# Who sees which images


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    count=st.integers(4, 2000),
    calibration=st.integers(0, 500),
    factors=st.sampled_from([None, "auto", "weight", "refit", "activation"]),
    recalibrate=st.booleans(),
    seed=st.integers(0, 5),
)
def test_every_image_has_one_purpose(count: int, calibration: int, factors: Any, recalibrate: bool, seed: int) -> None:
    images = ImageSet(torch.arange(float(count))[:, None], "numbers")
    settings = Settings(
        calibration=calibration, factors=factors, recalibrate=recalibrate, search=SearchSettings(seed=seed)
    )
    parts = divide_images(images, settings)
    assert sorted(number for part in parts for number in part.data.flatten().tolist()) == list(range(count))
    fitted, searched, evaluated = map(len, parts)
    assert fitted <= min(calibration, 0.3 * count)
    assert fitted == 0 or fitted >= MIN_CALIBRATION_IMAGES
    needed = factors != "weight" or recalibrate
    assert (fitted > 0) == (needed and min(calibration, int(0.3 * count)) >= MIN_CALIBRATION_IMAGES)
    assert searched == min(500, (count - fitted) // 2)
    assert min(searched, evaluated) >= 2
    again = divide_images(images, settings)
    assert all(torch.equal(one.data, two.data) for one, two in zip(parts, again, strict=True))


def test_search_and_factors_never_see_the_test_images(
    network: nn.Module, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything up to the verdict runs on the other images: with these replaced, it comes out the same."""
    changed = ImageSet(images.data.clone(), "changed")
    order = ImageSet(torch.arange(100.0)[:, None], "numbers")
    evaluators = images_for_tests(order, Settings(search=SEARCH)).data.flatten().long()
    changed.data[evaluators] = torch.randn(len(evaluators), 3, 8, 8)
    results = [
        compress(network, part, tmp_path / name, Settings(search=SEARCH))
        for name, part in {"one": images, "two": changed}.items()
    ]
    assert results[0].plan == results[1].plan
    weights = [result.model.state_dict() for result in results]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert results[0].report.fidelity != results[1].report.fidelity


# What the report says


def test_by_default_factors_are_fitted_and_refitted(run: CompressedModel, network: nn.Module, images: ImageSet) -> None:
    report = run.report
    assert (report.images.calibration, report.images.search, report.images.test_images) == (30, 35, 35)
    record = report.reconstruction
    assert record is not None
    assert (record.calibration_images, record.check_images) == (30, 35)
    assert record.after <= record.before
    factorized = [layer.name for layer in report.layers if layer.rank]
    assert factorized
    assert {step.layer for step in record.steps} == {*factorized, ""}
    assert report.fidelity.function_norm == pytest.approx(
        function_norm(run.model, network, images_for_tests(images, Settings(search=SEARCH))), rel=1e-4
    )
    assert all(layer.factors for layer in run.plan.layers)
    kinds = {row.name: (row.method, row.factors if row.rank else None) for row in run.plan.layers}
    assert {layer.name: (layer.method, layer.factors) for layer in report.layers} == kinds


def test_files_hold_the_network_after_recalibration(run: CompressedModel) -> None:
    stored = load_file(run.folder / "compressed.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in run.model.state_dict().items())
    assert Plan.model_validate_json((run.folder / "plan.json").read_text()) == run.plan


@pytest.mark.parametrize("settings", [None, Settings(factors=None, search=SEARCH)])
def test_applying_the_plan_gives_the_run_again(
    run: CompressedModel, network: nn.Module, images: ImageSet, tmp_path: Path, settings: Settings | None
) -> None:
    """From Python without settings the factors are the plan's, too; only the division of the images is another."""
    again = apply_plan(network, images, run.plan, tmp_path / "again", settings)
    assert [(row.factors, row.method, row.rank) for row in again.plan.layers] == [
        (row.factors, row.method, row.rank) for row in run.plan.layers
    ]
    assert again.report.search is None
    if settings is not None:
        assert again.report.fidelity.function_norm == pytest.approx(run.report.fidelity.function_norm, rel=1e-5)
        steps = [[step.kept for step in result.report.reconstruction.steps] for result in (run, again)]
        assert steps[0] == steps[1]


@pytest.fixture(scope="module")
def plan(run: CompressedModel) -> Plan:
    """The run's layers at low ranks, so that all are factorized."""
    rows = [
        row.model_copy(update={"rank": max(1, row.break_even_rank // 4), "factors": "weight"})
        for row in run.plan.layers
    ]
    return run.plan.model_copy(update={"layers": rows})


def test_recalibration_lowers_the_function_norm_outside_its_images(
    plan: Plan, network: nn.Module, images: ImageSet, tmp_path: Path
) -> None:
    with_it, without = (
        apply_plan(network, images, plan, tmp_path / str(wanted), Settings(factors=None, recalibrate=wanted))
        for wanted in (True, False)
    )
    assert without.report.reconstruction is None
    assert without.report.images.calibration == 30
    record = with_it.report.reconstruction
    assert record is not None
    assert record.after < 0.7 * record.before
    assert with_it.report.fidelity.function_norm < 0.8 * without.report.fidelity.function_norm
    assert with_it.report.ratio == without.report.ratio
    shapes = [
        {name: value.shape for name, value in r.model.named_parameters() if "weight" in name}
        for r in (with_it, without)
    ]
    assert shapes[0] == shapes[1]


def test_factors_that_are_asked_for_overrule_the_plan(
    plan: Plan, network: nn.Module, images: ImageSet, tmp_path: Path
) -> None:
    found = apply_plan(network, images, plan, tmp_path / "out", Settings(factors="activation", recalibrate=False))
    assert {row.factors for row in found.plan.layers} == {"activation"}
    weight = apply_plan(network, images, plan, tmp_path / "weight", Settings(factors=None, recalibrate=False))
    assert {row.factors for row in weight.plan.layers} == {"weight"}
    by_default = apply_plan(network, images, plan, tmp_path / "default")
    assert {row.factors for row in by_default.plan.layers} == {"weight"}
    assert found.report.fidelity.function_norm < weight.report.fidelity.function_norm


@pytest.mark.parametrize(
    ("count", "settings"),
    [(100, {"calibration": 0}), (20, {}), (4, {}), (100, {"factors": "weight", "recalibrate": False})],
)
def test_without_calibration_images_the_weights_own_factors_do(
    network: nn.Module, images: ImageSet, tmp_path: Path, count: int, settings: dict[str, Any]
) -> None:
    result = compress(network, images.subset(range(count)), tmp_path / "out", Settings(search=SEARCH, **settings))
    assert result.report.reconstruction is None
    assert result.report.images.calibration == 0
    assert result.report.images.search + result.report.images.test_images == count
    assert {row.factors for row in result.plan.layers} == {"weight"}


def test_where_everything_stays_dense_there_is_nothing_to_refit(
    plan: Plan, network: nn.Module, images: ImageSet, tmp_path: Path
) -> None:
    rows = [row.model_copy(update={"rank": None}) for row in plan.layers]
    dense = plan.model_copy(update={"layers": rows})
    result = apply_plan(network, images, dense, tmp_path / "out")
    assert result.report.reconstruction is None
    assert result.report.fidelity.function_norm == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("method", ["spatial", "tucker", "cp", "interpolative"])
def test_every_method_goes_all_the_way(network: nn.Module, images: ImageSet, tmp_path: Path, method: Any) -> None:
    settings = Settings(search=SEARCH, method=method, gamma=1e-9, layers=["0", "7"])
    result = compress(network, images, tmp_path / "out", settings)
    assert result.plan.layers[0].method == method
    assert all(row.rank for row in result.plan.layers)
    assert result.report.reconstruction is not None
    assert any(step.kept for step in result.report.reconstruction.steps)


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Linear(20, 16), (100, 20)), (nn.Conv2d(4, 8, 3, padding=1), (100, 4, 6, 6))]
)
def test_a_network_that_is_one_layer(layer: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(shape)
    result = compress(layer, inputs, tmp_path / "out", Settings(search=SEARCH, gamma=1e-9))
    record = result.report.reconstruction
    assert record is not None
    assert result.plan.layers[0].rank is not None
    norm = function_norm(result.model, layer, images_for_tests(from_batches(inputs, 100), Settings(search=SEARCH)))
    positions = int(np.prod(shape[2:]))  # over which L is averaged
    assert result.report.fidelity.function_norm == pytest.approx(norm / positions, rel=1e-4)


def test_a_last_batch_of_one_image_is_no_trouble(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 4))
    settings = Settings(search=SEARCH, calibration=33)
    result = compress(network, torch.randn(120, 20), tmp_path / "out", settings)
    assert result.report.images.calibration == 33
    assert result.report.reconstruction is not None
    assert np.isfinite(result.report.reconstruction.after)


# Resume


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"method": "tucker"}, "method"), ({"factors": "weight"}, "factors"), ({"rank_multiple": 4}, "rank multiple")],
)
def test_a_search_is_not_resumed_with_other_choices(
    network: nn.Module, images: ImageSet, tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    compress(network, images, tmp_path / "out", Settings(search=SEARCH))
    with pytest.raises(InputError, match=f"was written with other .*{named}.*--resume needs the same"):
        compress(network, images, tmp_path / "out", replace(Settings(search=SEARCH), **changed), resume=True)


def test_a_resumed_search_keeps_its_measured_choices(
    network: nn.Module, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "measure_rank_multiple", lambda *_: (4, {4: 0.9}))
    settings = Settings(rank_multiple=None, search=SEARCH)
    first = compress(network, images, tmp_path / "out", settings)
    assert first.report.rank_multiple == 4
    assert all(rank is None or rank < 4 or rank % 4 == 0 for rank in (layer.rank for layer in first.plan.layers))
    monkeypatch.setattr(cost, "measure_rank_multiple", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(Decomposer, "_loss", lambda *_: pytest.fail("a trial"))
    again = compress(network, images, tmp_path / "out", settings, resume=True)
    assert again.plan == first.plan


def interrupt_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C while this layer, counted from 0, is being decomposed."""
    decompose, count = Decomposer._decompose, iter(range(100))

    def interrupted(self: Decomposer, *arguments: Any) -> Decomposed:
        if next(count) == number:
            raise KeyboardInterrupt
        return decompose(self, *arguments)

    monkeypatch.setattr(Decomposer, "_decompose", interrupted)


def test_a_stop_while_layers_are_factorized_loses_no_choice(
    network: nn.Module, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, settings = tmp_path / "out", Settings(search=SEARCH)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            compress(network, images, out, settings)
    journal = out / FACTORS
    header, *rows = journal.read_text().splitlines(keepends=True)
    assert [json.loads(row)["layer"] for row in rows] == ["0", "3"]
    assert any(json.loads(row)["trials"] for row in rows)
    journal.write_text(header + rows[0] + rows[1] + rows[1][:20])  # the disk was full within the third
    seen = []
    loss = Decomposer._loss
    monkeypatch.setattr(
        Decomposer, "_loss", lambda self, part, share: (seen.append(part.layer.name), loss(self, part, share))[1]
    )
    again = compress(network, images, out, settings, resume=True)
    assert set(seen) <= {"7"}
    whole = compress(network, images, tmp_path / "whole", settings)
    assert again.plan == whole.plan
    assert all(torch.equal(value, whole.model.state_dict()[name]) for name, value in again.model.state_dict().items())
    assert journal.read_text() == (whole.folder / FACTORS).read_text()


def test_choices_for_another_network_or_seed_are_refused(
    network: nn.Module, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            compress(network, images, out, Settings(search=SEARCH))
    other = Settings(search=replace(SEARCH, seed=2))
    with pytest.raises(InputError, match=r"factors.jsonl was written with other .*seed; --resume needs the same"):
        compress(network, images, out, other, resume=True)
    (out / FACTORS).write_text("nothing of ours\n")
    with pytest.raises(InputError, match="not a journal of factors"):
        compress(network, images, out, Settings(search=SEARCH), resume=True)


@pytest.mark.parametrize("factors", ["refit", "activation"])
def test_factors_that_are_fitted_to_images_need_some(
    network: nn.Module, images: ImageSet, tmp_path: Path, factors: Any
) -> None:
    with pytest.raises(InputError, match=f"{factors} factors are fitted to images: --calibration must be above 0"):
        compress(network, images, tmp_path / "out", Settings(factors=factors, calibration=0, search=SEARCH))
    assert not (tmp_path / "out").exists()


def test_an_operator_set_that_cannot_be_had_is_refused_before_the_search(
    network: nn.Module, images: ImageSet, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="operator set 3"):
        compress(network, images, tmp_path / "out", Settings(search=SEARCH, opset=3))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("factors", "expected"), [("auto", {"weight"}), ("activation", {"activation"})])
def test_drawn_images_do_not_choose_factors(
    network: nn.Module, images: ImageSet, tmp_path: Path, factors: Any, expected: set[str]
) -> None:
    chosen = Settings(factors=factors, method="spatial", search=SEARCH)
    run = compress(network, replace(images, synthetic=True), tmp_path / "out", chosen)
    assert {layer.factors for layer in run.plan.layers if layer.rank is not None} == expected
    assert run.report.reconstruction is not None
