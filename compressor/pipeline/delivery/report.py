"""report.json: what a run did and what came of it, gathered from its stages and measured on its files."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from compressor.channels.groups import ChannelGroup
from compressor.cost.machine import describe_machine
from compressor.cost.size import count_nonzero_params, count_params, file_bytes, gzip_bytes
from compressor.factorization.registry import CHANNELS
from compressor.files import write_text
from compressor.network.layers import FoundLayer
from compressor.network.macs import count_macs
from compressor.network.records import LayerRecord
from compressor.pipeline.channels.found import groups_to_search
from compressor.pipeline.context import Context
from compressor.pipeline.delivery.choose_warnings import all_warnings
from compressor.pipeline.delivery.verdict import make_verdict
from compressor.pipeline.outputs import MODEL, ORIGINAL, PAGE, REPORT
from compressor.pipeline.stage import Stage
from compressor.pipeline.state import SearchResult, State, needed
from compressor.report.page import write_report
from compressor.report.records import GroupsRecord, ImagesRecord, Report, StageRecord
from compressor.schema import Pair
from compressor.version import VERSION
from exporters.providers import PROVIDERS


@dataclass(frozen=True)
class WriteReport(Stage):
    """Writes report.json and report.html, and fills in `report`."""

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        report = make_report(context, state)
        write_text(context.folder / REPORT, report.model_dump_json(indent=2) + "\n")
        write_report(report, context.folder / PAGE)
        return replace(state, report=report)


def make_report(context: Context, state: State) -> Report:
    """The report of a run whose files lie in the context's folder."""
    original, network = context.original, state.network
    result, test = needed(state.result, "a plan"), needed(state.test, "test outputs")
    (total_macs, _), (compressed_macs, macs) = (count_macs(model, context.example) for model in (original, network))
    layers = [_layer_record(layer, result, network, macs) for layer in context.layers]
    params = _compressible_params(layers)
    return Report(
        version=VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=context.source.command,
        preset=context.source.preset,
        seed=context.settings.search.seed,
        seconds=time.perf_counter() - context.began,
        arch=context.source.arch,
        gamma=result.gamma,
        form=context.settings.form,
        searched=result.plan.fidelity,
        cost=result.cost,
        provider=PROVIDERS[context.settings.provider],
        ratio=params.compressed / params.original if result.ratio is None else result.ratio,
        rank_multiple=result.rank_multiple,
        prune_fraction=result.plan.prune_fraction,
        prune_searched=result.search is not None and context.settings.prune_fraction is None,
        params_compressible=params,
        macs=Pair[int](original=total_macs, compressed=compressed_macs),
        **_sizes(original, network, context.folder),
        latency=dict(needed(state.latency, "latency")),
        fidelity=test.fidelity,
        export_check=needed(state.export_check, "the export check"),
        **_accuracies(state),
        precisions=list(state.precisions),
        files=list(state.files),
        search=result.search,
        target=state.target,
        reconstruction=state.reconstruction,
        tuning=state.tuning,
        stages=list(state.records),
        layers=layers,
        images=_images_record(context, len(test.targets)),
        machine=describe_machine(),
        warnings=all_warnings(context, state),
        verdict=make_verdict(context, state),
        stage_costs=list(state.stage_costs),
        seconds_per_image=state.seconds_per_image,
        channel_groups=_channel_groups(context, result),
    )


def _accuracies(state: State) -> dict[str, Any]:
    """What labels say, by the report's fields; most are None, as each task has its own."""
    of_labels = {name: getattr(state, name) for name in ("top1", "top1_change", "risk")}
    return of_labels | {name: getattr(state.test, name) for name in ("segmentation", "detection", "flow")}


def _sizes(original: nn.Module, network: nn.Module, folder: Path) -> dict[str, Any]:
    files = folder / ORIGINAL, folder / MODEL
    return {
        "params": _pair(count_params, original, network),
        "nonzero_params": _pair(count_nonzero_params, original, network),
        "onnx_bytes": _pair(file_bytes, *files),
        "gzip_bytes": _pair(gzip_bytes, *files),
    }


def _channel_groups(context: Context, result: SearchResult) -> GroupsRecord | None:
    found = groups_to_search(context) if result.search else []
    searched = sum(isinstance(layer, ChannelGroup) for layer in result.layers)
    return GroupsRecord(found=len(found), searched=searched) if found else None


