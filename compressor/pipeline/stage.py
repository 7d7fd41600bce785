"""Stages and the driver that runs them."""

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace

from pydantic import ConfigDict

from compressor.cost.records import StageCost
from compressor.pipeline.context import Context
from compressor.pipeline.state import State
from compressor.process.memory import own_peak_bytes, release_memory
from compressor.schema import Record


class Stage(ABC):
    """One step of a job: reads what never changes from the context, and adds to the state."""

    @abstractmethod
    def run(self, context: Context, state: State) -> State:
        """The state after this stage; neither argument is changed.

        Raises:
            InputError: what a person asked for cannot be had.
        """


class StageSpec(Record):
    """What a recipe says of one stage; `kind` names the stage, `name` is its folder's."""

    model_config = ConfigDict(strict=True)

    kind: str
    name: str = ""


class RecipeStage(Stage):
    """A stage that recipes name, made from its part of one; its `run` fills in `State.outcome`, too."""

    spec: StageSpec


def run_stages(stages: Iterable[Stage], context: Context, state: State) -> State:
    """The state after all stages, each given what the one before left, with what each cost.

    Args:
        stages: run in this order.
        context: what all of them read.
        state: what the first is given.
    """
    for stage in stages:
        release_memory()
        began = time.perf_counter()
        state = stage.run(context, state)
        cost = StageCost(
            stage=_in_words(type(stage).__name__),
            seconds=time.perf_counter() - began,
            peak_memory_bytes=own_peak_bytes(),
        )
        state = replace(state, stage_costs=[*state.stage_costs, cost])
    return state


def _in_words(name: str) -> str:
    """'evaluate original' of EvaluateOriginal."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
