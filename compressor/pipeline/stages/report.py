"""report.json: what a run did and what came of it, gathered from its stages and measured on its files."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from compressor.cost.machine import describe_machine
from compressor.cost.records import LatencyRecord
from compressor.cost.size import count_nonzero_params, count_params, file_bytes, gzip_bytes
from compressor.fidelity.records import FidelityRecord, Metrics
from compressor.fidelity.risk import loss_of_guessing
from compressor.network.layers import FoundLayer
from compressor.network.macs import count_macs
from compressor.network.records import LayerRecord
from compressor.pipeline.image_splits import MAX_CALIBRATION_SHARE, MIN_CALIBRATION_IMAGES
from compressor.pipeline.state import BuiltNetwork, Job, SearchResult
from compressor.report import warnings as advice
from compressor.report.records import FileRecord, ImagesRecord, PrecisionRecord, Report, StageKind, StageRecord
from compressor.schema import Pair
from compressor.search.stopping.joint_certificate import can_be_met
from compressor.version import VERSION
from exporters.providers import PROVIDERS
from exporters.records import ExportCheckRecord


@dataclass(frozen=True)
class Measured:
    """What was measured after the search; the compressed network is on the CPU like the original. `failures` says which
    precisions could not be had."""

    built: BuiltNetwork
    fidelity: FidelityRecord
    top1: Pair[float] | None
    risk: Pair[float] | None
    export_check: ExportCheckRecord
    latency: dict[str, LatencyRecord]
    precisions: list[PrecisionRecord]
    failures: list[str]
    files: list[FileRecord]


def make_report(job: Job, measured: Measured) -> Report:
    """The report of a run whose files lie in the job's folder."""
    built, original = measured.built, job.original
    result, network = built.result, built.network
    total_macs, _ = count_macs(original, job.example)
    compressed_macs, macs = count_macs(network, job.example)
    layers = [_layer_record(layer, result, macs) for layer in job.layers]
    params = _compressible_params(layers)
    folder = job.folder
    return Report(
        version=VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=job.source.command,
        seed=job.settings.search.seed,
        seconds=time.perf_counter() - job.began,
        arch=job.source.arch,
        gamma=result.gamma,
        form=job.settings.form,
        searched=result.plan.fidelity,
        cost=result.cost,
        provider=PROVIDERS[job.settings.provider],
        ratio=params.compressed / params.original if result.ratio is None else result.ratio,
        rank_multiple=result.rank_multiple,
        prune_fraction=result.plan.prune_fraction,
        prune_searched=result.search is not None and job.settings.prune_fraction is None,
        params=_pair(count_params, original, network),
        params_compressible=params,
        nonzero_params=_pair(count_nonzero_params, original, network),
        macs=Pair[int](original=total_macs, compressed=compressed_macs),
        onnx_bytes=_pair(file_bytes, folder / "original.onnx", folder / "model.onnx"),
        gzip_bytes=_pair(gzip_bytes, folder / "original.onnx", folder / "model.onnx"),
        latency=measured.latency,
        fidelity=measured.fidelity,
        export_check=measured.export_check,
        top1=measured.top1,
        risk=measured.risk,
        precisions=measured.precisions,
        files=measured.files,
        search=result.search,
        target=built.target,
        reconstruction=built.reconstruction,
        tuning=built.tuning,
        stages=list(built.stages),
        layers=layers,
        images=_images_record(job),
        machine=describe_machine(),
        warnings=_all_warnings(job, result, measured),
    )


def make_stage(
    name: str,
    kind: StageKind,
    what: str,
    job: Job,
    network: nn.Module,
    judgement: Metrics,
    seconds: float,
    **more: Any,
) -> StageRecord:
    """The line of a recipe's stage that left `network`; `more` are the record's further fields."""
    nonzero = count_nonzero_params(network)
    return StageRecord(
        name=name,
        kind=kind,
        what=what,
        nonzero_params=nonzero,
        ratio=nonzero / count_nonzero_params(job.original),
        judgement=judgement,
        seconds=seconds,
        **more,
    )


