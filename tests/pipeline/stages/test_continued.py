"""Of two plans, before and after what reconstruction showed, the one named is that of the network delivered."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from compressor.data.batches import from_batches
from compressor.fidelity.function_norm import FunctionNorm
from compressor.pipeline.plan import Plan
from compressor.pipeline.stages import build as build_module
from compressor.pipeline.stages.build import SearchAndBuild
from compressor.pipeline.state import BuiltNetwork, SearchResult, State


def result(pruned: float, ratio: float) -> SearchResult:
    row = {"name": "0", "method": "svd", "rank": 3, "break_even_rank": 5}
    plan = Plan.model_validate({"arch": "toy", "gamma": 1.0, "prune_fraction": pruned, "layers": [row]})
    return SearchResult([], [3], {}, {}, 1.0, plan, ratio=ratio)


@pytest.mark.parametrize(("harm", "delivered"), [(1.0, 0.6), (0.0, 0.1)])
def test_another_share_of_zeros_is_another_network(
    monkeypatch: pytest.MonkeyPatch, harm: float, delivered: float
) -> None:
    """Ranks are the same; the network with more zeros is as good, or has lost its output."""
    torch.manual_seed(0)
    original, images = nn.Linear(4, 3).eval(), from_batches([torch.randn(20, 4)], 20)
    first, second = result(0.1, 0.5), result(0.6, 0.3)
    search = SimpleNamespace(run=lambda: first, continue_after=lambda _: second)

    class Searched:
        def __init__(self, *_: object) -> None:
            pass

        def __enter__(self) -> SimpleNamespace:
            return search

        def __exit__(self, *_: object) -> None:
            pass

    def built(_context: object, plan: SearchResult, _norm: object) -> BuiltNetwork:
        kept = harm if plan is second else 1.0
        network = nn.Linear(4, 3).requires_grad_(False).eval()
        network.load_state_dict({name: kept * value for name, value in original.state_dict().items()})
        return BuiltNetwork(plan, network, None)

    monkeypatch.setattr(build_module, "RankSearch", Searched)
    monkeypatch.setattr(build_module, "build", built)
    context: Any = SimpleNamespace(settings=SimpleNamespace(form="ratio"), search_images=images)
    norm = FunctionNorm(original, images, torch.device("cpu"))
    state = SearchAndBuild().run(context, State(original, norm=norm, gamma=10.0))
    assert state.result is not None
    assert state.result.plan.prune_fraction == delivered
    kept = harm if delivered == second.plan.prune_fraction else 1.0
    assert torch.equal(state.network.weight, kept * original.weight)
