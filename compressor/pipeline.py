"""The one driver: every stage in order, nothing else.

    checkpoint -> layers -> factors -> search -> compressed network -> ONNX -> measurements -> report

`compress` is the whole job for any network and any images; the command line only loads, calls and prints.
"""

import copy
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

import compressor
from benchmarks.report import write_report
from benchmarks.sessions import PROVIDERS, explain_absence
from compressor.attention import open_attention
from compressor.errors import InputError, VerificationError, first_line
from compressor.fidelity import FunctionNorm
from compressor.files import check_folder, prepare_folder, replace_files_when_whole, replace_when_whole, write_text
from compressor.formats import write_formats
from compressor.images import MAX_IMAGES, ImageSet, from_batches
from compressor.job import (
    CHECKPOINT,
    JOURNAL,
    MAX_CALIBRATION_SHARE,
    MIN_CALIBRATION_IMAGES,
    STAGES,
    Compressed,
    Job,
    Realised,
    Settings,
    Source,
    require_compatible,
)
from compressor.labels import require_labelled
from compressor.layers import find_layers
from compressor.objective import default_gamma
from compressor.plan import planned_layers, write_plans
from compressor.precision import Judged, latency_beside, make_fidelity, precision_file, share, write_precisions
from compressor.progress import Progress
from compressor.rank_search import PLANS, RankSearch, decompose_layers, make_choice
from compressor.realise import realise
from compressor.records import (
    Pair,
    ParityRecord,
    Plan,
)
from compressor.risk import compare_risks
from compressor.summary import Measured, make_report
from compressor.targets import reach_target, with_last_timing
from compressor.training import divide_training, require_trainable
from compressor.tuning import tune_as_asked
from exporters.edge import CONFIG_SUFFIX, ORT_SUFFIX, ZIP_SUFFIX
from exporters.onnx import DATA_SUFFIX, export_onnx, require_opset
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
MAX_SEARCH_IMAGES = 500
MAX_SEARCH_IMAGES_OF_RISK = 2000  # risks scatter more than function norms do
DECIDING_SHARE = 2 / 3  # of the images outside the search, where a drop is asked for; the others judge
MAX_TRAIN_IMAGES = 50_000


def compress(
    model: nn.Module,
    images: ImageSet | Iterable[Any],
    out: str | Path,
    settings: Settings | None = None,
    source: Source | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    train_images: ImageSet | Iterable[Any] | None = None,
) -> Compressed:
    """Search ranks, build the compressed network, export, verify and measure it, and write the report.

    Args:
        model: any network from one tensor (N, ...) to one tensor (N, outputs); left untouched.
        images: batches (N, ...) or (batch, labels) pairs, or an `ImageSet`. A part is kept out of the search.
        out: folder to write, new or empty (or holding the search to resume).
        settings, source, progress: see there.
        resume: go on from the journal in `out`, and from the fine-tuning's checkpoint.
        train_images: to fine-tune on, of the same kind as `images`; None for those of `images` that do not judge.

    Raises:
        InputError: something about the input, the settings or the folder is not usable.
        VerificationError: the exported file does not compute what the network computes.
    """
    job = prepare(model, images, out, settings, source, progress, resume, train_images)
    norm = function_norm(job)
    with RankSearch(job, norm, resume) as search:
        realised = reach_target(job, search, norm) if job.settings.target else realise(job, search.run(), norm)
    return _finish(job, realised)


def apply_plan(
    model: nn.Module,
    images: ImageSet | Iterable[Any],
    plan: Plan,
    out: str | Path,
    settings: Settings | None = None,
    source: Source | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    train_images: ImageSet | Iterable[Any] | None = None,
) -> Compressed:
    """The same job with a given plan instead of a search; arguments and errors as `compress`.

    Without settings the factors are those that the plan names.
    """
    settings = settings or Settings(factors=None)
    job = prepare(model, images, out, settings, source, progress, resume, train_images)
    layers, ranks = planned_layers(plan, job.layers)
    prepare_folder(job.folder)
    norm = function_norm(job)
    kinds = {row.name: row.factors for row in plan.layers if row.factors} if job.settings.factors is None else {}
    parts = decompose_layers(job, layers, norm, kinds)
    gamma = plan.gamma or job.settings.gamma or default_gamma(norm.teacher_energy)
    caps = {layer.name: layer.cap for layer in layers}
    used = {part.layer.name: part.kind for part in parts}
    rows = [row.model_copy(update={"cap": caps[row.name], "factors": used[row.name]}) for row in plan.layers]
    kept = plan.model_copy(update={"arch": job.source.arch, "gamma": gamma, "layers": rows})
    return _finish(job, realise(job, make_choice(parts, ranks, gamma, kept), norm))


