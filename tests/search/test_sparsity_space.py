"""Sparsity as one more dimension: R against counted zeros, the search, resuming, and what is refused."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from click.testing import Result

from compressor import apply_plan, compress
from compressor.arrays import Ranks
from compressor.data.batches import from_batches
from compressor.errors import InputError
from compressor.factorization.registry import METHODS
from compressor.network.layers import FoundLayer, compressible, factorized_ranks, find_layers, with_method
from compressor.network.pruning import count_prunable, pruned_copy
from compressor.network.surgery import build_candidate
from compressor.pipeline.settings import Settings
from compressor.search.dimension import SparsityDimension
from compressor.search.evaluation.journal import Journal
from compressor.search.optimizer import Search, SearchSettings
from compressor.search.space import RankSpace
from compressor.search.sparsity_space import LEVELS, MIN_LEVEL, SparsitySpace
from tests.search.test_optimizer import NUM_IMAGES, Problem
from tests.unmeasured import without_measuring

Invoke = Callable[..., Result]
FRACTIONS = SparsityDimension(LEVELS, MIN_LEVEL).fractions  # pruned at levels 1, 2, ...


def make_space(break_even_ranks: tuple[int, ...] = (30, 50), other: int = 0) -> SparsitySpace:
    tables = [
        [7.0 * rank for rank in range(1, break_even_rank)] + [7.0 * break_even_rank + 3]
        for break_even_rank in break_even_ranks
    ]
    return SparsitySpace(RankSpace([f"layer{i}" for i in range(len(break_even_ranks))], tables), other)


def nonzero_weights(network: torch.nn.Module) -> int:
    layers = [part for part in network.modules() if isinstance(part, torch.nn.Conv2d | torch.nn.Linear)]
    return sum(int((layer.weight != 0).sum()) for layer in layers)


@pytest.mark.parametrize("patterns", [("*",), ("features.[3-9]*",)])
def test_r_is_the_count_of_weights_that_are_not_zero(patterns: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(num_classes=10).eval()
    layers: list[FoundLayer] = compressible(find_layers(model, torch.rand(1, 3, 64, 64), include=patterns))
    layers = [with_method(layer, "interpolative") if number % 5 == 0 else layer for number, layer in enumerate(layers)]
    factors = {layer.name: METHODS[layer.method or "svd"].factorize(layer.module) for layer in layers}
    ranks = RankSpace([layer.name for layer in layers], [layer.params_by_rank() for layer in layers])
    whole = sum(weight.numel() for name, weight in model.named_parameters() if name.endswith("weight"))
    assert count_prunable(model) == whole
    space = SparsitySpace(ranks, whole - sum(layer.params for layer in layers))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for point in space.sample(6, np.random.default_rng(0)):
        kept = factorized_ranks(layers, space.layer_ranks(point))
        candidate = pruned_copy(build_candidate(model, factors, kept), space.prune_fraction(point))
        assert space.cost(point) == nonzero_weights(candidate)
        assert space.ratio(point[None])[0] == pytest.approx(nonzero_weights(candidate) / whole)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_without_pruning_r_is_that_of_the_ranks() -> None:
    space = make_space()
    points = space.layers.sample(20, np.random.default_rng(0))
    complete = np.array([space.complete(ranks) for ranks in points])
    np.testing.assert_allclose(space.ratio(complete), space.layers.ratio(points), rtol=1e-12)
    assert {space.prune_fraction(point) for point in complete} == {0.0}
    np.testing.assert_array_equal(np.array([space.layer_ranks(point) for point in complete]), points)


def test_levels_are_shares_and_the_last_prunes_nothing() -> None:
    space = make_space()
    levels = np.unique(space.sample(3000, np.random.default_rng(0))[:, -1])
    assert levels.tolist() == list(range(MIN_LEVEL, LEVELS + 1))
    assert FRACTIONS[levels - 1].max() == 0.9
    assert FRACTIONS[-1] == 0.0
    thetas = space.encode(np.array([space.complete(np.array([3, 4]))]))
    assert thetas[0, -1] == 1.0


class SparseProblem(Problem):
    """The synthetic problem where pruning loses as s^2 / (1 - s), more where ranks are low."""

    def __init__(self) -> None:
        super().__init__()
        self.space = SparsitySpace(self.space, 0)

    def norm(self, ranks: Ranks) -> np.ndarray:
        layers = self.space.layers
        singles = (self.strengths * (1.0 / ranks[:, :-1] - 1.0 / layers.break_even_ranks)).sum(1)
        share = FRACTIONS[ranks[:, -1] - 1]
        return singles * (1.0 + 0.3 * singles) + (0.2 + 0.5 * singles) * share**2 / (1.0 - share)


@pytest.mark.parametrize("settings", [{}, {"start": "random", "max_evaluations": 60}, {"surrogate": "objective"}])
def test_a_search_finds_ranks_and_sparsity_together(settings: dict[str, object]) -> None:
    problem = SparseProblem()
    ranks, record = problem.search(seed=1, **settings)
    points = problem.space.sample(40000, np.random.default_rng(3))
    best = problem.value(points).max()
    dense = points.copy()
    dense[:, -1] = LEVELS
    assert problem.value(ranks[None])[0] > problem.value(dense).max()
    assert problem.value(ranks[None])[0] > best - (0.05 if settings == {} else 0.15) * abs(best)
    if settings == {}:
        assert record.certificate.met
    chosen = [row for row in record.history if row.prune_fraction == problem.space.prune_fraction(ranks)]
    dense_ranks = problem.space.layers.break_even_ranks
    plans = [[rank or last for rank, last in zip(row.ranks, dense_ranks, strict=True)] for row in chosen]
    assert ranks[:-1].tolist() in plans


def test_a_search_for_sparsity_resumes(tmp_path: Path) -> None:
    whole = SparseProblem()
    ranks, _ = whole.search(Journal.open(tmp_path / "whole.jsonl", {}), seed=2, max_evaluations=30)
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    torn = tmp_path / "torn.jsonl"
    torn.write_text("".join(lines[: len(lines) // 2]))
    again = SparseProblem()
    resumed, _ = again.search(Journal.open(torn, {}, resume=True), seed=2, max_evaluations=30)
    assert resumed.tolist() == ranks.tolist()
    assert torn.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert again.num_evaluations < whole.num_evaluations


def test_a_pool_seen_by_the_plan_still_lets_sparsity_be_chosen() -> None:
    """The pool has as many images as one evaluation, so none are new to the plan."""
    problem = SparseProblem()
    settings = SearchSettings(max_evaluations=20, samples=NUM_IMAGES)
    search = Search(problem.problem, settings, Journal())
    ranks, _ = search.run()
    assert problem.space.prune_fraction(ranks) > 0


# The whole job


@pytest.fixture
def unmeasured() -> Iterator[None]:
    """Export and latency are other tests'."""
    with without_measuring(pages=True):
        yield


