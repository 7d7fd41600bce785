"""Whole runs that remove hidden channels: what is delivered, planned, applied again, resumed and refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compressor import apply_plan, compress, load_compressed
from compressor.cost.size import count_params
from compressor.errors import InputError
from compressor.network.macs import count_macs
from compressor.network.serialization import changed_names
from compressor.pipeline.plan import Plan
from compressor.pipeline.recipe import parse_recipe
from compressor.pipeline.settings import Target
from compressor.pipeline.state import CompressedModel
from tests.pipeline.channels.networks import make_images, make_network, make_settings

GROUPS = {"2.expand": 48, "3.conv1": 16, "3.conv2": 12, "6": 24}

pytestmark = pytest.mark.usefixtures("unmeasured")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return make_network()


@pytest.fixture(scope="module")
def run(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> CompressedModel:
    """Half of the parameters, channels wherever there are some."""
    settings = make_settings(target=Target("ratio", 0.5))
    return compress(network, make_images(), tmp_path_factory.mktemp("run") / "out", settings)


def widths(plan: Plan) -> dict[str, int | None]:
    return {row.name: row.rank for row in plan.layers if row.method == "channels"}


def same(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.allclose(states[0][name], states[1][name], rtol=1e-4, atol=1e-5) for name in states[0]
    )


def test_groups_have_channels_and_the_other_layers_ranks(run: CompressedModel) -> None:
    assert [row.name for row in run.plan.layers] == ["0", *GROUPS]
    assert run.plan.layers[0].method in ("spatial", "tucker", "interpolative")
    assert {row.name: row.break_even_rank + 1 for row in run.plan.layers if row.method == "channels"} == GROUPS


def test_the_delivered_network_has_fewer_channels(run: CompressedModel) -> None:
    found = widths(run.plan)
    assert any(found.values())
    expand, project = run.model.get_submodule("2.expand"), run.model.get_submodule("2.project")
    width = found["2.expand"] or GROUPS["2.expand"]
    assert expand.weight.shape[0] == project.weight.shape[1] == width
    depthwise, slopes = run.model.get_submodule("2.depthwise"), run.model.get_submodule("2.norm2")
    assert depthwise.weight.shape[0] == depthwise.groups == slopes.num_parameters == width
    between = run.model.get_submodule("3.conv2").weight
    assert list(between.shape[:2]) == [found[name] or GROUPS[name] for name in ("3.conv2", "3.conv1")]


def test_the_target_is_met_and_counted_exactly(run: CompressedModel, network: nn.Module) -> None:
    target = run.report.target
    assert target is not None
    assert target.met
    assert target.reached == count_params(run.model) / count_params(network)
    assert run.report.params.compressed == count_params(run.model)
    assert 0.4 < target.reached <= 0.5


def test_the_report_says_what_happened_to_every_layer_of_a_group(run: CompressedModel) -> None:
    rows = {layer.name: layer for layer in run.report.layers}
    assert rows["2.depthwise"].method == "channels"
    assert rows["2.depthwise"].skipped is None
    for name, row in rows.items():
        if row.method == "channels":
            module = run.model.get_submodule(name)
            assert row.params_compressed == module.weight.numel()
            assert (row.shape_compressed or row.shape) == list(module.weight.shape)


def test_a_plan_applied_again_gives_the_same_network(run: CompressedModel, network: nn.Module, tmp_path: Path) -> None:
    plan = Plan.model_validate_json(run.plan.model_dump_json())
    again = apply_plan(network, make_images(), plan, tmp_path / "out", make_settings(method="auto", factors=None))
    assert [(row.name, row.rank, row.factors) for row in again.plan.layers] == [
        (row.name, row.rank, row.factors) for row in run.plan.layers
    ]
    assert same(again.model, run.model)


def test_a_layer_may_have_a_rank_in_a_group_that_keeps_its_channels(network: nn.Module, tmp_path: Path) -> None:
    rows = [
        {"name": "3.conv1", "method": "channels", "rank": None, "break_even_rank": 15},
        {"name": "3.conv2", "method": "spatial", "rank": 4, "break_even_rank": 18},
    ]
    plan = Plan.model_validate({"arch": "toy", "layers": rows})
    done = apply_plan(network, make_images(), plan, tmp_path / "out", make_settings(method="auto", factors=None))
    found = {row.name: (row.method, row.rank) for row in done.report.layers if row.skipped is None}
    assert found["3.conv2"] == ("spatial", 4)
    assert isinstance(done.model.get_submodule("3.conv2"), nn.Sequential)


def test_a_narrowed_network_is_loaded_from_the_run(run: CompressedModel, network: nn.Module) -> None:
    found = load_compressed(network, run.folder)
    assert same(found, run.model)
    images = make_images(4).batch(slice(None))
    torch.testing.assert_close(found(images), run.model(images))
    assert {"2.expand", "2.norm1", "2.depthwise", "2.norm2", "2.project"} <= set(changed_names(network, found))


def test_a_resumed_search_keeps_the_groups_and_evaluates_nothing_again(network: nn.Module, tmp_path: Path) -> None:
    settings = make_settings(method="auto")
    first = compress(network, make_images(), tmp_path / "out", settings)
    count = len((tmp_path / "out" / "search.jsonl").read_text().splitlines())
    again = compress(network, make_images(), tmp_path / "out", settings, resume=True)
    assert len((tmp_path / "out" / "search.jsonl").read_text().splitlines()) == count
    assert [row.model_dump() for row in again.plan.layers] == [row.model_dump() for row in first.plan.layers]
    assert same(again.model, first.model)


@pytest.mark.parametrize(
    ("cost", "kind", "value"), [("macs", "macs", 0.7), pytest.param("bytes", "ratio", 0.6, marks=pytest.mark.hard)]
)
def test_other_targets_are_met(network: nn.Module, tmp_path: Path, cost: Any, kind: Any, value: float) -> None:
    example = make_images(1).batch([0])
    total = count_macs(network, example)[0]
    asked = value * total if kind == "macs" else value
    found = compress(network, make_images(), tmp_path / "out", make_settings(cost=cost, target=Target(kind, asked)))
    assert found.report.target is not None
    if cost == "macs":
        assert count_macs(found.model, example)[0] == found.report.target.reached <= asked
    assert found.report.target.met


@pytest.mark.slow
def test_a_drop_is_kept(network: nn.Module, tmp_path: Path) -> None:
    found = compress(network, make_images(), tmp_path / "out", make_settings(target=Target("drop", 5.0)))
    assert found.report.target is not None
    assert found.report.target.kind == "drop"
    assert found.report.ratio < 1


def test_with_a_squeeze_and_excitation_its_layers_shrink_too(tmp_path: Path) -> None:
    network = make_network(gate=True)
    found = compress(network, make_images(), tmp_path / "out", make_settings(target=Target("ratio", 0.5)))
    width = widths(found.plan)["2.expand"] or 48
    assert found.model.get_submodule("2.squeeze").weight.shape[1] == width
    assert found.model.get_submodule("2.excite").weight.shape[0] == width
    assert count_params(found.model) <= 0.5 * count_params(network)


def test_sparsity_is_searched_beside_channels(network: nn.Module, tmp_path: Path) -> None:
    found = compress(network, make_images(), tmp_path / "out", make_settings(prune_fraction=None))
    assert found.report.prune_searched
    assert 0 < found.report.ratio <= 1


@pytest.mark.hard
def test_a_recipe_goes_on_with_a_narrowed_network(network: nn.Module, tmp_path: Path) -> None:
    text = """
    [[stage]]
    kind = "compress"
    method = "channels"
    of = "conv"
    target_ratio = 0.5
    [[stage]]
    kind = "compress"
    of = "linear"
    target_ratio = 0.7
    """
    recipe, out = parse_recipe(text, "test"), tmp_path / "out"
    settings = replace(make_settings(), method="auto", target=None)
    first = compress(network, make_images(), out, settings, recipe)
    assert {row.name for row in first.plan.layers if row.method == "channels"} >= {"2.expand", "3.conv1", "3.conv2"}
    again = compress(network, make_images(), out, settings, recipe, resume=True)
    assert same(first.model, again.model)


def edited(plan: Plan, **changes: Any) -> Plan:
    rows = [row.model_copy(update=changes) if row.name == "2.expand" else row for row in plan.layers]
    return plan.model_copy(update={"layers": rows})


def test_impossible_plans_are_refused_in_a_sentence(run: CompressedModel, network: nn.Module, tmp_path: Path) -> None:
    row = next(row for row in run.plan.layers if row.name == "2.expand")
    both = row.model_copy(update={"name": "2.project", "method": "svd", "rank": 1})
    plans = {
        "first layer of no group": edited(run.plan, name="2.project"),
        "48 channels, of at most 47": edited(run.plan, rank=48),
        "a layer can have either": run.plan.model_copy(update={"layers": [*run.plan.layers, both]}),
    }
    for words, plan in plans.items():
        with pytest.raises(InputError, match=words):
            apply_plan(network, make_images(), plan, tmp_path / "out")
    with pytest.raises(InputError, match="the plan removes channels"):
        apply_plan(network, make_images(), run.plan, tmp_path / "out", make_settings(calibration=0, factors=None))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"calibration": 0}, "--calibration must be above 0"), ({"factors": "weight"}, "leave out --factors weight")],
)
def test_channels_alone_need_images_to_fit_on(
    network: nn.Module, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        compress(network, make_images(), tmp_path / "out", make_settings(**changes))


@pytest.mark.parametrize("changes", [{"calibration": 0}, {"factors": "weight"}, {"method": "spatial"}])
def test_otherwise_layers_have_ranks(network: nn.Module, tmp_path: Path, changes: dict[str, Any]) -> None:
    found = compress(network, make_images(), tmp_path / "out", make_settings(**{"method": "auto", **changes}))
    assert widths(found.plan) == {}


def test_layers_left_alone_keep_their_channels(network: nn.Module, tmp_path: Path) -> None:
    found = compress(network, make_images(), tmp_path / "out", make_settings(skip=["2.depthwise", "3.conv3"]))
    assert set(widths(found.plan)) == {"3.conv1", "6"}
    again = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert [row["name"] for row in again["layers"]] == [row.name for row in found.plan.layers]
    assert np.isfinite(found.report.fidelity.function_norm)
