"""What stages hand on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from compressor.channels.factors import ChannelFactors
from compressor.channels.groups import ChannelGroup
from compressor.cost.records import Cost, LatencyRecord, StageCost
from compressor.factorization.base import Factors, JointFactors
from compressor.factorization.records import FactorKind
from compressor.fidelity.evaluation import TestEvaluator, TestOutputs
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.records import PairedChange
from compressor.fidelity.risk import Risk
from compressor.network.layers import FoundLayer
from compressor.pipeline.plan import Plan
from compressor.recovery.records import ReconstructionRecord, TuneRecord
from compressor.report.records import FileRecord, PrecisionRecord, Report, StageRecord
from compressor.schema import Pair
from compressor.search.records import SearchRecord, TargetRecord
from exporters.records import ExportCheckRecord

T = TypeVar("T")


@dataclass(frozen=True)
class Decomposed:
    """A layer with the method and the factors it was given; `trials` are the function norms that decided, at as many
    of the shares as it took."""

    layer: FoundLayer
    factors: Factors
    kind: FactorKind
    trials: dict[str, list[float]]


@dataclass(frozen=True)
class OrderedGroup:
    """A group of layers with its hidden channels in the order in which they are kept, in place of factors of these
    layers."""

    layer: ChannelGroup
    factors: ChannelFactors
    kind: FactorKind = "activation"


Part = Decomposed | OrderedGroup
"""What the search has a rank for."""


@dataclass(frozen=True)
class Costs:
    """What ranks cost, by layer: at ranks 1, 2, ..., and last as the dense layer. Ranks searched are multiples of
    `rank_multiple`; `left` says why layers are left out of the search; `shared` is what pairs of groups of hidden
    channels have in common (see `RankSpace`)."""

    tables: Mapping[str, list[float]]
    rank_multiple: int
    left: Mapping[str, str]
    shared: Mapping[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchResult:
    """A plan with what led to it.

    Attributes:
        layers, ranks: of the plan, in one order; a group of layers that share hidden channels is one.
        factors, kinds: by layer name.
        gamma: of the plan's objective; with a target the multiplier at the plan, None where there is none.
        plan: the same as a file says it.
        search: None where nothing was searched.
        rank_multiple: ranks are multiples of it.
        cost, ratio: R in what `cost` counts; None where nothing was searched.
        posterior_loss: the posterior mean of L in the search, before reconstruction.
        left: why layers were left out of the search.
        pareto_front: other plans, by the file that each goes to.
    """

    layers: list[FoundLayer | ChannelGroup]
    ranks: list[int]
    factors: Mapping[str, Factors | JointFactors]
    kinds: Mapping[str, FactorKind]
    gamma: float | None
    plan: Plan
    search: SearchRecord | None = None
    rank_multiple: int = 1
    cost: Cost = "params"
    ratio: float | None = None
    posterior_loss: float = 0.0
    left: Mapping[str, str] = field(default_factory=dict)
    pareto_front: Mapping[str, Plan] = field(default_factory=dict)

    @classmethod
    def of_parts(
        cls, parts: Sequence[Part], ranks: Sequence[int], gamma: float | None, plan: Plan, **others: Any
    ) -> "SearchResult":
        """The plan at the ranks of these parts, in order, with `others` of the attributes."""
        return cls(
            layers=[part.layer for part in parts],
            ranks=list(ranks),
            factors={part.layer.name: part.factors for part in parts},
            kinds={part.layer.name: part.kind for part in parts},
            gamma=gamma,
            plan=plan,
            **others,
        )


@dataclass(frozen=True)
class BuiltNetwork:
    """The network of a search's result, what layer-wise reconstruction brought, and whether a target was met."""

    result: SearchResult
    network: nn.Module
    reconstruction: ReconstructionRecord | None
    target: TargetRecord | None = None


@dataclass(frozen=True)
class Outcome:
    """What a stage of a recipe did, in words, and further fields of its `StageRecord`."""

    what: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """What stages have made so far; a stage returns a copy with its own part filled in.

    Attributes:
        network: the network as it is now: the original, until it is built.
        norm: the function norm on the search's images.
        measure: how far candidates are from the original, on the search's images.
        gamma: of the objective, asked for or by default.
        decomposed: layers with their factors, and groups with their hidden channels.
        costs: what their ranks cost.
        result: the plan, with what led to it.
        reconstruction, target, tuning: what stages found, for the report.
        outcome: what the last stage of a recipe did.
        records, plans, evaluator: of the recipe's stages so far.
        test: outputs on the test images; `top1`, its `top1_change` and `risk` on them where there are labels.
        export_check, latency, precisions, files, failures: of the files written.
        stage_costs: what the stages so far cost; `seconds_per_image` is what one image takes the original.
        report: the last stage's.
    """

    network: nn.Module
    norm: FunctionNorm | None = None
    measure: FunctionNorm | Risk | None = None
    gamma: float | None = None
    decomposed: Sequence[Part] | None = None
    costs: Costs | None = None
    result: SearchResult | None = None
    reconstruction: ReconstructionRecord | None = None
    target: TargetRecord | None = None
    tuning: TuneRecord | None = None
    outcome: Outcome | None = None
    records: Sequence[StageRecord] = ()
    plans: Sequence[Plan] = ()
    evaluator: TestEvaluator | None = None
    test: TestOutputs | None = None
    top1: Pair[float] | None = None
    top1_change: PairedChange | None = None
    risk: Pair[float] | None = None
    export_check: ExportCheckRecord | None = None
    latency: Mapping[str, LatencyRecord] | None = None
    precisions: Sequence[PrecisionRecord] = ()
    files: Sequence[FileRecord] = ()
    failures: Sequence[str] = ()
    stage_costs: Sequence[StageCost] = ()
    seconds_per_image: float | None = None
    report: Report | None = None

    def with_built(self, built: BuiltNetwork) -> "State":
        """This state with a network that was built."""
        return replace(
            self,
            network=built.network,
            result=built.result,
            reconstruction=built.reconstruction,
            target=built.target,
        )


def needed(value: T | None, what: str) -> T:
    """A part of the state that a stage cannot do without.

    Raises:
        ValueError: no stage before it gave that: the list of stages is wrong.
    """
    if value is None:
        raise ValueError(f"{what} is missing: a stage that gives it must come before")
    return value


@dataclass(frozen=True)
class CompressedModel:
    """What a run gives: a torch network on the CPU, its plan, and the report; files lie in `folder`."""

    model: nn.Module
    plan: Plan
    report: Report
    folder: Path
