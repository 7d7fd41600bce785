"""TODO docstring."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from compressor.errors import VerificationError
from compressor.fidelity.evaluation import TestOutputs, make_fidelity, share
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.risk import compare_risks
from compressor.files import replace_files_when_whole, replace_when_whole, write_text
from compressor.pipeline.plan import Plan, write_plans
from compressor.pipeline.stages.formats import write_formats
from compressor.pipeline.stages.meet_size import with_last_timing
from compressor.pipeline.stages.quantize import latency_beside, precision_file, write_precisions
from compressor.pipeline.stages.report import Measured, make_report
from compressor.pipeline.stages.search_ranks import PLANS
from compressor.pipeline.state import CHECKPOINT, JOURNAL, STAGES, BuiltNetwork, CompressedModel, Job
from compressor.report.page import write_report
from compressor.schema import Pair
from compressor.version import VERSION
from exporters.onnx import DATA_SUFFIX, export_onnx
from exporters.ort_format import CONFIG_SUFFIX, ORT_SUFFIX, ZIP_SUFFIX
from exporters.providers import PROVIDERS
from exporters.records import ExportCheckRecord
from exporters.verify import VERIFY_IMAGES, verify_onnx

# What a run leaves in its folder; --resume finds some of it there.
NETWORKS = ("original.onnx", "model.onnx", precision_file("int8"), precision_file("fp16"))
OUTPUTS = (
    JOURNAL,
    CHECKPOINT,
    STAGES,
    "plan.json",
    PLANS,
    "compressed.safetensors",
    "report.json",
    "report.html",
    *(f"{name}{suffix}" for name in NETWORKS for suffix in ("", DATA_SUFFIX, ZIP_SUFFIX, DATA_SUFFIX + ZIP_SUFFIX)),
    *(f"{Path(name).stem}{suffix}" for name in NETWORKS for suffix in (ORT_SUFFIX, CONFIG_SUFFIX)),
)


def deliver(job: Job, built: BuiltNetwork) -> CompressedModel:
    """TestEvaluator the network, write it in all its forms, verify and measure the files, and report."""
    result, network = built.result, built.network
    plan = result.plan
    evaluated, top1, risk = _evaluate_outside(job, network)
    network.cpu()
    original = job.original.cpu()
    write_plans(job.folder, plan, result.pareto_front)
    with replace_when_whole(job.folder / "compressed.safetensors") as partial:
        partial.write_bytes(save({name: value.contiguous() for name, value in network.state_dict().items()}))
    export_check = _export_both(job, original, network, plan)
    latency = latency_beside(job, "original.onnx", "model.onnx", "latency")
    if built.target is not None:
        last = latency.get(PROVIDERS[job.settings.provider])
        built = replace(built, target=with_last_timing(built.target, result.cost, last))
    precisions, failures = write_precisions(job, evaluated, _provenance(job, plan))
    files, unwritten = write_formats(job, network, precisions)
    failures += unwritten
    measured = Measured(built, evaluated.fidelity, top1, risk, export_check, latency, precisions, failures, files)
    report = make_report(job, measured)
    write_text(job.folder / "report.json", report.model_dump_json(indent=2) + "\n")
    write_report(report, job.folder / "report.html")
    return CompressedModel(network, plan, report, job.folder)


def _evaluate_outside(job: Job, network: nn.Module) -> tuple[TestOutputs, Pair[float] | None, Pair[float] | None]:
    """Function norm, top-1 and cross-entropy on the images the search never saw."""
    with job.progress.stage(f"judging on {len(job.test_images)} images outside the search"):
        norm = FunctionNorm(job.original, job.test_images, job.device)
        every = torch.arange(len(job.test_images))
        outputs = norm.outputs(network, every)
    squares = torch.from_numpy(norm.compare(outputs, every))
    outputs, targets = outputs.cpu(), norm.targets.cpu()
    fidelity = make_fidelity(squares, norm.output_energy, outputs, targets)
    labels = norm.labels
    evaluated = TestOutputs(targets, outputs, fidelity, labels)
    if labels is None:
        return evaluated, None, None
    top1 = Pair[float](original=share(targets.argmax(1) == labels), compressed=share(outputs.argmax(1) == labels))
    return evaluated, top1, compare_risks(targets, outputs, labels)


def _export_both(job: Job, original: nn.Module, network: nn.Module, plan: Plan) -> ExportCheckRecord:
    """original.onnx and model.onnx, each checked against torch before it takes its name."""
    images = job.test_images.batch(slice(0, VERIFY_IMAGES))
    with job.progress.stage("exporting and verifying ONNX", 2) as stage:
        _export_verified(original, images, job.folder / "original.onnx", _provenance(job), job.settings.opset)
        stage.update(1)
        return _export_verified(network, images, job.folder / "model.onnx", _provenance(job, plan), job.settings.opset)


def _provenance(job: Job, plan: Plan | None = None) -> dict[str, str]:
    """What files carry of where they came from; those of the compressed network its plan, too."""
    source = {"version": VERSION, "architecture": job.source.arch}
    if plan is None:
        return source
    ranks = {layer.name: layer.rank for layer in plan.layers if layer.rank is not None}
    return source | {
        "gamma": repr(plan.gamma),
        "ranks": json.dumps(ranks),
        "prune_fraction": repr(plan.prune_fraction),
    }


def _export_verified(
    model: nn.Module, images: Tensor, path: Path, metadata: Mapping[str, str], opset: int | None
) -> ExportCheckRecord:
    with replace_files_when_whole(path) as partial:
        export_onnx(model, images[:2], partial, metadata, opset)
        try:
            return verify_onnx(partial, model, images)
        except VerificationError as error:
            raise VerificationError(str(error).replace(str(partial), str(path))) from error
