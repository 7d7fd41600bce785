"""The smallest weights set to zero, as a stage of a recipe."""

import copy
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from compressor.network.pruning import prune_smallest
from compressor.pipeline.context import Context
from compressor.pipeline.stage import RecipeStage, StageSpec
from compressor.pipeline.state import Outcome, State


class PruneSpec(StageSpec):
    """The smallest `fraction` of all weights set to zero."""

    kind: Literal["prune"]
    fraction: float = Field(gt=0, lt=1)


@dataclass(frozen=True)
class Prune(RecipeStage):
    """Sets weights of the network as it is to zero."""

    spec: PruneSpec

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        network = prune_smallest(copy.deepcopy(state.network), self.spec.fraction)
        what = f"{100 * self.spec.fraction:g} % of all weights set to zero"
        return replace(state, network=network, outcome=Outcome(what))
