"""The stages that recipes can name: a new one is a file here and a row in this table."""

from dataclasses import dataclass
from typing import Any, Protocol

from compressor.pipeline.stage import RecipeStage, StageSpec
from compressor.pipeline.stages.compress_layers import CompressLayers, CompressSpec
from compressor.pipeline.stages.finetune import FinetuneAsRecipeSays, FinetuneSpec
from compressor.pipeline.stages.prune import Prune, PruneSpec


class MakeStage(Protocol):
    """What makes a stage from what a recipe says of it."""

    def __call__(self, spec: Any) -> RecipeStage: ...


@dataclass(frozen=True)
class StageEntry:
    """What a recipe may say of a stage, and the stage made of it."""

    spec: type[StageSpec]
    stage: MakeStage


RECIPE_STAGES: dict[str, StageEntry] = {
    "compress": StageEntry(CompressSpec, CompressLayers),
    "finetune": StageEntry(FinetuneSpec, FinetuneAsRecipeSays),
    "prune": StageEntry(PruneSpec, Prune),
}
