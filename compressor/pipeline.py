"""The one driver: every stage in order, nothing else.

    checkpoint -> layers -> factors -> search -> compressed network -> ONNX -> measurements -> report

`compress` is the whole job for any network and any images; the command line only loads, calls and prints.
"""

import copy
import functools
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

import compressor
from benchmarks.layer_latency import LayerClock
from benchmarks.rank_steps import measure_rank_multiple
from benchmarks.report import write_report
from compressor.architectures import user_cache_dir
from compressor.attention import open_attention
from compressor.costs import cost_tables, saves_nothing
from compressor.decompose import RIVALS, Decomposed, Decomposer
from compressor.errors import InputError, VerificationError, first_line
from compressor.fidelity import FunctionNorm, Losses
from compressor.files import check_folder, prepare_folder, replace_files_when_whole, replace_when_whole, write_text
from compressor.formats import write_formats
from compressor.images import ImageSet, from_batches
from compressor.job import (
    MAX_CALIBRATION_SHARE,
    MIN_CALIBRATION_IMAGES,
    Choice,
    Compressed,
    Job,
    Settings,
    Source,
)
from compressor.layers import FoundLayer, compressible, factorised_ranks, find_layers, with_method
from compressor.network import build_candidate, detach_from_original
from compressor.objective import Objective, default_gamma
from compressor.plan import make_plan, planned_layers
from compressor.precision import Judged, latency_beside, make_fidelity, precision_file, share, tell, write_precisions
from compressor.progress import Progress
from compressor.prune import count_prunable, prune_smallest, pruned_copy
from compressor.recalibrate import Recalibration
from compressor.records import (
    COST_WORDS,
    FactorChoice,
    FactorKind,
    Method,
    Pair,
    ParityRecord,
    Plan,
    RecalibrationRecord,
    SearchRecord,
)
from compressor.risk import Risk, compare_risks, fitting_labels, require_labelled
from compressor.search.journal import Journal, stored_header
from compressor.search.loop import Search
from compressor.search.space import RankSpace
from compressor.search.sparsity import SparsitySpace
from compressor.search.workers import Workers
from compressor.summary import Measured, early_warnings, make_report
from exporters.edge import CONFIG_SUFFIX, ORT_SUFFIX, ZIP_SUFFIX
from exporters.onnx import DATA_SUFFIX, export_onnx, layer_bytes, require_opset
from exporters.verify import VERIFY_IMAGES, verify_onnx

JOURNAL = "search.jsonl"
# What a run leaves in its folder; --resume finds some of it there.
NETWORKS = ("original.onnx", "model.onnx", precision_file("int8"), precision_file("fp16"))
OUTPUTS = (
    JOURNAL,
    "plan.json",
    "compressed.safetensors",
    "report.json",
    "report.html",
    *(f"{name}{suffix}" for name in NETWORKS for suffix in ("", DATA_SUFFIX, ZIP_SUFFIX, DATA_SUFFIX + ZIP_SUFFIX)),
    *(f"{Path(name).stem}{suffix}" for name in NETWORKS for suffix in (ORT_SUFFIX, CONFIG_SUFFIX)),
)
LATENCY_CACHE = "layer-latency.json"
MAX_SEARCH_IMAGES = 500
MAX_CHECK_IMAGES = 100  # of the search's images decide over recalibration
MAX_IMAGES = 1500


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
    norm = _norm(job)
    measure = norm if job.settings.fidelity == "norm" else Risk(norm, job.settings.fidelity)
    return _finish(job, _search(job, norm, measure, resume), norm)


