"""A given plan in place of a search."""

import functools
from dataclasses import dataclass, replace

from compressor.channels.groups import ChannelGroup
from compressor.files import prepare_folder
from compressor.network.layers import FoundLayer
from compressor.pipeline.channels.choice import order_groups
from compressor.pipeline.channels.found import groups_of, require_images
from compressor.pipeline.context import Context
from compressor.pipeline.plan import Plan, planned_layers
from compressor.pipeline.stage import Stage
from compressor.pipeline.stages.evaluate_original import function_norm
from compressor.pipeline.stages.factorize import decompose_layers
from compressor.pipeline.state import Part, SearchResult, State
from compressor.search.objective import default_gamma


@dataclass(frozen=True)
class ApplyPlan(Stage):
    """Fills in `norm` and `result`: the plan's layers with their factors, of the kinds that it names where the settings
    leave that open."""

    plan: Plan

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        plan, settings = self.plan, context.settings
        layers, ranks = planned_layers(plan, context.layers, functools.partial(groups_of, context))
        groups = [layer for layer in layers if isinstance(layer, ChannelGroup)]
        require_images(context, groups)
        prepare_folder(context.folder)
        norm = function_norm(context)
        kinds = {row.name: row.factors for row in plan.layers if row.factors} if settings.factors is None else {}
        alone = [layer for layer in layers if isinstance(layer, FoundLayer)]
        found: list[Part] = [*order_groups(context, groups), *decompose_layers(context, alone, norm, kinds)]
        by_name = {part.layer.name: part for part in found}
        parts = [by_name[layer.name] for layer in layers]
        gamma = plan.gamma or settings.gamma or default_gamma(norm.output_energy)
        rows = [
            row.model_copy(
                update={"break_even_rank": by_name[row.name].layer.break_even_rank, "factors": by_name[row.name].kind}
            )
            for row in plan.layers
        ]
        kept = plan.model_copy(update={"arch": context.source.arch, "gamma": gamma, "layers": rows})
        return replace(state, norm=norm, result=SearchResult.of_parts(parts, ranks, gamma, kept))
