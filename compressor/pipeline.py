"""The one driver: every stage in order, nothing else.

    checkpoint -> layers -> factors -> search -> compressed network -> ONNX -> measurements -> report

`compress` is the whole job for any network and any images; the command line only loads, calls and prints.
"""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

import compressor
from benchmarks.latency import available_providers, measure_latency
from benchmarks.machine import describe_machine
from benchmarks.report import write_report
from benchmarks.size import count_nonzero_params, count_params, file_bytes, gzip_bytes
from compressor import advice
from compressor.errors import InputError, VerificationError, first_line
from compressor.factors import Factors
from compressor.fidelity import FunctionNorm
from compressor.files import check_folder, prepare_folder, replace_when_whole, write_text
from compressor.images import ImageSet, from_batches
from compressor.layers import FoundLayer, MethodChoice, compressible, factorised_ranks, find_layers
from compressor.macs import count_macs
from compressor.network import build_candidate, detach_from_original
from compressor.objective import Objective, default_gamma
from compressor.plan import make_plan, planned_layers
from compressor.progress import Progress, Stage
from compressor.prune import prune_smallest
from compressor.records import (
    FidelityRecord,
    Form,
    ImagesRecord,
    LatencyRecord,
    LayerRecord,
    Pair,
    ParityRecord,
    Plan,
    Report,
    SearchRecord,
)
from compressor.search.journal import Journal
from compressor.search.loop import Search, SearchSettings
from compressor.search.space import RankSpace
from exporters.onnx import export_onnx
from exporters.verify import VERIFY_IMAGES, verify_onnx

MAX_SEARCH_IMAGES = 500
MAX_IMAGES = 1500
JOURNAL = "search.jsonl"
# What a run leaves in its folder; --resume finds some of it there.
OUTPUTS = (
    JOURNAL,
    "plan.json",
    "compressed.safetensors",
    "original.onnx",
    "model.onnx",
    "report.json",
    "report.html",
)


@dataclass(frozen=True)
class Settings:
    """What a person may choose; the defaults are the command line's.

    `gamma` None weighs the whole output against the whole size (see `default_gamma`). `layers` and `skip` are
    name patterns; `prune_fraction` is the share of weights the final magnitude pass sets to zero. `threads`
    and `batch_size` are the latency measurement's.
    """

    gamma: float | None = None
    form: Form = "ratio"
    method: MethodChoice = "auto"
    layers: Sequence[str] = ()
    skip: Sequence[str] = ()
    prune_fraction: float = 0.0
    device: str = "cpu"
    threads: int = 1
    batch_size: int = 1
    search: SearchSettings = field(default_factory=SearchSettings)


@dataclass(frozen=True)
class Source:
    """Where the network came from, for the report: its name, remarks of the loader, the command typed."""

    arch: str
    notes: Sequence[str] = ()
    command: str = ""


@dataclass(frozen=True)
class Compressed:
    """The result: a plain torch network on the CPU, its plan, and the report; files lie in `folder`."""

    model: nn.Module
    plan: Plan
    report: Report
    folder: Path


@dataclass(frozen=True)
class Job:
    """What every stage after loading needs."""

    teacher: nn.Module
    search_images: ImageSet
    held_out: ImageSet
    layers: list[FoundLayer]
    folder: Path
    settings: Settings
    source: Source
    progress: Progress
    began: float

    @property
    def device(self) -> torch.device:
        """Where candidates are evaluated."""
        return torch.device(self.settings.device)

    @property
    def example(self) -> Tensor:
        """One input (1, ...)."""
        return self.search_images.batch([0])


@dataclass(frozen=True)
class Choice:
    """A plan with what led to it."""

    layers: list[FoundLayer]
    ranks: list[int]
    factors: Mapping[str, Factors]
    gamma: float
    search: SearchRecord | None
    plan: Plan


def compress(
    model: nn.Module,
    images: ImageSet | Iterable[Any],
    out: str | Path,
    settings: Settings | None = None,
    source: Source | None = None,
    progress: Progress | None = None,
    resume: bool = False,
) -> Compressed:
    """Search ranks, build the compressed network, export, verify and measure it, and write the report.

    Args:
        model: any network from one tensor (N, ...) to one tensor (N, outputs); left untouched.
        images: batches (N, ...) or (batch, labels) pairs, or an `ImageSet`. A part is kept out of the search.
        out: folder to write, new or empty (or holding the search to resume).
        settings, source, progress: see there.
        resume: go on from the journal in `out`.

    Raises:
        InputError: something about the input, the settings or the folder is not usable.
        VerificationError: the exported file does not compute what the network computes.
    """
    job = _prepare(model, images, out, settings, source, progress, keep=OUTPUTS if resume else ())
    return _finish(job, _search(job, resume))


