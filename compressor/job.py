"""What a run is told and what its stages hand on: settings, source, images, layers, the plan chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.errors import InputError
from compressor.factors import Factors
from compressor.finetune import TuneSettings
from compressor.images import ImageSet
from compressor.layers import FoundLayer, MethodChoice
from compressor.progress import Progress
from compressor.records import (
    Cost,
    FactorChoice,
    FactorKind,
    Fidelity,
    FileFormat,
    Form,
    Plan,
    Precision,
    RecalibrationRecord,
    Report,
    SearchRecord,
    StageRecord,
    TargetRecord,
    TuneRecord,
    Wish,
)
from compressor.search.loop import SearchSettings
from compressor.search.workers import DEFAULT_BACKEND
from compressor.training import TrainingImages

JOURNAL = "search.jsonl"
CHECKPOINT = "finetune.safetensors"
STAGES = "stages"  # a folder
MAX_CALIBRATION_SHARE = 0.3  # of all images
MIN_CALIBRATION_IMAGES = 8


@dataclass(frozen=True)
class Wanted:
    """A target in place of gamma, in the units of `TargetRecord`; at most `value`."""

    wish: Wish
    value: float


@dataclass(frozen=True)
class Settings:
    """What a person may choose; the defaults are the command line's.

    `gamma` None weighs the whole output against the whole size (see `default_gamma`); with a `target` it is found.
    `fidelity` is what L is, `cost` what size means; times are those on `provider`, ONNX Runtime's by short name.
    `layers` and `skip` are name patterns; `prune_fraction` is the share of weights the final magnitude pass sets to
    zero, None to search for it. `threads` and `batch_size` are the latency measurement's. `factors` None takes those
    that a plan names, or "auto"; ranks are multiples of `rank_multiple`, None for what suits ONNX Runtime on this
    machine (measured); `calibration` is the number of images that factors are fitted on, which neither search nor judge
    see. `precisions` and `formats` are those to write; float32 and ONNX always are. `zip` adds zipped files, `opset`
    None takes the exporter's choice. `workers` evaluate candidates at once, through the joblib backend of this name;
    neither changes what is found. `tune` says how the compressed network is fine-tuned, by default not at all.
    """

    gamma: float | None = None
    target: Wanted | None = None
    form: Form = "ratio"
    fidelity: Fidelity = "norm"
    cost: Cost = "params"
    provider: str = "cpu"
    method: MethodChoice = "auto"
    factors: FactorChoice | None = "auto"
    calibration: int = 400
    recalibrate: bool = True
    rank_multiple: int | None = 1
    layers: Sequence[str] = ()
    skip: Sequence[str] = ()
    prune_fraction: float | None = 0.0
    device: str = "cpu"
    threads: int = 1
    batch_size: int = 1
    precisions: Sequence[Precision] = ("fp32",)
    formats: Sequence[FileFormat] = ("onnx",)
    zip: bool = False
    opset: int | None = None
    workers: int = 1
    backend: str = DEFAULT_BACKEND
    search: SearchSettings = field(default_factory=SearchSettings)
    tune: TuneSettings = field(default_factory=TuneSettings)

    @property
    def calibration_wanted(self) -> int:
        """Images to fit on, if there are enough: none where nothing would be fitted."""
        return self.calibration if self.factors != "weight" or self.recalibrate else 0


@dataclass(frozen=True)
class Source:
    """Where the network came from, for the report: its name, remarks of the loader, the command typed."""

    arch: str
    notes: Sequence[str] = ()
    command: str = ""


@dataclass(frozen=True)
class Compressed:
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

    teacher: nn.Module
    calibration: ImageSet
    search_images: ImageSet
    held_out: ImageSet
    layers: list[FoundLayer]
    folder: Path
    settings: Settings
    source: Source
    progress: Progress
    began: float
    deciding: ImageSet | None = None
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
class Choice:
    """A plan with what led to it: `ratio` is R in what `cost` counts, None where nothing was searched; `believed_loss`
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
    believed_loss: float = 0.0
    left: Mapping[str, str] = field(default_factory=dict)
    front: Mapping[str, Plan] = field(default_factory=dict)


@dataclass(frozen=True)
class Realised:
    """A choice as a network, and what recalibration and fine-tuning brought; `target` says whether one was met, and
    `stages` are those of a recipe."""

    choice: Choice
    network: nn.Module
    recalibration: RecalibrationRecord | None
    target: TargetRecord | None = None
    tuning: TuneRecord | None = None
    stages: Sequence[StageRecord] = ()


def require_compatible(settings: Settings) -> None:
    """Refuse choices that do not go together.

    Raises:
        InputError: as said.
    """
    if settings.prune_fraction is None and settings.cost != "params":
        raise InputError(f"--prune auto counts weights that are not zero: it needs --cost params, not {settings.cost}")
    if settings.prune_fraction is None and settings.target is not None:
        raise InputError("--prune auto needs a gamma to weigh zeros by: it cannot be searched for a target")
    if settings.search.prior_mean == "energies" and (settings.prune_fraction is None or settings.fidelity != "norm"):
        raise InputError(
            "--prior-mean energies needs --fidelity norm and no --prune auto: energies say nothing of others"
        )
    if settings.search.prior_mean == "energies" and settings.search.surrogate == "plain":
        raise InputError("--surrogate plain has no prior mean: leave out --prior-mean energies")
    if settings.fidelity != "norm" and settings.target is not None and settings.target.wish == "drop":
        raise InputError(
            f"--max-drop measures the drop of finished networks and searches by the function norm: leave out "
            f"--fidelity {settings.fidelity}"
        )
