"""The default job, a plan that is applied, and a recipe, each as a list of stages."""

from collections.abc import Sequence

from compressor.pipeline.delivery.detector import WriteDetector
from compressor.pipeline.delivery.evaluate import Evaluate
from compressor.pipeline.delivery.export import Export
from compressor.pipeline.delivery.formats import WriteFormats
from compressor.pipeline.delivery.measure import MeasureLatency
from compressor.pipeline.delivery.quantize import Quantize
from compressor.pipeline.delivery.report import WriteReport
from compressor.pipeline.plan import Plan
from compressor.pipeline.recipe import Recipe
from compressor.pipeline.search_stages import search_stages
from compressor.pipeline.settings import Settings
from compressor.pipeline.stage import Stage
from compressor.pipeline.stages.apply_plan import ApplyPlan
from compressor.pipeline.stages.build import Build
from compressor.pipeline.stages.finetune import Finetune
from compressor.pipeline.stages.recorded import BeginRecipe, CombinePlans, Recorded
from compressor.pipeline.stages.registry import RECIPE_STAGES

DELIVERY: Sequence[Stage] = (
    Evaluate(),
    Export(),
    WriteDetector(),
    MeasureLatency(),
    Quantize(),
    WriteFormats(),
    WriteReport(),
)


def default_stages(settings: Settings) -> list[Stage]:
    """Search, build, fine-tune where asked for, deliver."""
    return [*search_stages(settings), Finetune(), *DELIVERY]


def plan_stages(plan: Plan) -> list[Stage]:
    """A given plan in place of the search."""
    return [ApplyPlan(plan), Build(), Finetune(), *DELIVERY]


def recipe_stages(recipe: Recipe) -> list[Stage]:
    """The recipe's own stages, each in a folder of its own, and the delivery of the last network."""
    stages = [RECIPE_STAGES[spec.kind].stage(spec) for spec in recipe.stage]
    recorded = [
        Recorded(stage, folder, f"stage {number} of {len(stages)}")
        for number, (stage, folder) in enumerate(zip(stages, recipe.folders, strict=True), 1)
    ]
    return [BeginRecipe(recipe, stages), *recorded, CombinePlans(recipe), *DELIVERY]
