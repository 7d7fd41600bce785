"""plan.json: there and back, edited by hand, and one clear sentence for everything that can be wrong with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressor.channels.grouping import find_groups
from compressor.errors import InputError
from compressor.factorization.records import FactorKind
from compressor.factorization.registry import find_break_even_rank
from compressor.files import write_text
from compressor.network.layers import FoundLayer, compressible, find_layers
from compressor.pipeline.plan import Plan, make_plan, planned_layers, read_plan


def resnet18_layers(**options: Any) -> list[FoundLayer]:
    with torch.device("meta"):
        model = torchvision.models.resnet18().eval()
    return find_layers(model, torch.zeros(1, 3, 64, 64, device="meta"), **options)


LAYERS = resnet18_layers(skip=["conv1"])
CHOSEN = compressible(LAYERS)
HALF = [layer.break_even_rank // 2 for layer in CHOSEN]
KINDS: dict[str, FactorKind] = {layer.name: "weight" for layer in CHOSEN}
PLAN = make_plan(CHOSEN, HALF, KINDS, "resnet18", 0.0005, 0.1)
Edit = Callable[[dict[str, Any]], None]


def edited(folder: Path, edit: Edit) -> Plan:
    """PLAN as a person would change it: written, edited as JSON, read again."""
    content = json.loads(PLAN.model_dump_json())
    edit(content)
    path = folder / "plan.json"
    path.write_text(json.dumps(content))
    return read_plan(path)


@settings(max_examples=30, deadline=None)
@given(
    ranks=st.tuples(*(st.integers(1, layer.break_even_rank) for layer in CHOSEN)),
    kinds=st.tuples(*(st.sampled_from(get_args(FactorKind)) for _ in CHOSEN)),
    prune=st.floats(0, 0.99),
)
def test_ranks_and_factors_survive_the_file(
    tmp_path_factory: pytest.TempPathFactory, ranks: list[int], kinds: list[FactorKind], prune: float
) -> None:
    plan = make_plan(CHOSEN, ranks, dict(zip(KINDS, kinds, strict=True)), "resnet18", 0.01, prune)
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    write_text(path, plan.model_dump_json(indent=2))
    again = read_plan(path)
    assert again == plan
    layers, found = planned_layers(again, LAYERS)
    assert [layer.name for layer in layers] == [layer.name for layer in CHOSEN]
    assert found == list(ranks)
    assert [row.factors for row in again.layers] == list(kinds)


def test_the_last_choice_is_written_as_dense() -> None:
    break_even_ranks = [layer.break_even_rank for layer in CHOSEN]
    plan = make_plan(CHOSEN, [*(layer.dense_rank for layer in CHOSEN[:-1]), 7], KINDS, "resnet18", None, 0.0)
    assert [row.rank for row in plan.layers] == [None] * (len(break_even_ranks) - 1) + [7]
    assert "kept it dense" in plan.layers[0].why
    assert [row.break_even_rank for row in plan.layers] == break_even_ranks


def test_as_many_ranks_as_layers() -> None:
    with pytest.raises(ValueError, match="shorter"):
        make_plan(CHOSEN, HALF[:-1], KINDS, "resnet18", None, 0.0)


def test_hand_edits(tmp_path: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["layers"] = content["layers"][3:][::-1]
        content["layers"][0]["rank"] = None
        content["layers"][1]["rank"] = 1
        content["layers"][2]["rank"] = content["layers"][2]["break_even_rank"]
        del content["layers"][3]["why"], content["gamma"]

    layers, ranks = planned_layers(edited(tmp_path, edit), LAYERS)
    expected = CHOSEN[3:][::-1]
    assert layers == expected
    assert ranks == [expected[0].dense_rank, 1, expected[2].break_even_rank, *HALF[3:][::-1][3:]]


def test_a_plan_may_name_any_method_that_applies_and_leave_the_factors_open(tmp_path: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        for row, method in zip(content["layers"], ("tucker", "cp", "interpolative"), strict=False):
            row.update(method=method, rank=1)
            del row["factors"]

    plan = edited(tmp_path, edit)
    assert [row.factors for row in plan.layers][:4] == [None, None, None, "weight"]
    layers, _ = planned_layers(plan, LAYERS)
    assert [layer.method for layer in layers][:4] == ["tucker", "cp", "interpolative", "spatial"]
    assert (
        layers[2].break_even_rank
        == find_break_even_rank("interpolative", layers[2].shape, 1, layers[2].params)
        != CHOSEN[2].break_even_rank
    )


def set_row(field: str, value: object, row: int = 0) -> Edit:
    return lambda content: content["layers"][row].update({field: value})


def set_field(field: str, value: object) -> Edit:
    return lambda content: content.update({field: value})


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (set_row("rank", 0), r"layers\.0\.rank"),
        (set_row("rank", -3), r"layers\.0\.rank"),
        (set_row("rank", 2.5), r"layers\.0\.rank"),
        (set_row("rank", "many"), r"layers\.0\.rank"),
        (set_row("factors", "magic"), r"layers\.0\.factors"),
        (set_row("method", "magic", row=2), r"layers\.2\.method"),
        (set_row("rnk", 3, row=1), r"layers\.1\.rnk"),
        (lambda content: content["layers"][1].pop("name"), r"layers\.1\.name: Field required"),
        (set_field("version", 2), "version"),
        (set_field("prune_fraction", 1.0), "prune_fraction"),
        (set_field("prune_fraction", float("nan")), "prune_fraction"),
        (set_field("gamma", float("inf")), "gamma"),
        (set_field("layers", {}), "layers"),
        (lambda content: content.pop("arch"), "arch: Field required"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, edit: Edit, sentence: str) -> None:
    with pytest.raises(InputError, match=rf"plan\.json is not a plan: {sentence}"):
        edited(tmp_path, edit)


@pytest.mark.parametrize("content", [b"", b"layers: []", b'{"arch": "resnet18"', b"\xff\xfe\x00"])
def test_what_is_not_json_is_said_not_to_be(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"plan\.json is not a plan: (not valid JSON|not a text in UTF-8)"):
        read_plan(path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"plan"'])
def test_json_that_is_no_plan(tmp_path: Path, content: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(InputError, match="is not a plan"):
        read_plan(path)


def test_json_too_deep(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("[" * 200_000)
    with pytest.raises(InputError):
        read_plan(path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the plan .*missing\.json: No such file"):
        read_plan(tmp_path / "missing.json")
    with pytest.raises(InputError, match=r"cannot read the plan .*: Is a directory"):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (set_row("name", "layer9.0.conv1"), "'layer9.0.conv1' that this network does not have"),
        (set_row("name", "conv1"), "conv1, which cannot be compressed: left out by --skip"),
        (set_row("name", "fc"), "names fc more than once"),
        (set_row("method", "svd"), "wants svd for layer1.0.conv1, to which it does not apply"),
        (set_row("method", "tucker", row=-1), "wants tucker for fc, to which it does not apply"),
        (set_row("rank", 97), "gives layer1.0.conv1 rank 97, above its break-even rank of 96"),
    ],
)
def test_a_plan_that_does_not_fit_the_network(tmp_path: Path, edit: Edit, sentence: str) -> None:
    plan = edited(tmp_path, edit)
    with pytest.raises(InputError) as caught:
        planned_layers(plan, LAYERS)
    assert sentence in str(caught.value)


def test_a_plan_for_another_network(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = torchvision.models.mobilenet_v2().eval()
    layers = find_layers(model, torch.zeros(1, 3, 64, 64, device="meta"))
    with pytest.raises(InputError, match=r"layer1\.0\.conv1' that this network does not have"):
        planned_layers(PLAN, layers)


def test_a_group_that_keeps_its_channels_leaves_its_layers_to_others() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    example = torch.zeros(1, 3, 8, 8)
    layers, groups = find_layers(network, example), find_groups(network, example)
    rows = [
        {"name": "0", "method": "channels", "rank": None, "break_even_rank": 15},
        {"name": "2", "method": "spatial", "rank": 3, "break_even_rank": 20},
    ]
    chosen, ranks = planned_layers(Plan.model_validate({"arch": "toy", "layers": rows}), layers, lambda: groups)
    assert [layer.name for layer in chosen] == ["0", "2"]
    assert ranks[0] == groups[0].num_units
    rows[0]["rank"] = 8
    with pytest.raises(InputError, match="the plan names 2, which is also in the group 0 that loses channels"):
        planned_layers(Plan.model_validate({"arch": "toy", "layers": rows}), layers, lambda: groups)