def _pair(measure: Any, original: Any, compressed: Any) -> Pair[int]:
    return Pair[int](original=measure(original), compressed=measure(compressed))


def _layer_record(layer: FoundLayer, result: SearchResult, macs: Mapping[str, int]) -> LayerRecord:
    """The layer with its rank and costs; a layer that the plan does not touch counts as skipped."""
    record = layer.record()
    if layer.skipped is not None:
        return record
    planned = {chosen.name: (chosen, rank) for chosen, rank in zip(result.layers, result.ranks, strict=True)}
    if layer.name not in planned:
        return record.model_copy(update={"skipped": result.left.get(layer.name, "not in the plan")})
    chosen_layer, rank = planned[layer.name]
    inside = [count for name, count in macs.items() if name == layer.name or name.startswith(f"{layer.name}.")]
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


def _compressible_params(layers: Sequence[LayerRecord]) -> Pair[int]:
    rows = [layer for layer in layers if layer.skipped is None]
    return Pair[int](
        original=sum(layer.params for layer in rows),
        compressed=sum(layer.params_compressed or layer.params for layer in rows),
    )


def _images_record(job: Job) -> ImagesRecord:
    images = job.search_images
    return ImagesRecord(
        source=images.source,
        calibration=len(job.calibration),
        search=len(images),
        validation=len(job.validation) if job.validation else 0,
        test_images=len(job.test_images),
        unreadable=images.unreadable,
        labelled=images.labels is not None,
        input_shape=list(images.input_shape),
    )


def early_warnings(job: Job, gamma: float, loss_when_lost: float) -> list[str]:
    """What can be said before the search."""
    on_gamma = [] if job.settings.target else advice.on_gamma(gamma, loss_when_lost, job.settings.fidelity)
    search = job.settings.search
    reachable = search.certificate != "joint" or can_be_met(search.risk)
    return on_gamma + advice.on_form(job.settings.form) + advice.on_epsilon(search.risk, reachable)


def _all_warnings(job: Job, result: SearchResult, measured: Measured) -> list[str]:
    fidelity = measured.fidelity
    warnings = [*job.source.notes]
    warnings += advice.on_unreadable(job.search_images.unreadable)
    if measured.built.target is not None:
        warnings += advice.on_target(measured.built.target)
    if not job.calibration:
        num_images = len(job.search_images) + len(job.test_images)
        wanted = job.settings.num_calibration
        warnings += advice.on_calibration(num_images, wanted, MIN_CALIBRATION_IMAGES, MAX_CALIBRATION_SHARE)
    if result.search is not None:
        kind = job.settings.fidelity
        lost = fidelity.output_energy if kind == "norm" else loss_of_guessing(kind, _num_outputs(job))
        warnings += early_warnings(job, result.gamma, lost)
        warnings += advice.on_certificate(result.search.certificate, result.search.stopped_because)
        warnings += advice.on_prune(job.settings.prune_fraction or 0.0)
        warnings += advice.on_samples(job.settings.search.samples, len(job.search_images))
    if measured.built.tuning is not None:
        warnings += advice.on_tuning(measured.built.tuning)
    for stage in measured.built.stages:
        warnings += [f"stage {stage.name}: {warning}" for warning in _stage_warnings(stage)]
    warnings += advice.on_fidelity(fidelity)
    class_names = job.test_images.class_names
    if class_names is not None:
        outputs = _num_outputs(job)
        warnings += advice.on_labels(len(class_names), outputs)
    for provider, record in measured.latency.items():
        warnings += advice.on_latency(provider, record.ratio_low)
    for precision in measured.precisions:
        warnings += advice.on_precision(precision)
    warnings += measured.failures
    return warnings


def _stage_warnings(stage: StageRecord) -> list[str]:
    warnings = []
    if stage.search is not None:
        warnings += advice.on_certificate(stage.search.certificate, stage.search.stopped_because)
    if stage.tuning is not None:
        warnings += advice.on_tuning(stage.tuning)
    return warnings


def _num_outputs(job: Job) -> int:
    with torch.inference_mode():
        return int(job.original(job.example).reshape(1, -1).shape[1])
