"""Recipes at work: each stage takes the network that the one before left, and leaves its own in a folder (Sec. 4.3).

A stage that compresses searches the layers it names; its function norm is to the network that it was given. A stage
that fine-tunes learns from the original. After every stage the network is compared with the original on the test
images. What a stage leaves is enough to go on from.
"""

import functools
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compressor.data.fingerprint import hash_images, hash_tensors
from compressor.errors import InputError
from compressor.fidelity.evaluation import TestEvaluator
from compressor.fidelity.function_norm import FunctionNorm
from compressor.files import prepare_folder, read_sealed, write_sealed
from compressor.network.serialization import load_network, save_network
from compressor.outputs.rows import counted_outputs
from compressor.pipeline.channels.found import groups_of
from compressor.pipeline.context import Context
from compressor.pipeline.delivery.report import make_stage_record
from compressor.pipeline.outputs import PLAN, STAGES
from compressor.pipeline.plan import LayerPlan, Plan, planned_layers
from compressor.pipeline.recipe import Recipe, recipe_content
from compressor.pipeline.settings import Settings
from compressor.pipeline.stage import RecipeStage, Stage
from compressor.pipeline.stages.compress_layers import CompressLayers, CompressSpec
from compressor.pipeline.stages.evaluate_original import function_norm
from compressor.pipeline.stages.prune import PruneSpec
from compressor.pipeline.state import Outcome, SearchResult, State
from compressor.report.records import StageRecord
from compressor.search.objective import default_gamma

ABOUT, STAGE, NETWORK = "recipe.json", "stage.json", "network.safetensors"
ON_STAGES = ("gamma", "form", "fidelity", "cost", "factors", "calibration", "recalibrate", "rank_multiple")
VERSION = 2  # of what the stages depend on
BUDGETS = ("max_evaluations", "max_seconds")


@dataclass(frozen=True)
class BeginRecipe(Stage):
    """Checks that every stage finds layers, holds an earlier run's recipe against this one, and records the original.

    Raises:
        InputError: a stage has nothing to do, or the folder is another recipe's.
    """

    recipe: Recipe
    stages: list[RecipeStage]

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        for number, stage in enumerate(self.stages, 1):
            if isinstance(stage, CompressLayers):
                stage.require_layers(context, number)
        prepare_folder(context.folder / STAGES)
        _keep_about(context, self.recipe)
        evaluator = TestEvaluator(FunctionNorm(context.original, context.test_images, context.device))
        state = replace(state, evaluator=evaluator, outcome=Outcome(context.source.arch))
        return replace(state, records=[make_stage_record("original", "original", context, state, None)])


@dataclass(frozen=True)
class Recorded(Stage):
    """A stage of a recipe in a folder of its own, not run again where an earlier run completed it."""

    stage: RecipeStage
    folder: str
    place: str  # as in "stage 2 of 5"

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        name, kind = self.folder.partition("-")[2], self.stage.spec.kind
        context.progress.log(f"{self.place}, {name} ({kind})")
        context = replace(context, folder=context.folder / STAGES / self.folder)
        if context.resume and (context.folder / STAGE).exists():
            state = _restored(context, state)
        else:
            began = time.perf_counter()
            prepare_folder(context.folder)
            state = self.stage.run(context, state)
            save_network(context.original, state.network, context.folder / NETWORK)
            record = make_stage_record(name, kind, context, state, began)
            state = replace(state, records=[*state.records, record])
            # Last, since it says that the stage is complete.
            write_sealed(context.folder / STAGE, record.model_dump(mode="json"))
        _log(context, state.records[-1])
        return state


@dataclass(frozen=True)
class CombinePlans(Stage):
    """Fills in `result`: what all searches together chose for the original's layers; the weights are the network's."""

    recipe: Recipe

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        rows: Mapping[str, LayerPlan] = {row.name: row for plan in state.plans for row in plan.layers}
        gammas = [plan.gamma for plan in state.plans if plan.gamma is not None]
        gamma = gammas[0] if gammas else default_gamma(function_norm(context).output_energy)
        fractions = [spec.fraction for spec in self.recipe.stage if isinstance(spec, PruneSpec)]
        pruned = max(fractions, default=0.0)
        plan = Plan(arch=context.source.arch, gamma=gamma, prune_fraction=pruned, layers=list(rows.values()))
        layers, ranks = planned_layers(plan, context.layers, functools.partial(groups_of, context))
        result = SearchResult(
            layers=layers,
            ranks=ranks,
            factors={},
            kinds={row.name: row.factors for row in rows.values() if row.factors},
            gamma=gamma,
            search=None,
            rank_multiple=context.settings.rank_multiple or 1,
            plan=plan,
        )
        return replace(state, result=result)


def _keep_about(context: Context, recipe: Recipe) -> None:
    """Write what the stages depend on, or hold what an earlier run wrote against it."""
    labels = context.search_images.labels
    about = {
        "version": VERSION,
        "recipe": recipe_content(recipe),
        "weights": hash_tensors(context.original.state_dict().values()),
        "images": [hash_images(images) for images in (context.calibration, context.search_images, context.test_images)],
        "images to train on": hash_images(context.training.train) if context.training else None,
        "settings": _chosen(context.settings),
        "timed with": context.settings.timing if _uses_times(context.settings, recipe) else None,
        "labels": None if labels is None or context.settings.fidelity == "norm" else labels.tolist(),
        **counted_outputs(context.original),
    }
    path = context.folder / STAGES / ABOUT
    if context.resume and path.exists():
        _require_same(path, about)
    write_sealed(path, about)


def _require_same(path: Path, about: Mapping[str, Any]) -> None:
    stored = read_sealed(path, "list of what the stages depend on")
    if stored.get("version") != about["version"]:
        raise InputError(f"{path} is of another version; choose another --out")
    now = json.loads(json.dumps(about))  # tuples are lists there
    different = sorted(key for key in now if stored.get(key) != now[key])
    if different:
        raise InputError(f"{path} was written with other {', '.join(different)}; --resume needs the same")


def _chosen(settings: Settings) -> dict[str, Any]:
    """The settings that stages depend on: not budgets, nor how files are made, which may differ when a run goes on."""
    searching = {key: value for key, value in asdict(settings.search).items() if key not in BUDGETS}
    return {name: getattr(settings, name) for name in ON_STAGES} | searching | {"autocast": settings.tune.autocast}


def _uses_times(settings: Settings, recipe: Recipe) -> bool:
    """Whether any stage weighs times."""
    specs = [spec for spec in recipe.stage if isinstance(spec, CompressSpec)]
    return settings.weighs_times or any(spec.cost == "latency" for spec in specs)


def _restored(context: Context, state: State) -> State:
    """The state after a stage that an earlier run completed."""
    folder = context.folder
    try:
        record = StageRecord.model_validate(read_sealed(folder / STAGE, "record of a stage"))
        found = [Plan.model_validate(read_sealed(folder / PLAN, "plan"))] if (folder / PLAN).exists() else []
    except ValidationError as error:
        raise InputError(f"{folder} is not of a stage of this version; choose another --out") from error
    plans = [*state.plans, *found]
    network = load_network(context.original, folder / NETWORK)
    return replace(state, network=network, plans=plans, records=[*state.records, record])


def _log(context: Context, record: StageRecord) -> None:
    top1 = "" if record.metrics.top1 is None else f", top-1 {100 * record.metrics.top1:.2f} %"
    norm = f"function norm {record.metrics.function_norm:.4g}"
    context.progress.log(f"{record.name}: {record.what}; ratio {record.ratio:.4f}, {norm}{top1}")
