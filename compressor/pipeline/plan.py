"""plan.json: from ranks to a plan a person can read and edit, and back again."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, ConfigDict, Field, ValidationError, model_validator

from compressor.channels.groups import ChannelGroup
from compressor.errors import InputError
from compressor.factorization.records import FactorKind, Method
from compressor.factorization.registry import CHANNELS
from compressor.fidelity.records import Fidelity
from compressor.files import prepare_folder, read_json, write_sealed
from compressor.files.checksums import KEY
from compressor.network.layers import FoundLayer, possible_methods, with_method
from compressor.pipeline.outputs import PLAN, written_plans
from compressor.schema import Record


class LayerPlan(Record):
    """What happens to one layer: factorized by `method` at `rank`, or kept dense (`rank` null). By the method
    "channels" a group of layers keeps `rank` units of the channels that it shares; its name is that of the first.

    `factors`: the weight's own; with the last factor refitted on calibration images; or those of the layer's inputs
    ("activation"). Null leaves the choice to the run that applies the plan."""

    model_config = ConfigDict(strict=True)  # true, 2.0 and "3" are no ranks

    name: str
    method: Method
    factors: FactorKind | None = None
    rank: int | None = Field(ge=1)
    break_even_rank: int = Field(ge=1, validation_alias=AliasChoices("break_even_rank", "cap"))  # "cap" until 0.1
    why: str = ""


class Plan(Record):
    """`plan.json`: a rank for every compressible layer. Can be edited by hand and applied again. `gamma` weighs
    `fidelity`, both of the search that made the plan."""

    model_config = ConfigDict(strict=True)

    version: Literal[1] = 1
    arch: str
    gamma: float | None = Field(default=None, gt=0)
    fidelity: Fidelity = "norm"
    prune_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    layers: list[LayerPlan] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _without_checksum(cls, given: Any) -> Any:
        return {key: value for key, value in given.items() if key != KEY} if isinstance(given, dict) else given


def make_plan(  # noqa: PLR0913
    layers: Sequence[FoundLayer | ChannelGroup],
    ranks: Sequence[int],
    kinds: Mapping[str, FactorKind],
    arch: str,
    gamma: float | None,
    prune_fraction: float,
    fidelity: Fidelity = "norm",
    why: str = "chosen by the search",
) -> Plan:
    """The plan for layers at their ranks.

    The parameters are as many as a plan has fields.

    Args:
        layers: what was compressed, groups among them.
        ranks: in the order of `layers`; a layer's `dense_rank` leaves it dense.
        kinds: factors by layer's name.
        arch: of the network.
        gamma: what a unit of L is worth in R; None where the plan does not come from a search with one.
        prune_fraction: share of the weights set to zero, from 0 to 1.
        fidelity: what L is.
        why: the compressed layers have the ranks that they have.
    """
    return Plan(
        arch=arch,
        gamma=gamma,
        fidelity=fidelity,
        prune_fraction=prune_fraction,
        layers=[
            _plan_layer(layer, int(rank), kinds[layer.name], why) for layer, rank in zip(layers, ranks, strict=True)
        ],
    )


def _plan_layer(layer: FoundLayer | ChannelGroup, rank: int, kind: FactorKind, why: str) -> LayerPlan:
    assert layer.method is not None
    dense = rank >= layer.dense_rank
    return LayerPlan(
        name=layer.name,
        method=layer.method,
        rank=None if dense else rank,
        factors=kind,
        break_even_rank=layer.break_even_rank,
        why=_WHOLE[layer.method == CHANNELS] if dense else why,
    )


_WHOLE = {False: "the search kept it dense", True: "the search kept all channels"}


def write_plans(folder: Path, plan: Plan, others: Mapping[str, Plan]) -> None:
    """plan.json and, under their names, other plans; those that an earlier run left beside them go.

    Args:
        folder: of the run.
        plan: for plan.json.
        others: by the path below the folder.
    """
    write_plan(folder / PLAN, plan)
    for old in written_plans(folder):
        old.unlink()
    for name, other in others.items():
        prepare_folder((folder / name).parent)
        write_plan(folder / name, other)


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan; its checksum tells whether it is edited later."""
    write_sealed(path, plan.model_dump(mode="json"))


def read_plan(path: Path) -> Plan:
    """Read and validate a plan.

    Raises:
        InputError: missing, not JSON, or not a plan; the sentence names the first field at fault.
    """
    content = read_json(path, "plan")
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a plan: it holds no JSON object")
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path} is not a plan: {': '.join(filter(None, [place, first['msg']]))}") from error


def planned_layers(
    plan: Plan, layers: Sequence[FoundLayer], find_groups: Callable[[], Sequence[ChannelGroup]] = tuple
) -> tuple[list[FoundLayer | ChannelGroup], list[int]]:
    """The plan's layers as found in the network, with their ranks (`dense_rank` where the plan says dense).

    Args:
        plan: as read from its file.
        layers: those of the network.
        find_groups: gives the groups of layers whose channels may be removed; called where the plan names some.

    Raises:
        InputError: a layer or group of the plan does not exist, cannot be compressed, appears twice, or has a rank
            above its break-even rank.
    """
    by_name = {layer.name: layer for layer in layers}
    names = [row.name for row in plan.layers]
    if len(set(names)) < len(names):
        raise InputError(f"the plan names {max(names, key=names.count)} more than once")
    has_groups = any(row.method == CHANNELS for row in plan.layers)
    groups = {group.name: group for group in find_groups()} if has_groups else {}
    chosen = [_find_group(row, groups) if row.method == CHANNELS else _find(row, by_name) for row in plan.layers]
    _require_apart(chosen, plan)
    ranks = [row.rank or layer.dense_rank for row, layer in zip(plan.layers, chosen, strict=True)]
    return chosen, ranks


def _require_apart(chosen: Sequence[FoundLayer | ChannelGroup], plan: Plan) -> None:
    groups = {
        name: group.name
        for row, group in zip(plan.layers, chosen, strict=True)
        if isinstance(group, ChannelGroup) and row.rank is not None
        for name in group.layers
    }
    for layer in chosen:
        if isinstance(layer, FoundLayer) and layer.name in groups:
            raise InputError(
                f"the plan names {layer.name}, which is also in the group {groups[layer.name]} that loses channels: "
                "a layer can have either"
            )


def _find_group(row: LayerPlan, groups: Mapping[str, ChannelGroup]) -> ChannelGroup:
    group = groups.get(row.name)
    if group is None:
        raise InputError(
            f"the plan wants channels removed from {row.name!r}, which is the first layer of no group that shares some"
        )
    if row.rank is not None and row.rank > group.break_even_rank:
        raise InputError(f"the plan gives {row.name} {row.rank} channels, of at most {group.break_even_rank}")
    return group


def _find(row: LayerPlan, by_name: Mapping[str, FoundLayer]) -> FoundLayer:
    layer = by_name.get(row.name)
    if layer is None:
        raise InputError(f"the plan names a layer {row.name!r} that this network does not have")
    if layer.skipped is not None:
        raise InputError(f"the plan names {row.name}, which cannot be compressed: {layer.skipped}")
    if row.method not in possible_methods(layer):
        raise InputError(f"the plan wants {row.method} for {row.name}, to which it does not apply")
    layer = with_method(layer, row.method)
    if row.rank is not None and row.rank > layer.break_even_rank:
        raise InputError(
            f"the plan gives {row.name} rank {row.rank}, above its break-even rank of {layer.break_even_rank}"
        )
    return layer
