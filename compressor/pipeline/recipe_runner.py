"""Recipes at work: each stage takes the network that the one before left, and leaves its own in a folder (Sec. 4.3).

A stage that compresses is the search of `pipeline` on the layers it names; the function norm is then to the network it
was given. A stage that tunes learns from the original, and every stage is judged against the original on the same
images, which no stage learns from. What a stage leaves is enough to go on from; the last network is exported, verified
and measured against the original.
"""

import copy
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from torch import nn

from compressor.data.fingerprint import hash_images, hash_tensors
from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.fidelity.evaluation import TestEvaluator
from compressor.fidelity.function_norm import FunctionNorm
from compressor.files import prepare_folder, write_text
from compressor.network.layers import FoundLayer, MethodChoice, compressible, factorized_ranks, find_layers
from compressor.network.pruning import prune_smallest
from compressor.network.serialization import factorized_names, load_network, save_network
from compressor.pipeline.plan import LayerPlan, Plan, planned_layers, read_plan
from compressor.pipeline.prepare import function_norm, prepare
from compressor.pipeline.recipe import CompressStage, FinetuneStage, PruneStage, Recipe, recipe_content
from compressor.pipeline.settings import Settings, Target
from compressor.pipeline.stages.build import build
from compressor.pipeline.stages.export import deliver
from compressor.pipeline.stages.finetune import tune_network
from compressor.pipeline.stages.meet_size import reach_target
from compressor.pipeline.stages.report import make_stage
from compressor.pipeline.stages.search_ranks import RankSearch
from compressor.pipeline.state import CHECKPOINT, STAGES, BuiltNetwork, CompressedModel, Job, SearchResult, Source
from compressor.progress import Progress
from compressor.recovery.schedules import TuneSettings
from compressor.report.records import StageRecord
from compressor.search.objective import default_gamma
from compressor.search.settings import SearchSettings

ABOUT, STAGE, NETWORK, PLAN = "recipe.json", "stage.json", "network.safetensors", "plan.json"
ON_STAGES = ("gamma", "form", "cost", "factors", "calibration", "recalibrate", "rank_multiple")
BUDGETS = ("max_evaluations", "max_seconds")
SEARCH_KEYS = {field.name for field in fields(SearchSettings)}


def compress_by_recipe(
    model: nn.Module,
    images: ImageSet | Iterable[Any],
    out: str | Path,
    recipe: Recipe,
    settings: Settings | None = None,
    source: Source | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    train_images: ImageSet | Iterable[Any] | None = None,
) -> CompressedModel:
    """All stages of the recipe, then what `compress` writes; arguments and errors as there.

    `settings` hold for what the stages do not say themselves. With `resume` it goes on at the stage that was
    interrupted, from its journal or checkpoint.
    """
    settings = _with_tuning(settings or Settings(), recipe)
    job = prepare(model, images, out, settings, source, progress, resume, train_images)
    _check_layers(job, recipe)
    prepare_folder(job.folder / STAGES)
    _keep_about(job, recipe)
    evaluator = TestEvaluator(FunctionNorm(job.original, job.test_images, job.device))
    original = make_stage(
        "original", "original", job.source.arch, job, job.original, evaluator.evaluate(job.original), 0.0
    )
    run = _Run(job, evaluator, job.original, [original], [])
    for number, (stage, folder) in enumerate(zip(recipe.stage, recipe.folders, strict=True), 1):
        job.progress.log(f"stage {number} of {len(recipe.stage)}, {folder.partition('-')[2]} ({stage.kind})")
        run.do(stage, job.folder / STAGES / folder)
    return deliver(job, BuiltNetwork(_final_result(run, recipe), run.network, reconstruction=None, stages=run.records))


def _with_tuning(settings: Settings, recipe: Recipe) -> Settings:
    """Settings that say whether anything is tuned, and whether by labels: images are prepared and checked for that."""
    stages = [stage for stage in recipe.stage if isinstance(stage, FinetuneStage)]
    by_labels = any(stage.by == "labels" for stage in stages)
    epochs = max((stage.epochs for stage in stages), default=0)
    return replace(
        settings,
        prune_fraction=0.0,
        tune=replace(settings.tune, epochs=epochs, by="labels" if by_labels else "teacher"),
    )