@pytest.mark.usefixtures("unmeasured")
def test_the_plan_keeps_the_share_and_apply_repeats_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(48, 40), torch.nn.ReLU(), torch.nn.Linear(40, 10)).eval()
    images = from_batches([torch.randn(80, 48)], 80)
    settings = Settings(gamma=0.02, prune_fraction=None, factors="weight", recalibrate=False,
                        search=SearchSettings(max_evaluations=30, samples=10))  # fmt: skip
    found = compress(model, images, tmp_path / "found", settings)
    report, plan = found.report, found.plan
    assert report.prune_searched
    assert report.prune_fraction == plan.prune_fraction > 0
    total = sum(layer.weight.numel() for layer in model if isinstance(layer, torch.nn.Linear))
    assert report.ratio == pytest.approx(nonzero_weights(found.model) / total)
    assert not any("before the final pruning" in warning for warning in report.warnings)
    assert "weights that are not zero" in (tmp_path / "found" / "report.html").read_text()
    applied = apply_plan(model, images, plan, tmp_path / "applied", Settings(factors=None, recalibrate=False))
    assert applied.plan.prune_fraction == plan.prune_fraction
    inputs = images.batch(slice(None))  # scales between factors depend on the images that each was given
    torch.testing.assert_close(applied.model(inputs), found.model(inputs))
    fixed = replace(settings, prune_fraction=0.1)
    with pytest.raises(InputError, match="other sparsity"):
        compress(model, images, tmp_path / "found", fixed, resume=True)


@pytest.mark.usefixtures("unmeasured")
def test_prune_auto_from_the_command_line(
    invoke: Invoke, tiny_checkpoint: Path, digit_images: Path, tmp_path: Path
) -> None:
    arguments = [tiny_checkpoint, "--trust-pickle", "--data", digit_images, "--input-size", 32, "--prune", "auto"]
    refused = invoke("bocompress-export", *arguments, "--cost", "macs", "--out", tmp_path / "out")
    assert refused.exit_code == 2
    assert "--prune auto counts weights that are not zero: it needs --cost params, not macs" in refused.output
    assert not (tmp_path / "out").exists()
    arguments += ["--max-evaluations", 6, "--samples", 8, "--no-recalibrate", "--factors", "weight"]
    done = invoke("bocompress-export", *arguments, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    fraction = json.loads((tmp_path / "out" / "plan.json").read_text())["prune_fraction"]
    assert fraction in FRACTIONS


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prune", "auto", "--target-ratio", 0.5], "--prune auto needs a gamma"),
        (["--fidelity", "error", "--max-drop", 1], "leave out --fidelity error"),
        (["--prior-mean", "energies", "--prune", "auto"], "energies say nothing of others"),
        (["--prior-mean", "energies", "--fidelity", "risk"], "energies say nothing of others"),
        (["--prior-mean", "energies", "--surrogate", "objective"], "--surrogate objective has no prior mean"),
    ],
)
def test_what_does_not_go_together(
    invoke: Invoke, tiny_checkpoint: Path, digit_images: Path, tmp_path: Path, arguments: list[object], sentence: str
) -> None:
    result = invoke("bocompress-export", tiny_checkpoint, "--trust-pickle", "--data", digit_images, "--input-size", 32,
                    "--out", tmp_path / "out", *arguments)  # fmt: skip
    assert result.exit_code == 2
    assert sentence in result.output
    assert not (tmp_path / "out").exists()