# Before the search


def prepare(
    model: nn.Module,
    images: ImageSet | Iterable[Any],
    out: str | Path,
    settings: Settings | None,
    source: Source | None,
    progress: Progress | None,
    resume: bool = False,
    train_images: ImageSet | Iterable[Any] | None = None,
) -> Job:
    """The job, with everything checked that can be before long work; arguments and errors as `compress`."""
    began = time.perf_counter()
    settings = settings or Settings()
    image_set = _as_image_set(images, MAX_IMAGES)
    if len(image_set) < 4:
        raise InputError(f"at least 4 images are needed, 2 to search with and 2 to judge, got {len(image_set)}")
    if settings.factors in ("refit", "activation") and not settings.calibration:
        raise InputError(f"{settings.factors} factors are fitted to images: --calibration must be above 0")
    require_labelled(image_set, settings.fidelity)
    require_compatible(settings)
    if absence := explain_absence([settings.provider]):
        raise InputError(f"--provider {settings.provider}: {absence}")
    check_folder(Path(out), keep=OUTPUTS if resume else ())
    calibration, search_images, held_out = _divide(image_set, settings)
    training = None
    if settings.tune.epochs:
        given = None if train_images is None else _as_image_set(train_images, MAX_TRAIN_IMAGES)
        training = divide_training(given, calibration, search_images, held_out, settings.search.seed)
    deciding, held_out = _set_aside(held_out, settings)
    teacher = copy.deepcopy(model).eval().requires_grad_(False).to(_device(settings.device))
    example = search_images.batch([0]).to(settings.device)
    _require_input_fits(teacher, example)
    teacher = open_attention(teacher, example)
    if settings.opset is not None:
        require_opset(teacher, example, settings.opset)  # now, rather than after the search
    if training:
        require_trainable(training, settings.tune.by, teacher, example)
    layers = find_layers(
        teacher,
        example,
        settings.method,
        settings.layers,
        settings.skip,
        source.arch if source else "",
    )
    return Job(
        teacher=teacher,
        calibration=calibration,
        search_images=search_images,
        held_out=held_out,
        layers=layers,
        folder=Path(out),
        settings=settings,
        source=source or Source(type(model).__name__, command="compressor.compress(...)"),
        progress=progress or Progress(),
        began=began,
        deciding=deciding,
        training=training,
        resume=resume,
    )


def _as_image_set(images: ImageSet | Iterable[Any], limit: int) -> ImageSet:
    return images if isinstance(images, ImageSet) else from_batches(images, limit)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        gpu = "a GPU is there" if torch.cuda.is_available() else "torch sees no GPU"
        raise InputError(f"the device {name!r} cannot be used here ({gpu}): use cpu, cuda or cuda:1") from error
    return device


def _require_input_fits(model: nn.Module, example: Tensor) -> None:
    try:
        with torch.inference_mode():
            model(example)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        shape = " x ".join(map(str, example.shape))
        reason = first_line(error)
        raise InputError(f"the network cannot take inputs of shape {shape} ({reason}): see --input-size") from error