def _check_layers(job: Job, recipe: Recipe) -> None:
    """Raises InputError if a stage that compresses finds nothing in the original, before any work."""
    for number, stage in enumerate(recipe.stage, 1):
        if isinstance(stage, CompressStage):
            try:
                found = compressible(_stage_layers(job, job.original, stage))
            except InputError as error:
                raise InputError(f"stage {number} of the recipe: {error}") from error
            if not found:
                raise InputError(f"stage {number} of the recipe finds no layer to compress; see `bocompress inspect`")


def _keep_about(job: Job, recipe: Recipe) -> None:
    """Write what the stages depend on, or hold what an earlier run wrote against it."""
    about = {
        "recipe": recipe_content(recipe),
        "weights": hash_tensors(job.original.state_dict().values()),
        "images": [hash_images(images) for images in (job.calibration, job.search_images, job.test_images)],
        "images to train on": hash_images(job.training.train) if job.training else None,
        "settings": _chosen(job.settings),
    }
    path = job.folder / STAGES / ABOUT
    if job.resume and path.exists():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            now = json.loads(json.dumps(about))  # tuples are lists there
            different = sorted(key for key in now if stored.get(key) != now[key])
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{path} cannot be read; choose another --out") from error
        if different:
            raise InputError(f"{path} was written with other {', '.join(different)}; --resume needs the same")
    write_text(path, json.dumps(about, indent=2) + "\n")


def _chosen(settings: Settings) -> dict[str, Any]:
    """What stages find depends on these; budgets and how the files are made may be others when a run goes on."""
    searching = {key: value for key, value in asdict(settings.search).items() if key not in BUDGETS}
    return {name: getattr(settings, name) for name in ON_STAGES} | searching | {"autocast": settings.tune.autocast}


@dataclass
class _Run:
    """The network after the stages so far, their records, and what the searches decided on each layer."""

    job: Job
    evaluator: TestEvaluator
    network: nn.Module
    records: list[StageRecord]
    plans: list[Plan]

    def do(self, stage: CompressStage | FinetuneStage | PruneStage, folder: Path) -> None:
        """Run a stage, or take up what an earlier run of it left."""
        if not (self.job.resume and self._restore(folder)):
            began = time.perf_counter()
            prepare_folder(folder)
            if isinstance(stage, CompressStage):
                what, more = self._compress(stage, folder)
            elif isinstance(stage, FinetuneStage):
                what, more = self._tune(stage, folder)
            else:
                what, more = self._prune(stage)
            save_network(self.job.original, self.network, folder / NETWORK)
            judgement, seconds = self.evaluator.evaluate(self.network), time.perf_counter() - began
            name = folder.name.partition("-")[2]
            record = make_stage(name, stage.kind, what, self.job, self.network, judgement, seconds, **more)
            self.records.append(record)
            write_text(folder / STAGE, record.model_dump_json(indent=2) + "\n")  # last: it says that the stage is done
        self._say()

    def _restore(self, folder: Path) -> bool:
        if not (folder / STAGE).exists():
            return False
        try:
            record = StageRecord.model_validate_json((folder / STAGE).read_bytes())
        except (OSError, ValidationError) as error:
            raise InputError(f"{folder / STAGE} cannot be read; choose another --out") from error
        self.network = load_network(self.job.original, folder / NETWORK)
        if (folder / PLAN).exists():
            self.plans.append(read_plan(folder / PLAN))
        self.records.append(record)
        return True

    def _say(self) -> None:
        record = self.records[-1]
        top1 = "" if record.judgement.top1 is None else f", top-1 {100 * record.judgement.top1:.2f} %"
        norm = f"function norm {record.judgement.function_norm:.4g}"
        self.job.progress.log(f"{record.name}: {record.what}; ratio {record.ratio:.4f}, {norm}{top1}")

    def _compress(self, stage: CompressStage, folder: Path) -> tuple[str, dict[str, Any]]:
        layers = _stage_layers(self.job, self.network, stage)
        if not compressible(layers):
            return "no layer was left to compress", {}
        settings = _search_settings(self.job.settings, stage)
        job = replace(self.job, original=self.network, layers=layers, folder=folder, settings=settings)
        norm = function_norm(job)
        with RankSearch(job, norm, job.resume) as search:
            built = reach_target(job, search, norm) if settings.target else build(job, search.run(), norm)
        self.network, result = built.network, built.result
        self.plans.append(result.plan)
        write_text(folder / PLAN, result.plan.model_dump_json(indent=2) + "\n")
        count = len(factorized_ranks(result.layers, result.ranks))
        what = f"{count} of {len(result.layers)} layers factorized, gamma {result.gamma:.3g}"
        return what, {"gamma": result.gamma, "search": result.search, "reconstruction": built.reconstruction}

    def _tune(self, stage: FinetuneStage, folder: Path) -> tuple[str, dict[str, Any]]:
        settings = _tune_settings(self.job.settings.tune, stage)
        about = {"network": hash_tensors(self.network.state_dict().values())}
        self.network, record = tune_network(self.job, self.network, settings, folder / CHECKPOINT, about)
        what = f"epoch {record.kept_epoch} of {record.epochs} kept, by {record.by}, {record.schedule}"
        return what, {"tuning": record}

    def _prune(self, stage: PruneStage) -> tuple[str, dict[str, Any]]:
        self.network = prune_smallest(copy.deepcopy(self.network), stage.fraction)
        return f"{100 * stage.fraction:g} % of all weights set to zero", {}


