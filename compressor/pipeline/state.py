"""What a run is told and what its stages hand on: settings, source, images, layers, the plan chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.cost.records import Cost
from compressor.data.images import ImageSet
from compressor.factorization.records import FactorKind
from compressor.factorization.registry import Factors
from compressor.network.layers import FoundLayer
from compressor.pipeline.image_splits import TrainingImages
from compressor.pipeline.plan import Plan
from compressor.pipeline.settings import Settings
from compressor.progress import Progress
from compressor.recovery.records import ReconstructionRecord, TuneRecord
from compressor.report.records import Report, StageRecord
from compressor.search.records import SearchRecord, TargetRecord

JOURNAL = "search.jsonl"
CHECKPOINT = "finetune.safetensors"
STAGES = "stages"  # a folder


@dataclass(frozen=True)
class Source:
    """Where the network came from, for the report: its name, remarks of the loader, the command typed."""

    arch: str
    notes: Sequence[str] = ()
    command: str = ""


@dataclass(frozen=True)
class CompressedModel:
    """The result: a torch network on the CPU, its plan, and the report; files lie in `folder`."""

    model: nn.Module
    plan: Plan
    report: Report
    folder: Path


@dataclass(frozen=True)
class Job:
    """What every stage after loading needs. `deciding` images, outside the search, say whether a target is kept;
    `training` is there where the network is to be fine-tuned. With `resume` stages go on from what an earlier run left
    in `folder`."""

    original: nn.Module
    calibration: ImageSet
    search_images: ImageSet
    test_images: ImageSet
    layers: list[FoundLayer]
    folder: Path
    settings: Settings
    source: Source
    progress: Progress
    began: float
    validation: ImageSet | None = None
    training: TrainingImages | None = None
    resume: bool = False

    @property
    def device(self) -> torch.device:
        """Where candidates are evaluated."""
        return torch.device(self.settings.device)

    @property
    def example(self) -> Tensor:
        """One input (1, ...)."""
        return self.search_images.batch([0])


@dataclass(frozen=True)
class SearchResult:
    """A plan with what led to it: `ratio` is R in what `cost` counts, None where nothing was searched; `posterior_loss`
    is L as the search has it, before recalibration; `left` says why layers were left out of the search."""

    layers: list[FoundLayer]
    ranks: list[int]
    factors: Mapping[str, Factors]
    kinds: Mapping[str, FactorKind]
    gamma: float
    search: SearchRecord | None
    rank_multiple: int
    plan: Plan
    cost: Cost = "params"
    ratio: float | None = None
    posterior_loss: float = 0.0
    left: Mapping[str, str] = field(default_factory=dict)
    pareto_front: Mapping[str, Plan] = field(default_factory=dict)


@dataclass(frozen=True)
class BuiltNetwork:
    """A choice as a network, and what recalibration and fine-tuning brought; `target` says whether one was met, and
    `stages` are those of a recipe."""

    result: SearchResult
    network: nn.Module
    reconstruction: ReconstructionRecord | None
    target: TargetRecord | None = None
    tuning: TuneRecord | None = None
    stages: Sequence[StageRecord] = ()
