"""A search over some layers of the network as it is, as a stage of a recipe (Sec. 4.3)."""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from compressor.channels.groups import ChannelGroup
from compressor.cost.records import Cost
from compressor.errors import InputError
from compressor.factorization.records import FactorChoice, MethodChoice
from compressor.network.layers import FoundLayer, compressible, factorized_ranks, find_layers
from compressor.network.serialization import changed_names
from compressor.pipeline.context import Context
from compressor.pipeline.outputs import PLAN
from compressor.pipeline.plan import write_plan
from compressor.pipeline.search_stages import search_stages
from compressor.pipeline.settings import Settings, Target
from compressor.pipeline.stage import RecipeStage, StageSpec, run_stages
from compressor.pipeline.state import Outcome, SearchResult, State, needed
from compressor.search.records import Certificate, Form
from compressor.search.settings import SearchSettings

SEARCH_KEYS = {field.name for field in fields(SearchSettings)}
Gamma = Annotated[float, Field(ge=1e-12, le=1e12)]
Patterns = Annotated[tuple[Annotated[str, Field(strict=True)], ...], Field(strict=False)]  # lists in TOML


class CompressSpec(StageSpec):
    """A search over the layers that kind and patterns name, as they are after the stages before.

    What is not said is taken from the run's settings. `target_ratio`, in place of gamma: parameters left, over those of
    the network that the stage is given.
    """

    kind: Literal["compress"]
    of: Literal["all", "conv", "linear"] = "all"
    layers: Patterns = ()
    skip: Patterns = ()
    method: MethodChoice = "auto"
    gamma: Gamma | None = None
    target_ratio: float | None = Field(default=None, gt=0, lt=1)
    form: Form | None = None
    cost: Cost | None = None
    factors: FactorChoice | None = None
    recalibrate: bool | None = None
    rank_multiple: int | None = Field(default=None, ge=1, le=256)
    samples: int | None = Field(default=None, ge=2)
    certificate: Certificate | None = None
    epsilon: float | None = Field(default=None, gt=0, lt=1)
    max_evaluations: int | None = Field(default=None, ge=1)
    max_seconds: float | None = Field(default=None, gt=0)


@dataclass(frozen=True)
class CompressLayers(RecipeStage):
    """Runs the stages of a search on the network as it is, and leaves the plan in the context's folder."""

    spec: CompressSpec

    def require_layers(self, context: Context, number: int) -> None:
        """Raises InputError if this stage, of this number, finds nothing in the original to compress."""
        try:
            found = compressible(self._layers(context, context.original))
        except InputError as error:
            raise InputError(f"stage {number} of the recipe: {error}") from error
        if not found:
            raise InputError(f"stage {number} of the recipe finds no layer to compress; see `bocompress inspect`")

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        layers = self._layers(context, state.network)
        if not compressible(layers):
            return replace(state, outcome=Outcome("no layer was left to compress"))
        settings = self._settings(context.settings)
        part = replace(context, original=state.network, layers=layers, settings=settings)
        found = run_stages(search_stages(settings, is_whole_run=False), part, State(state.network))
        result = needed(found.result, "a plan")
        write_plan(context.folder / PLAN, result.plan)
        gamma = "" if result.gamma is None else f", gamma {result.gamma:.3g}"
        what = f"{_describe_changes(result)}{gamma}"
        more = {"gamma": result.gamma, "search": result.search, "reconstruction": found.reconstruction}
        return replace(state, network=found.network, plans=[*state.plans, result.plan], outcome=Outcome(what, more))

    def _layers(self, context: Context, network: nn.Module) -> list[FoundLayer]:
        """The original's layers as they are in `network`, those that the stage leaves alone with their reason."""
        spec, example = self.spec, context.example.to(context.device)
        found = find_layers(network, example, spec.method, spec.layers, spec.skip, context.source.arch)
        names = {layer.name for layer in context.layers} - set(changed_names(context.original, network))
        kinds = ("conv", "linear") if spec.of == "all" else (spec.of,)
        reason = f"the stage is for {spec.of} layers"
        return [
            layer if layer.kind in kinds else replace(layer, skipped=layer.skipped or reason, left_out=True)
            for layer in found
            if layer.name in names
        ]

    def _settings(self, settings: Settings) -> Settings:
        """The run's settings with what the stage says otherwise."""
        own = self.spec.model_dump(exclude={"kind", "name", "of", "layers", "skip"}, exclude_none=True)
        searching = {key: value for key, value in own.items() if key in SEARCH_KEYS}
        others = {key: value for key, value in own.items() if key not in SEARCH_KEYS}
        if self.spec.target_ratio is not None:
            del others["target_ratio"]
            others |= {"target": Target("ratio", self.spec.target_ratio), "gamma": None, "cost": "params"}
        return replace(settings, **others, search=replace(settings.search, **searching))


def _describe_changes(result: SearchResult) -> str:
    """How many layers were factorized, and how many groups of layers lost channels where there are groups."""
    changed = factorized_ranks(result.layers, result.ranks)
    groups = [layer for layer in result.layers if isinstance(layer, ChannelGroup)]
    narrower = sum(group.name in changed for group in groups)
    words = f"{len(changed) - narrower} of {len(result.layers) - len(groups)} layers factorized"
    return f"{words}, {narrower} of {len(groups)} groups with fewer channels" if groups else words