def _stage_layers(job: Job, network: nn.Module, stage: CompressStage) -> list[FoundLayer]:
    """The original's layers as they are in `network`, those that the stage leaves alone with their reason."""
    example = job.example.to(job.device)
    method = cast(MethodChoice, stage.method)  # "svd" suits what has no other method
    found = find_layers(network, example, method, stage.layers, stage.skip, job.source.arch)
    names = {layer.name for layer in job.layers} - set(factorized_names(job.original, network))
    kinds = ("conv", "linear") if stage.of == "all" else (stage.of,)
    return [
        layer if layer.skipped or layer.kind in kinds else replace(layer, skipped=f"the stage is for {stage.of} layers")
        for layer in found
        if layer.name in names
    ]


def _search_settings(settings: Settings, stage: CompressStage) -> Settings:
    """The run's settings with what the stage says otherwise."""
    own = stage.model_dump(exclude={"kind", "name", "of", "layers", "skip"}, exclude_none=True)
    searching = {key: value for key, value in own.items() if key in SEARCH_KEYS}
    others = {key: value for key, value in own.items() if key not in SEARCH_KEYS}
    if stage.target_ratio is not None:
        del others["target_ratio"]
        others |= {"target": Target("ratio", stage.target_ratio), "gamma": None, "cost": "params"}
    return replace(settings, **others, search=replace(settings.search, **searching))


def _tune_settings(settings: TuneSettings, stage: FinetuneStage) -> TuneSettings:
    return replace(settings, **stage.model_dump(exclude={"kind", "name"}))


def _final_result(run: _Run, recipe: Recipe) -> SearchResult:
    """What all searches together decided on the original's layers; weights themselves are in the files."""
    job = run.job
    rows: Mapping[str, LayerPlan] = {row.name: row for plan in run.plans for row in plan.layers}
    gammas = [plan.gamma for plan in run.plans if plan.gamma is not None]
    gamma = gammas[0] if gammas else default_gamma(function_norm(job).output_energy)
    pruned = max((stage.fraction for stage in recipe.stage if isinstance(stage, PruneStage)), default=0.0)
    plan = Plan(arch=job.source.arch, gamma=gamma, prune_fraction=pruned, layers=list(rows.values()))
    layers, ranks = planned_layers(plan, job.layers)
    return SearchResult(
        layers=layers,
        ranks=ranks,
        factors={},
        kinds={row.name: row.factors for row in rows.values() if row.factors},
        gamma=gamma,
        search=None,
        rank_multiple=job.settings.rank_multiple or 1,
        plan=plan,
    )
