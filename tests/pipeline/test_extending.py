"""A stage of one's own, added to the registry as CONTRIBUTING says, runs in a recipe."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from compressor import Settings, compress
from compressor.data.batches import from_batches
from compressor.errors import InputError
from compressor.pipeline.context import Context
from compressor.pipeline.recipe import parse_recipe
from compressor.pipeline.stage import RecipeStage, StageSpec, run_stages
from compressor.pipeline.stages.build import Build
from compressor.pipeline.stages.registry import RECIPE_STAGES, StageEntry
from compressor.pipeline.state import Outcome, State
from compressor.search.settings import SearchSettings
from tests.unmeasured import without_measuring

RECIPE = """
[[stage]]
kind = "compress"
gamma = 1.0

[[stage]]
kind = "round"
decimals = 2
"""
SETTINGS = Settings(search=SearchSettings(max_evaluations=3, samples=8, certificate="pointwise"), calibration=0)


class RoundSpec(StageSpec):
    kind: Literal["round"]
    decimals: int = 3


@dataclass(frozen=True)
class Round(RecipeStage):
    """Rounds all weights."""

    spec: RoundSpec

    def run(self, context: Context, state: State) -> State:
        network = copy.deepcopy(state.network)
        for parameter in network.parameters():
            parameter.data = torch.round(parameter.data, decimals=self.spec.decimals)
        return replace(state, network=network, outcome=Outcome(f"rounded to {self.spec.decimals} decimals"))


@pytest.fixture
def rounding(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(RECIPE_STAGES, "round", StageEntry(RoundSpec, Round))
    with without_measuring():
        yield


def test_a_stage_of_ones_own_runs_in_a_recipe(rounding: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 10)).eval()
    images = from_batches([torch.randn(60, 3, 8, 8)], 60)
    recipe = parse_recipe(RECIPE, "mine")
    result = compress(network, images, tmp_path / "out", SETTINGS, recipe)
    assert [stage.kind for stage in result.report.stages] == ["original", "compress", "round"]
    assert result.report.stages[2].what == "rounded to 2 decimals"
    for parameter in result.model.parameters():
        assert torch.equal(parameter, torch.round(parameter, decimals=2))


def test_a_kind_that_nobody_registered_is_refused() -> None:
    with pytest.raises(InputError, match="stage 2: unknown kind 'round'; kinds are compress, finetune, prune"):
        parse_recipe(RECIPE, "mine")


def test_stages_in_a_wrong_order_say_what_is_missing() -> None:
    with pytest.raises(ValueError, match="a plan is missing: a stage that gives it must come before"):
        run_stages([Build()], None, State(nn.Identity()))  # type: ignore[arg-type]