def make_stage_record(name: str, kind: str, context: Context, state: State, began: float | None) -> StageRecord:
    """What a recipe's stage left, compared with the original on the test images.

    Args:
        name: of the stage in the recipe.
        kind: of stage.
        context: the original and the images.
        state: after the stage.
        began: when it did, by `time.perf_counter`; None for the original itself, which took no time.
    """
    outcome, nonzero = needed(state.outcome, "what the stage did"), count_nonzero_params(state.network)
    metrics = needed(state.evaluator, "an evaluator").evaluate(state.network)
    return StageRecord(
        name=name,
        kind=kind,
        what=outcome.what,
        nonzero_params=nonzero,
        ratio=nonzero / count_nonzero_params(context.original),
        metrics=metrics,
        seconds=0.0 if began is None else time.perf_counter() - began,
        **outcome.fields,
    )


def _pair(measure: Any, original: Any, compressed: Any) -> Pair[int]:
    return Pair[int](original=measure(original), compressed=measure(compressed))


def _layer_record(layer: FoundLayer, result: SearchResult, network: nn.Module, macs: Mapping[str, int]) -> LayerRecord:
    """The layer with its rank and costs; a layer that the plan does not touch counts as skipped."""
    record, planned = layer.record(), list(zip(result.layers, result.ranks, strict=True))
    inside = [count for name, count in macs.items() if name == layer.name or name.startswith(f"{layer.name}.")]
    by_name = {chosen.name: (chosen, rank) for chosen, rank in planned if isinstance(chosen, FoundLayer)}
    groups = [(one, rank) for one, rank in planned if isinstance(one, ChannelGroup) and layer.name in one.layers]
    if groups and layer.name not in by_name:  # a group that keeps its channels may have a layer with a rank
        return _record_in_group(record, groups, network.get_submodule(layer.name), sum(inside))
    if layer.skipped is not None:
        return record
    if layer.name not in by_name:
        return record.model_copy(update={"skipped": result.left.get(layer.name, "not in the plan")})
    chosen_layer, rank = by_name[layer.name]
    return record.model_copy(
        update={
            "method": chosen_layer.method,
            "break_even_rank": chosen_layer.break_even_rank,
            "rank": rank if rank < chosen_layer.dense_rank else None,
            "factors": result.kinds[layer.name] if rank < chosen_layer.dense_rank else None,
            "params_compressed": chosen_layer.params_by_rank()[rank - 1],
            "macs_compressed": sum(inside),
        }
    )


def _record_in_group(
    record: LayerRecord, groups: Sequence[tuple[ChannelGroup, int]], module: nn.Module, macs: int
) -> LayerRecord:
    """A layer of groups that share hidden channels; its rank is the width of that whose channels it produces."""
    assert isinstance(module, nn.Conv2d | nn.Linear)
    own = (pair for pair in groups if record.name not in pair[0].reader_names)
    group, _ = next(own, groups[0])
    changed = list(module.weight.shape) != record.shape
    width = next(rank for one, rank in groups if one is group)
    return record.model_copy(
        update={
            "method": CHANNELS,
            "break_even_rank": group.break_even_rank,
            "rank": width if changed else None,
            "factors": "activation" if changed else None,
            "groups": [one.name for one, _ in groups],
            "shape_compressed": list(module.weight.shape) if changed else None,
            "params_compressed": module.weight.numel(),
            "macs_compressed": macs,
            "skipped": None,
        }
    )


def _compressible_params(layers: Sequence[LayerRecord]) -> Pair[int]:
    rows = [layer for layer in layers if layer.skipped is None]
    return Pair[int](
        original=sum(layer.params for layer in rows),
        compressed=sum(layer.params_compressed or layer.params for layer in rows),
    )


def _images_record(context: Context, num_test_images: int) -> ImagesRecord:
    images = context.search_images
    return ImagesRecord(
        source=images.source,
        calibration=len(context.calibration),
        search=len(images),
        validation=len(context.validation) if context.validation else 0,
        test_images=num_test_images,
        unreadable=images.unreadable,
        labelled=any(each is not None for each in (images.labels, images.masks, images.boxes)),
        label_note=images.label_note,
        input_shape=list(images.input_shape),
    )