def apply_plan(
    model: nn.Module,
    images: ImageSet | Iterable[Any],
    plan: Plan,
    out: str | Path,
    settings: Settings | None = None,
    source: Source | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """The same job with a given plan instead of a search; arguments and errors as `compress`.

    Without settings the factors are those that the plan names.
    """
    settings = settings or Settings(factors=None)
    job = _prepare(model, images, out, settings, source, progress)
    layers, ranks = planned_layers(plan, job.layers)
    prepare_folder(job.folder)
    norm = _norm(job)
    kinds = {row.name: row.factors for row in plan.layers if row.factors} if job.settings.factors is None else {}
    parts = _decompose(job, layers, norm, kinds)
    gamma = plan.gamma or job.settings.gamma or default_gamma(norm.teacher_energy)
    caps = {layer.name: layer.cap for layer in layers}
    used = {part.layer.name: part.kind for part in parts}
    rows = [row.model_copy(update={"cap": caps[row.name], "factors": used[row.name]}) for row in plan.layers]
    kept = plan.model_copy(update={"arch": job.source.arch, "gamma": gamma, "layers": rows})
    return _finish(job, _choice(parts, ranks, gamma, kept), norm)


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
    if settings.factors in ("refit", "activation") and not settings.calibration:
        raise InputError(f"{settings.factors} factors are fitted to images: --calibration must be above 0")
    require_labelled(image_set, settings.fidelity)
    if settings.prune_fraction is None and settings.cost != "params":
        raise InputError(f"--prune auto counts weights that are not zero: it needs --cost params, not {settings.cost}")
    check_folder(Path(out), keep)
    calibration, search_images, held_out = _divide(image_set, settings)
    teacher = copy.deepcopy(model).eval().requires_grad_(False).to(_device(settings.device))
    example = search_images.batch([0]).to(settings.device)
    _require_input_fits(teacher, example)
    teacher = open_attention(teacher, example)
    if settings.opset is not None:
        require_opset(teacher, example, settings.opset)  # now, rather than after the search
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


def _divide(images: ImageSet, settings: Settings) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Images to fit factors on, to search with, and to judge the result."""
    num_calibration = min(settings.calibration_wanted, int(MAX_CALIBRATION_SHARE * len(images)))
    if num_calibration < MIN_CALIBRATION_IMAGES:
        num_calibration = 0
    calibration, others = images.split(num_calibration, settings.search.seed)
    search_images, held_out = others.split(min(MAX_SEARCH_IMAGES, len(others) // 2), settings.search.seed)
    return calibration, search_images, held_out


def _norm(job: Job) -> FunctionNorm:
    """The function norm on the images that search and choices of factors may see."""
    with job.progress.stage("outputs of the original"):
        return FunctionNorm(job.teacher, job.search_images, job.device)


def _decompose(
    job: Job,
    layers: Sequence[FoundLayer],
    norm: FunctionNorm,
    kinds: Mapping[str, FactorKind],
    rivals: tuple[Method, ...] = (),
) -> list[Decomposed]:
    with job.progress.stage("factorising layers", len(layers)) as stage:
        decomposer = Decomposer(
            model=job.teacher,
            calibration=job.calibration,
            judge=norm,
            device=job.device,
            choice=_factor_choice(job),
            kinds=kinds,
            rivals=rivals,
            seed=job.settings.search.seed,
            on_step=stage.update,
        )
        return decomposer.run(layers)


def _factor_choice(job: Job) -> FactorChoice:
    """On drawn images other factors look better than they are (docs/results.md), and the search would believe it."""
    choice = job.settings.factors or "auto"
    return "weight" if choice == "auto" and job.calibration.drawn else choice


def _choice(
    parts: Sequence[Decomposed],
    ranks: Sequence[int],
    gamma: float,
    plan: Plan,
    search: SearchRecord | None = None,
    rank_multiple: int = 1,
) -> Choice:
    return Choice(
        layers=[part.layer for part in parts],
        ranks=list(ranks),
        factors={part.layer.name: part.factors for part in parts},
        kinds={part.layer.name: part.kind for part in parts},
        gamma=gamma,
        search=search,
        rank_multiple=rank_multiple,
        plan=plan,
    )


# The search


def _search(job: Job, norm: FunctionNorm, measure: FunctionNorm | Risk, resume: bool) -> Choice:
    found = compressible(job.layers)
    if not found:
        raise InputError("no layer is left to compress; `bocompress inspect` lists the reasons")
    settings, teacher = job.settings, job.teacher
    gamma = settings.gamma if settings.gamma is not None else default_gamma(measure.loss_when_lost)
    objective = Objective(gamma, settings.form)
    for warning in early_warnings(job, gamma, measure.loss_when_lost):
        job.progress.say(f"note: {warning}")
    workers = _workers(settings)
    prepare_folder(job.folder)
    earlier = stored_header(job.folder / JOURNAL) if resume else {}
    every_part = _parts(job, found, norm, earlier)
    multiple = _rank_multiple(job, earlier)
    tables = _cost_tables(job, every_part, earlier)
    left = {name: _why_left(job, table) for name, table in tables.items() if saves_nothing(table)}
    parts = [part for part in every_part if part.layer.name not in left]
    if not parts:
        raise InputError(f"no layer is left to compress: {next(iter(left.values()))}")
    layers, factors = [part.layer for part in parts], {part.layer.name: part.factors for part in parts}
    names = list(factors)
    space = RankSpace(names, [tables[name] for name in names], settings.search.coordinates, multiple)
    if settings.prune_fraction is None:
        space = SparsitySpace(space, count_prunable(teacher) - sum(layer.params for layer in layers))
    journal = Journal(job.folder / JOURNAL, _fingerprint(job, every_part, gamma, multiple, tables), resume)

    def evaluate(ranks: np.ndarray, indices: np.ndarray) -> Losses:
        candidate = build_candidate(teacher, factors, factorised_ranks(layers, space.layer_ranks(ranks)))
        return measure.losses(pruned_copy(candidate, space.prune_fraction(ranks)), indices)

    with workers, job.progress.stage("searching ranks", settings.search.max_evaluations) as stage:
        search = Search(
            space,
            objective,
            evaluate,
            len(job.search_images),
            settings.search,
            journal,
            on_look=stage.update,
            workers=workers,
            law=measure.law,
        )
        ranks, record = search.run()
    kinds = {part.layer.name: part.kind for part in parts}
    chosen = space.layer_ranks(ranks).tolist()
    fraction = space.prune_fraction(ranks) if settings.prune_fraction is None else settings.prune_fraction
    plan = make_plan(layers, chosen, kinds, job.source.arch, gamma, fraction, settings.fidelity)
    choice = _choice(parts, chosen, gamma, plan, record, multiple)
    return replace(choice, cost=settings.cost, ratio=float(space.ratio(ranks[None])[0]), left=left)


def _workers(settings: Settings) -> Workers:
    """The workers that evaluate candidates; each process takes its share of the threads that torch has here."""
    share = max(1, torch.get_num_threads() // settings.workers)
    return Workers(settings.workers, settings.backend, functools.partial(torch.set_num_threads, share))


def _parts(job: Job, found: Sequence[FoundLayer], norm: FunctionNorm, earlier: Mapping[str, Any]) -> list[Decomposed]:
    """The layers decomposed; a resumed search keeps the methods and factors that were measured to be best."""
    rows = earlier.get("layers")
    try:
        chosen = {name: (method, kind) for name, method, _, kind in rows or []}
        layers = [with_method(layer, chosen[layer.name][0]) for layer in found]
        kinds: dict[str, FactorKind] = {name: kind for name, (_, kind) in chosen.items()}
    except (KeyError, TypeError, ValueError):  # no journal, or one that will be refused
        return _decompose(job, found, norm, {}, () if earlier else RIVALS.get(job.settings.method, ()))
    return _decompose(job, layers, norm, kinds)


def _rank_multiple(job: Job, earlier: Mapping[str, Any]) -> int:
    if job.settings.rank_multiple is not None:
        return job.settings.rank_multiple
    if isinstance(earlier.get("rank multiple"), int):
        return int(earlier["rank multiple"])
    with job.progress.stage("latency of ranks") as stage:
        multiple, shares = measure_rank_multiple(job.settings.threads, tell(stage, "shapes"))
    gain = 100 - 100 * shares[multiple]
    found = f"multiples of {multiple}, {gain:.0f} % faster here than ranks at large" if multiple > 1 else "as they come"
    job.progress.say(f"ranks: {found}")
    return multiple


def _cost_tables(job: Job, parts: Sequence[Decomposed], earlier: Mapping[str, Any]) -> dict[str, list[float]]:
    """Costs by layer; a resumed search keeps the times that were measured."""
    layers, cost = [part.layer for part in parts], job.settings.cost
    measured = earlier.get("milliseconds")
    if cost == "latency" and isinstance(measured, dict) and {layer.name for layer in layers} <= set(measured):
        return {layer.name: measured[layer.name] for layer in layers}
    clock = LayerClock(job.settings.threads, _latency_cache())

    def measure(key: str, modules: Sequence[nn.Module], value: Tensor) -> list[float]:
        return clock.measure(key, lambda: [layer_bytes(module, value) for module in modules], value.cpu().numpy())

    count = job.settings.batch_size if cost == "latency" else 1
    example = job.search_images.batch([number % len(job.search_images) for number in range(count)])
    factors = {part.layer.name: part.factors for part in parts}
    words = "latency of layers" if cost == "latency" else f"{COST_WORDS[cost]} of layers"
    with job.progress.stage(words, len(layers)) as stage:
        tables = cost_tables(cost, job.teacher, layers, factors, example.to(job.device), measure, stage.update)
    return {layer.name: table for layer, table in zip(layers, tables, strict=True)}


def _latency_cache() -> Path | None:
    try:
        return user_cache_dir() / LATENCY_CACHE
    except RuntimeError:  # no home directory
        return None


def _why_left(job: Job, table: Sequence[float]) -> str:
    share = min(table[:-1]) / table[-1]
    return f"at best its factors cost {share:.2f} times as much {COST_WORDS[job.settings.cost]} as the layer itself"


def _fingerprint(
    job: Job, parts: Sequence[Decomposed], gamma: float, multiple: int, tables: Mapping[str, list[float]]
) -> dict[str, Any]:
    """What the search depends on; a journal with another fingerprint is refused."""
    settings, labels = job.settings, job.search_images.labels
    searching = asdict(settings.search)
    # Budgets only say when to stop: a resumed search may be given more.
    del searching["max_evaluations"], searching["max_seconds"]
    return {
        "journal_version": 3,
        "weights": _hash(job.teacher.state_dict().values()),
        "images": _hash_images(job.search_images),
        "calibration": _hash_images(job.calibration),
        "layers": [[part.layer.name, part.layer.method, part.layer.cap, part.kind] for part in parts],
        "method": settings.method,
        "factors": settings.factors,
        "rank multiple": multiple,
        "gamma": gamma,
        "form": settings.form,
        "fidelity": settings.fidelity,
        "sparsity": "searched" if settings.prune_fraction is None else None,
        "labels": None if settings.fidelity == "norm" or labels is None else labels.tolist(),
        "cost": settings.cost,
        "milliseconds": tables if settings.cost == "latency" else None,
        "search settings": searching,
    }


def _hash_images(images: ImageSet) -> str:
    return _hash(images.batch(slice(start, start + 64)) for start in range(0, len(images), 64))


def _hash(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# After the search


def _finish(job: Job, choice: Choice, norm: FunctionNorm) -> Compressed:
    plan = choice.plan
    ranks = factorised_ranks(choice.layers, choice.ranks)
    network = detach_from_original(build_candidate(job.teacher, choice.factors, ranks))
    network, recalibration = _recalibrate(job, choice, network, norm)
    prune_smallest(network, plan.prune_fraction)
    judged, top1, risk = _judge(job, network)
    network.cpu()
    original = job.teacher.cpu()
    write_text(job.folder / "plan.json", plan.model_dump_json(indent=2) + "\n")
    with replace_when_whole(job.folder / "compressed.safetensors") as partial:
        partial.write_bytes(save({name: value.contiguous() for name, value in network.state_dict().items()}))
    parity = _export_both(job, original, network, plan)
    latency = latency_beside(job, "original.onnx", "model.onnx", "latency")
    precisions, failures = write_precisions(job, judged, _provenance(job, plan))
    files, unwritten = write_formats(job, network, precisions)
    failures += unwritten
    measured = Measured(
        network, recalibration, judged.fidelity, top1, risk, parity, latency, precisions, failures, files
    )
    report = make_report(job, choice, measured)
    write_text(job.folder / "report.json", report.model_dump_json(indent=2) + "\n")
    write_report(report, job.folder / "report.html")
    return Compressed(network, plan, report, job.folder)


def _recalibrate(
    job: Job, choice: Choice, network: nn.Module, norm: FunctionNorm
) -> tuple[nn.Module, RecalibrationRecord | None]:
    """The network with its factorised layers refitted, where that is wanted and there are images to fit on."""
    ranks = factorised_ranks(choice.layers, choice.ranks)
    layers = [layer for layer in choice.layers if layer.name in ranks]
    if not (job.settings.recalibrate and layers and len(job.calibration)):
        return network, None
    check = norm.subset(min(MAX_CHECK_IMAGES, len(job.search_images)))
    with job.progress.stage("recalibrating layers", len(layers)) as stage:
        recalibration = Recalibration(
            original=job.teacher,
            network=network,
            layers=layers,
            calibration=job.calibration,
            judge=check,
            device=job.device,
            seed=job.settings.search.seed,
            on_step=stage.update,
        )
        record = recalibration.run()
    return recalibration.network, record


def _judge(job: Job, network: nn.Module) -> tuple[Judged, Pair[float] | None, Pair[float] | None]:
    """Function norm, top-1 and cross-entropy on the images the search never saw."""
    with job.progress.stage(f"judging on {len(job.held_out)} images outside the search"):
        norm = FunctionNorm(job.teacher, job.held_out, job.device)
        every = torch.arange(len(job.held_out))
        outputs = norm.outputs(network, every)
    squares = torch.from_numpy(norm.compare(outputs, every))
    outputs, targets = outputs.cpu(), norm.targets.cpu()
    fidelity = make_fidelity(squares, norm.teacher_energy, outputs, targets)
    labels = fitting_labels(job.held_out, outputs.shape[1])
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
