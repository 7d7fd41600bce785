"""What the search takes for true of hidden channels: costs, and outputs of its candidates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compressor.cost.size import count_params
from compressor.network.layers import factorized_ranks
from compressor.network.macs import count_macs
from compressor.network.surgery import build_candidate
from compressor.pipeline.context import Context
from compressor.pipeline.stage import run_stages
from compressor.pipeline.stages.cost import TabulateCosts
from compressor.pipeline.stages.evaluate_original import EvaluateOriginal
from compressor.pipeline.stages.factorize import Factorize
from compressor.pipeline.stages.search_ranks import RankSearch, make_evaluation
from compressor.pipeline.state import OrderedGroup, State
from compressor.search.initial.sensitivity import sensitivity_ranks
from compressor.search.space import alternatives
from tests.pipeline.channels.networks import make_context, make_images, make_network


def prepared(context: Context) -> RankSearch:
    stages = [EvaluateOriginal(), Factorize(), TabulateCosts()]
    return RankSearch(context, run_stages(stages, context, State(context.original)))


def channels_only(search: RankSearch, ranks: np.ndarray) -> np.ndarray:
    """The plan with layers of no group left dense: factors may gain biases, which no cost counts."""
    is_group = [isinstance(part, OrderedGroup) for part in search.parts]
    return np.where(is_group, ranks, search.space.break_even_ranks)


def count(cost: str, network: nn.Module) -> int:
    return count_params(network) if cost == "params" else count_macs(network, make_images(1).batch([0]))[0]


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("cost", ["params", "macs"])
def test_costs_are_those_of_the_narrowed_network(gate: bool, cost: Any, tmp_path: Path) -> None:
    search = prepared(make_context(make_network(gate), tmp_path, cost=cost))
    space = search.space
    assert space.shared
    whole = count(cost, search._context.original)
    for ranks in space.sample(6, np.random.default_rng(0)):
        plan = channels_only(search, ranks)
        saved = space.dense_cost - float(space.cost(plan))
        assert whole - saved == pytest.approx(count(cost, search.build(plan)), abs=1e-6)


def test_a_candidate_of_the_search_computes_what_the_narrowed_network_does(tmp_path: Path) -> None:
    search = prepared(make_context(make_network(gate=True), tmp_path))
    layers = [part.layer for part in search.parts]
    factors = {part.layer.name: part.factors for part in search.parts}
    images = make_images(8).batch(slice(None))
    for ranks in search.space.sample(4, np.random.default_rng(1)):
        candidate = build_candidate(search._context.original, factors, factorized_ranks(layers, ranks))
        torch.testing.assert_close(candidate(images), search.build(ranks)(images), rtol=1e-3, atol=1e-3)


def test_evaluations_do_not_depend_on_those_before(tmp_path: Path) -> None:
    search = prepared(make_context(make_network(), tmp_path))
    evaluate = make_evaluation(search.norm, search._folded, search.parts, search.space)
    plans, images = search.space.sample(5, np.random.default_rng(2)), np.arange(10)
    first = [evaluate(plan, images).mean for plan in plans]
    assert first[::-1] == [evaluate(plan, images).mean for plan in plans[::-1]]
    assert evaluate(search.space.break_even_ranks, images).mean == pytest.approx(0.0, abs=1e-12)


def test_the_linear_model_is_the_derivative_of_the_masked_network(tmp_path: Path) -> None:
    """The last group's reader is the last layer, in which the outputs are linear."""
    search = prepared(make_context(make_network(), tmp_path))
    plan = search.space.break_even_ranks.copy()
    model = search._linearize(plan, alternatives(search.space, plan), np.arange(12), 5)
    evaluate = make_evaluation(search.norm, search._folded, search.parts, search.space)
    names = [part.layer.name for part in search.parts]
    last = names.index("6")
    for rank, loss in model.single_layer_norms()[last].items():
        changed = plan.copy()
        changed[last] = rank
        assert loss == pytest.approx(evaluate(changed, np.arange(12)).mean, rel=1e-3)


def test_widths_are_multiples_and_finely_spaced(tmp_path: Path) -> None:
    search = prepared(make_context(make_network(), tmp_path, rank_multiple=4))
    space = search.space
    number = space.names.index("2.expand")
    assert number in space.widths
    assert all(width < 4 or width % 4 == 0 for width in space.choices[number])
    assert sensitivity_ranks(space)[number][-1] == 44
    others = alternatives(space, space.break_even_ranks)[number]
    assert {44, 40, 32, 28} <= set(others)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., RankSearch]:
    """A search by time, where a layer takes as many milliseconds as it has weights."""
    monkeypatch.setattr("compressor.pipeline.stages.cost._clock", lambda context: weights_for_time)
    return lambda: prepared(make_context(make_network(), tmp_path, cost="latency"))


def weights_for_time(_key: str, modules: list[nn.Module], _value: torch.Tensor) -> list[float]:
    kinds = (nn.Conv2d, nn.Linear)
    return [
        float(sum(part.weight.numel() for part in module.modules() if isinstance(part, kinds))) for module in modules
    ]


def test_times_are_interpolated_between_widths(timed: Callable[..., RankSearch]) -> None:
    space = timed().space
    table = space.tables[space.names.index("2.expand")]
    np.testing.assert_allclose(table, np.arange(1, 49) * (8 + 9 + 8), rtol=0.02)
    (shared,) = space.shared
    assert shared.whole == 16 * 12 * 9