def _divide(images: ImageSet, settings: Settings) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Images to fit factors on, to search with, and to judge the result."""
    num_calibration = min(settings.calibration_wanted, int(MAX_CALIBRATION_SHARE * len(images)))
    if num_calibration < MIN_CALIBRATION_IMAGES:
        num_calibration = 0
    calibration, others = images.split(num_calibration, settings.search.seed)
    limit = MAX_SEARCH_IMAGES if settings.fidelity == "norm" else MAX_SEARCH_IMAGES_OF_RISK
    search_images, held_out = others.split(min(limit, len(others) // 2), settings.search.seed)
    return calibration, search_images, held_out


def _set_aside(held_out: ImageSet, settings: Settings) -> tuple[ImageSet | None, ImageSet]:
    """Images to decide over a drop, where one is asked for, and those that judge."""
    if settings.target is None or settings.target.wish != "drop":
        return None, held_out
    if len(held_out) < 4:
        raise InputError("--max-drop needs more images: to search, to decide and to judge")
    return held_out.split(int(DECIDING_SHARE * len(held_out)), settings.search.seed)


def function_norm(job: Job) -> FunctionNorm:
    """The function norm on the images that search and choices of factors may see."""
    with job.progress.stage("outputs of the original"):
        return FunctionNorm(job.teacher, job.search_images, job.device)


# After the search


def _finish(job: Job, realised: Realised) -> Compressed:
    return deliver(job, tune_as_asked(job, realised))


def deliver(job: Job, realised: Realised) -> Compressed:
    """Judge the network, write it in all its forms, verify and measure the files, and report."""
    choice, network = realised.choice, realised.network
    plan = choice.plan
    judged, top1, risk = _judge(job, network)
    network.cpu()
    original = job.teacher.cpu()
    write_plans(job.folder, plan, choice.front)
    with replace_when_whole(job.folder / "compressed.safetensors") as partial:
        partial.write_bytes(save({name: value.contiguous() for name, value in network.state_dict().items()}))
    parity = _export_both(job, original, network, plan)
    latency = latency_beside(job, "original.onnx", "model.onnx", "latency")
    if realised.target is not None:
        last = latency.get(PROVIDERS[job.settings.provider])
        realised = replace(realised, target=with_last_timing(realised.target, choice.cost, last))
    precisions, failures = write_precisions(job, judged, _provenance(job, plan))
    files, unwritten = write_formats(job, network, precisions)
    failures += unwritten
    measured = Measured(realised, judged.fidelity, top1, risk, parity, latency, precisions, failures, files)
    report = make_report(job, measured)
    write_text(job.folder / "report.json", report.model_dump_json(indent=2) + "\n")
    write_report(report, job.folder / "report.html")
    return Compressed(network, plan, report, job.folder)


def _judge(job: Job, network: nn.Module) -> tuple[Judged, Pair[float] | None, Pair[float] | None]:
    """Function norm, top-1 and cross-entropy on the images the search never saw."""
    with job.progress.stage(f"judging on {len(job.held_out)} images outside the search"):
        norm = FunctionNorm(job.teacher, job.held_out, job.device)
        every = torch.arange(len(job.held_out))
        outputs = norm.outputs(network, every)
    squares = torch.from_numpy(norm.compare(outputs, every))
    outputs, targets = outputs.cpu(), norm.targets.cpu()
    fidelity = make_fidelity(squares, norm.teacher_energy, outputs, targets)
    labels = norm.labels
    judged = Judged(targets, outputs, fidelity, labels)
    if labels is None:
        return judged, None, None
    top1 = Pair[float](original=share(targets.argmax(1) == labels), compressed=share(outputs.argmax(1) == labels))
    return judged, top1, compare_risks(targets, outputs, labels)


def _export_both(job: Job, original: nn.Module, network: nn.Module, plan: Plan) -> ParityRecord:
    """original.onnx and model.onnx, each checked against torch before it takes its name."""
    images = job.held_out.batch(slice(0, VERIFY_IMAGES))
    with job.progress.stage("exporting and verifying ONNX", 2) as stage:
        _export_verified(original, images, job.folder / "original.onnx", _provenance(job), job.settings.opset)
        stage.update(1)
        return _export_verified(network, images, job.folder / "model.onnx", _provenance(job, plan), job.settings.opset)


def _provenance(job: Job, plan: Plan | None = None) -> dict[str, str]:
    """What files carry of where they came from; those of the compressed network its plan, too."""
    source = {"version": compressor.__version__, "architecture": job.source.arch}
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
) -> ParityRecord:
    with replace_files_when_whole(path) as partial:
        export_onnx(model, images[:2], partial, metadata, opset)
        try:
            return verify_onnx(partial, model, images)
        except VerificationError as error:
            raise VerificationError(str(error).replace(str(partial), str(path))) from error
