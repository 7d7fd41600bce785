"""A given plan in place of a search."""

from dataclasses import dataclass, replace

from compressor.files import prepare_folder
from compressor.pipeline.context import Context
from compressor.pipeline.plan import Plan, planned_layers
from compressor.pipeline.stage import Stage
from compressor.pipeline.stages.evaluate_original import function_norm
from compressor.pipeline.stages.factorize import decompose_layers, make_result
from compressor.pipeline.state import State
from compressor.search.objective import default_gamma


@dataclass(frozen=True)
class ApplyPlan(Stage):
    """Fills in `norm` and `result`: the plan's layers with their factors, of the kinds that it names where the settings
    leave that open."""

    plan: Plan

    def run(self, context: Context, state: State) -> State:
        plan, settings = self.plan, context.settings
        layers, ranks = planned_layers(plan, context.layers)
        prepare_folder(context.folder)
        norm = function_norm(context)
        kinds = {row.name: row.factors for row in plan.layers if row.factors} if settings.factors is None else {}
        parts = decompose_layers(context, layers, norm, kinds)
        gamma = plan.gamma or settings.gamma or default_gamma(norm.output_energy)
        used = {part.layer.name: part for part in parts}
        rows = [
            row.model_copy(
                update={"break_even_rank": used[row.name].layer.break_even_rank, "factors": used[row.name].kind}
            )
            for row in plan.layers
        ]
        kept = plan.model_copy(update={"arch": context.source.arch, "gamma": gamma, "layers": rows})
        return replace(state, norm=norm, result=make_result(parts, ranks, gamma, kept))