def apply_plan(
    model: nn.Module,
    images: ImageSet | Iterable[Any],
    plan: Plan,
    out: str | Path,
    settings: Settings | None = None,
    source: Source | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """The same job with a given plan instead of a search; arguments and errors as `compress`."""
    job = _prepare(model, images, out, settings, source, progress)
    layers, ranks = planned_layers(plan, job.layers)
    prepare_folder(job.folder)
    factors = _factorise(layers, job.progress)
    gamma = plan.gamma or job.settings.gamma or default_gamma(_energy(job))
    caps = {layer.name: layer.cap for layer in layers}
    rows = [row.model_copy(update={"cap": caps[row.name]}) for row in plan.layers]
    kept = plan.model_copy(update={"arch": job.source.arch, "gamma": gamma, "layers": rows})
    return _finish(job, Choice(layers, ranks, factors, gamma, None, kept))


# Before the search


def _prepare(
    model: nn.Module,
    images: ImageSet | Iterable[Any],
    out: str | Path,
    settings: Settings | None,
    source: Source | None,
    progress: Progress | None,
    keep: Sequence[str] = (),
) -> Job:
    began = time.perf_counter()
    settings = settings or Settings()
    image_set = images if isinstance(images, ImageSet) else from_batches(images, MAX_IMAGES)
    if len(image_set) < 4:
        raise InputError(f"at least 4 images are needed, 2 to search with and 2 to judge, got {len(image_set)}")
    check_folder(Path(out), keep)
    search_images, held_out = image_set.split(min(MAX_SEARCH_IMAGES, len(image_set) // 2), settings.search.seed)
    teacher = copy.deepcopy(model).eval().requires_grad_(False).to(_device(settings.device))
    _require_input_fits(teacher, search_images.batch([0]).to(settings.device))
    layers = find_layers(
        teacher,
        search_images.batch([0]).to(settings.device),
        settings.method,
        settings.layers,
        settings.skip,
        source.arch if source else "",
    )
    return Job(
        teacher=teacher,
        search_images=search_images,
        held_out=held_out,
        layers=layers,
        folder=Path(out),
        settings=settings,
        source=source or Source(type(model).__name__, command="compressor.compress(...)"),
        progress=progress or Progress(),
        began=began,
    )


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


def _factorise(layers: Sequence[FoundLayer], progress: Progress) -> dict[str, Factors]:
    factors = {}
    with progress.stage("factorising layers", len(layers)) as stage:
        for count, layer in enumerate(layers):
            stage.update(count, layer.name)
            factors[layer.name] = layer.factorise()
    return factors


def _energy(job: Job) -> float:
    return FunctionNorm(job.teacher, job.search_images, job.device).teacher_energy


# The search


def _search(job: Job, resume: bool) -> Choice:
    layers = compressible(job.layers)
    if not layers:
        raise InputError("no layer is left to compress; `bocompress inspect` lists the reasons")
    settings = job.settings
    with job.progress.stage("outputs of the original"):
        norm = FunctionNorm(job.teacher, job.search_images, job.device)
    gamma = settings.gamma if settings.gamma is not None else default_gamma(norm.teacher_energy)
    objective = Objective(gamma, settings.form)
    for warning in _early_warnings(job, gamma, norm.teacher_energy):
        job.progress.say(f"note: {warning}")
    prepare_folder(job.folder)
    factors = _factorise(layers, job.progress)
    space = RankSpace(
        [layer.name for layer in layers],
        [layer.params_by_rank() for layer in layers],
        settings.search.coordinates,
    )
    journal = Journal(job.folder / JOURNAL, _fingerprint(job, gamma), resume)

    def evaluate(ranks: np.ndarray, indices: np.ndarray) -> Any:
        return norm.losses(build_candidate(job.teacher, factors, factorised_ranks(layers, ranks)), indices)

    with job.progress.stage("searching ranks", settings.search.max_evaluations) as stage:
        search = Search(space, objective, evaluate, len(job.search_images), settings.search, journal, stage.update)
        ranks, record = search.run()
    plan = make_plan(layers, ranks.tolist(), job.source.arch, gamma, settings.prune_fraction)
    return Choice(layers, ranks.tolist(), factors, gamma, record, plan)


def _fingerprint(job: Job, gamma: float) -> dict[str, Any]:
    """What the search depends on; a journal with another fingerprint is refused."""
    settings = job.settings
    searching = asdict(settings.search)
    # Budgets only say when to stop: a resumed search may be given more.
    del searching["max_evaluations"], searching["max_seconds"]
    return {
        "journal_version": 1,
        "weights": _hash(job.teacher.state_dict().values()),
        "images": _hash(
            job.search_images.batch(slice(start, start + 64)) for start in range(0, len(job.search_images), 64)
        ),
        "layers": [[layer.name, layer.method, layer.cap] for layer in compressible(job.layers)],
        "gamma": gamma,
        "form": settings.form,
        "search settings": searching,
    }


def _hash(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# After the search


def _finish(job: Job, choice: Choice) -> Compressed:
    plan = choice.plan
    ranks = factorised_ranks(choice.layers, choice.ranks)
    network = detach_from_original(build_candidate(job.teacher, choice.factors, ranks))
    prune_smallest(network, plan.prune_fraction)
    fidelity, top1 = _judge(job, network)
    network.cpu()
    original = job.teacher.cpu()
    write_text(job.folder / "plan.json", plan.model_dump_json(indent=2) + "\n")
    with replace_when_whole(job.folder / "compressed.safetensors") as partial:
        partial.write_bytes(save({name: value.contiguous() for name, value in network.state_dict().items()}))
    parity = _export_both(job, original, network, plan)
    latency = _measure(job)
    report = _report(job, choice, network, original, fidelity, top1, parity, latency)
    write_text(job.folder / "report.json", report.model_dump_json(indent=2) + "\n")
    write_report(report, job.folder / "report.html")
    return Compressed(network, plan, report, job.folder)


def _judge(job: Job, network: nn.Module) -> tuple[FidelityRecord, Pair[float] | None]:
    """Function norm and top-1 on the images the search never saw."""
    with job.progress.stage(f"judging on {len(job.held_out)} images outside the search"):
        norm = FunctionNorm(job.teacher, job.held_out, job.device)
        every = torch.arange(len(job.held_out))
        outputs = norm.outputs(network, every)
    squares = norm.compare(outputs, every)
    predictions, decisions = outputs.argmax(1).cpu(), norm.targets.argmax(1).cpu()
    fidelity = FidelityRecord(
        function_norm=float(squares.mean()),
        stderr=float(squares.std(ddof=1) / np.sqrt(len(squares))),
        relative=float(squares.mean() / norm.teacher_energy),
        teacher_energy=norm.teacher_energy,
        images=len(squares),
        top1_agreement=_share(predictions == decisions),
    )
    labels = _usable_labels(job, outputs.shape[1])
    if labels is None:
        return fidelity, None
    return fidelity, Pair[float](original=_share(decisions == labels), compressed=_share(predictions == labels))


def _usable_labels(job: Job, num_outputs: int) -> Tensor | None:
    names = job.held_out.class_names
    if job.held_out.labels is None or (names is not None and len(names) != num_outputs):
        return None
    return job.held_out.labels


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())


def _export_both(job: Job, original: nn.Module, network: nn.Module, plan: Plan) -> ParityRecord:
    """original.onnx and model.onnx, each checked against torch before it takes its name."""
    images = job.held_out.batch(slice(0, VERIFY_IMAGES))
    provenance = {
        "version": compressor.__version__,
        "architecture": job.source.arch,
    }
    ranks = {layer.name: layer.rank for layer in plan.layers if layer.rank is not None}
    compressed = provenance | {
        "gamma": repr(plan.gamma),
        "ranks": json.dumps(ranks),
        "prune_fraction": repr(plan.prune_fraction),
    }
    with job.progress.stage("exporting and verifying ONNX", 2) as stage:
        _export_verified(original, images, job.folder / "original.onnx", provenance)
        stage.update(1)
        return _export_verified(network, images, job.folder / "model.onnx", compressed)


def _export_verified(model: nn.Module, images: Tensor, path: Path, metadata: Mapping[str, str]) -> ParityRecord:
    with replace_when_whole(path) as partial:
        export_onnx(model, images[:2], partial, metadata)
        try:
            return verify_onnx(partial, model, images)
        except VerificationError as error:
            raise VerificationError(str(error).replace(str(partial), str(path))) from error


def _measure(job: Job) -> dict[str, LatencyRecord]:
    records = {}
    providers = available_providers()
    for provider in providers:
        with job.progress.stage(f"latency on {provider}") as stage:
            records[provider] = measure_latency(
                job.folder / "original.onnx",
                job.folder / "model.onnx",
                job.example,
                provider,
                threads=job.settings.threads,
                batch_size=job.settings.batch_size,
                seed=job.settings.search.seed,
                on_step=_tell(stage),
            )
    return records


def _tell(stage: Stage) -> Callable[[int, int], None]:
    return lambda done, total: stage.update(done, f"of {total} runs")


# The report


def _report(
    job: Job,
    choice: Choice,
    network: nn.Module,
    original: nn.Module,
    fidelity: FidelityRecord,
    top1: Pair[float] | None,
    parity: ParityRecord,
    latency: dict[str, LatencyRecord],
) -> Report:
    total_macs, _ = count_macs(original, job.example)
    compressed_macs, macs = count_macs(network, job.example)
    layers = [_layer_record(layer, choice, macs) for layer in job.layers]
    params = _compressible_params(layers)
    folder = job.folder
    return Report(
        version=compressor.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=job.source.command,
        seed=job.settings.search.seed,
        seconds=time.perf_counter() - job.began,
        arch=job.source.arch,
        gamma=choice.gamma,
        form=job.settings.form,
        ratio=params.compressed / params.original,
        prune_fraction=choice.plan.prune_fraction,
        params=_pair(count_params, original, network),
        params_compressible=params,
        nonzero_params=_pair(count_nonzero_params, original, network),
        macs=Pair[int](original=total_macs, compressed=compressed_macs),
        onnx_bytes=_pair(file_bytes, folder / "original.onnx", folder / "model.onnx"),
        gzip_bytes=_pair(gzip_bytes, folder / "original.onnx", folder / "model.onnx"),
        latency=latency,
        fidelity=fidelity,
        parity=parity,
        top1=top1,
        search=choice.search,
        layers=layers,
        images=_images_record(job),
        machine=describe_machine(),
        warnings=_all_warnings(job, choice, fidelity, latency),
    )


def _pair(measure: Any, original: Any, compressed: Any) -> Pair[int]:
    return Pair[int](original=measure(original), compressed=measure(compressed))


def _layer_record(layer: FoundLayer, choice: Choice, macs: Mapping[str, int]) -> LayerRecord:
    """The layer with its rank and costs; a layer that the plan does not touch counts as skipped."""
    record = layer.record()
    if layer.skipped is not None:
        return record
    planned = {chosen.name: rank for chosen, rank in zip(choice.layers, choice.ranks, strict=True)}
    if layer.name not in planned:
        return record.model_copy(update={"skipped": "not in the plan"})
    rank = planned[layer.name]
    inside = [count for name, count in macs.items() if name == layer.name or name.startswith(f"{layer.name}.")]
    return record.model_copy(
        update={
            "rank": rank if rank < layer.dense_rank else None,
            "params_compressed": layer.params_by_rank()[rank - 1],
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
        search=len(images),
        held_out=len(job.held_out),
        unreadable=images.unreadable,
        labelled=images.labels is not None,
        input_shape=list(images.input_shape),
    )


def _early_warnings(job: Job, gamma: float, teacher_energy: float) -> list[str]:
    return advice.on_gamma(gamma, teacher_energy) + advice.on_form(job.settings.form)


def _all_warnings(
    job: Job, choice: Choice, fidelity: FidelityRecord, latency: Mapping[str, LatencyRecord]
) -> list[str]:
    warnings = [*job.source.notes]
    warnings += advice.on_unreadable(job.search_images.unreadable)
    if choice.search is not None:
        warnings += _early_warnings(job, choice.gamma, fidelity.teacher_energy)
        warnings += advice.on_certificate(choice.search.certificate, choice.search.stopped_because)
        warnings += advice.on_prune(choice.plan.prune_fraction)
        warnings += advice.on_samples(job.settings.search.samples, len(job.search_images))
    warnings += advice.on_fidelity(fidelity)
    class_names = job.held_out.class_names
    if class_names is not None:
        outputs = _num_outputs(job)
        warnings += advice.on_labels(len(class_names), outputs)
    for provider, record in latency.items():
        warnings += advice.on_latency(provider, record.ratio_low)
    return warnings


def _num_outputs(job: Job) -> int:
    with torch.inference_mode():
        return int(job.teacher(job.example).flatten(1).shape[1])
