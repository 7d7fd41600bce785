"""The linear model around a plan against the network itself, and the step that it leads to."""

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.arrays import Ranks
from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.factorization.records import MethodChoice
from compressor.fidelity import linearization as linearize
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.linear_model import LinearModel
from compressor.fidelity.linearization import Linearizer
from compressor.fidelity.losses import Losses
from compressor.network.layers import compressible, factorized_ranks, find_layers
from compressor.network.surgery import build_candidate
from compressor.pipeline.stages.factorize import weight_factors
from compressor.search.evaluation.journal import Journal
from compressor.search.initial import gauss_newton
from compressor.search.initial.sensitivity import linear_sensitivities, measure_sensitivities
from compressor.search.objective import Objective
from compressor.search.optimizer import Search, SearchSettings
from compressor.search.problem import SearchProblem
from compressor.search.space import RankSpace, alternatives, with_rank
from compressor.search.surrogate.additive_prior import around_plan
from compressor.search.target.target import SearchTarget

NUM_IMAGES = 40
GAMMA = 2.0  # of the searches, times the energy of the outputs


class Net:
    """A small network, its layers with the weights' own factors, and losses of plans on random images."""

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, ...] = (3, 8, 8),
        method: MethodChoice = "auto",
        num_images: int = NUM_IMAGES,
    ) -> None:
        torch.manual_seed(1)
        self.network = network.eval().requires_grad_(False)
        images = ImageSet(torch.randn(num_images, *shape), "synthetic")
        self.norm = FunctionNorm(self.network, images, torch.device("cpu"))
        self.layers = compressible(find_layers(self.network, images.batch([0]), method))
        self.factors = {layer.name: weight_factors(layer) for layer in self.layers}
        self.space = RankSpace([layer.name for layer in self.layers], [layer.params_by_rank() for layer in self.layers])
        self.linearize = Linearizer(self.norm, self.network, self.layers, self.factors)

    def candidate(self, ranks: Ranks) -> nn.Module:
        return build_candidate(self.network, self.factors, factorized_ranks(self.layers, ranks))

    def residuals(self, ranks: Ranks, indices: np.ndarray) -> np.ndarray:
        chosen = torch.from_numpy(indices)
        return (self.norm.outputs(self.candidate(ranks), chosen) - self.norm.targets[chosen]).double().numpy()

    def evaluate(self, ranks: Ranks, indices: np.ndarray) -> Losses:
        return self.norm.losses(self.candidate(ranks), indices)


def linear_net(outputs: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, stride=2), nn.Flatten(), nn.Linear(144, outputs)
    )


def curved_net(inplace: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(inplace), nn.Conv2d(12, 16, 3, stride=2), nn.ReLU(inplace),
        nn.Flatten(), nn.Linear(144, 6),
    )  # fmt: skip


def compressible_net() -> nn.Sequential:
    """Layers that few components nearly make up, as training leaves them."""
    network = curved_net()
    for module in network:
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach().permute(0, 3, 1, 2)  # outputs and columns by inputs and rows
            module.weight.data = decayed(weight.flatten(2).flatten(0, 1)).reshape(weight.shape).permute(0, 2, 3, 1)
        elif isinstance(module, nn.Linear):
            module.weight.data = decayed(module.weight.detach())
    return network


def decayed(matrix: Tensor) -> Tensor:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ torch.diag(values * 0.7 ** torch.arange(len(values))) @ right * 2.0


@pytest.mark.parametrize(
    ("network", "shape", "method"),
    [
        (linear_net(), (3, 8, 8), "auto"),
        (linear_net(), (3, 8, 8), "tucker"),
        (linear_net(), (3, 8, 8), "interpolative"),
        (
            nn.Sequential(nn.Linear(10, 12), nn.Linear(12, 8, bias=False), nn.Flatten(), nn.Linear(32, 5)),
            (4, 10),
            "auto",
        ),
        (nn.Sequential(nn.Conv2d(8, 12, 3, groups=2), nn.Flatten(), nn.Linear(432, 5)), (8, 8, 8), "auto"),
    ],
)
def test_where_the_network_is_linear_the_model_of_one_layer_is_exact(
    network: nn.Module, shape: tuple[int, ...], method: MethodChoice
) -> None:
    net, images = Net(network, shape, method), np.arange(7, 32)
    plan = np.maximum(net.space.break_even_ranks // 2, 1)
    others = alternatives(net.space, plan)
    model = net.linearize(plan, others, images, 10)
    np.testing.assert_allclose(model.residuals, net.residuals(plan, images), atol=1e-5)
    for layer, ranks in enumerate(others):
        assert int(plan[layer]) not in ranks
        for rank in ranks:
            changed = plan.copy()
            changed[layer] = rank
            found = model.residuals + model.changes[layer][rank]
            np.testing.assert_allclose(found, net.residuals(changed, images), atol=1e-4)


def test_a_small_step_of_all_layers_of_a_curved_network_is_predicted() -> None:
    net, images = Net(curved_net()), np.arange(NUM_IMAGES)
    plan = net.space.break_even_ranks - 3
    model = net.linearize(plan, [[int(rank) + 1] for rank in plan], images, 10)
    moved = model.residuals + sum(rows[int(rank) + 1] for rows, rank in zip(model.changes, plan, strict=True))
    truth, before = net.residuals(plan + 1, images), model.residuals
    assert np.square(moved - truth).sum() < 0.3 * np.square(before - truth).sum()


def test_layers_that_work_in_place_change_nothing() -> None:
    plan, images = np.array([4, 5, 3]), np.arange(20)
    models = []
    for inplace in (True, False):
        net = Net(curved_net(inplace))
        models.append(net.linearize(plan, alternatives(net.space, plan), images, 10))
    np.testing.assert_allclose(models[0].residuals, models[1].residuals)
    for first, second in zip(models[0].changes, models[1].changes, strict=True):
        assert all(np.allclose(first[rank], second[rank]) for rank in first)


def test_with_many_outputs_lengths_are_kept_on_average() -> None:
    net, images = Net(linear_net(outputs=200)), np.arange(NUM_IMAGES)
    plan = np.maximum(net.space.break_even_ranks // 2, 1)
    model = net.linearize(plan, [[1]] * len(plan), images, 10)
    assert model.residuals.shape == (NUM_IMAGES, 10)
    truth = np.square(net.residuals(plan, images)).sum(1)
    assert np.square(model.residuals).sum(1).mean() == pytest.approx(truth.mean(), rel=0.3)
    assert model.passes == NUM_IMAGES * (1 + 15 + 1)


def test_combinations_of_outputs_are_at_right_angles_and_keep_lengths_on_average() -> None:
    along = linearize._directions(4000, 8, 3, np.random.default_rng(0)).numpy()
    gram = np.einsum("bkp,bkq->bpq", along, along)
    np.testing.assert_allclose(gram, np.broadcast_to(8 / 3 * np.eye(3), gram.shape), atol=1e-5)
    np.testing.assert_allclose(np.einsum("bkp,blp->kl", along, along) / len(along), np.eye(8), atol=0.05)


def test_a_large_network_is_taken_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = Net(linear_net(outputs=40)), np.arange(23)
    plan = np.maximum(net.space.break_even_ranks // 2, 1)
    models = [net.linearize(plan, alternatives(net.space, plan), images, 10)]
    sizes = []
    forward = linearize._forward
    monkeypatch.setattr(linearize, "MAX_NUMBERS", 40_000)
    monkeypatch.setattr(
        linearize,
        "_forward",
        lambda network, names, inputs: sizes.append(len(inputs)) or forward(network, names, inputs),
    )
    models.append(net.linearize(plan, alternatives(net.space, plan), images, 10))
    assert max(sizes) in (2, 3)
    np.testing.assert_allclose(models[0].residuals, models[1].residuals, atol=1e-5)


class Shared(nn.Module):
    """One layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(self.layer(inputs))


class Blocked(nn.Module):
    """Passes no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 10)

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


def test_a_layer_called_twice_counts_twice_and_one_without_gradients_not_at_all() -> None:
    torch.manual_seed(0)
    net, images = Net(Shared(), (10,)), np.arange(NUM_IMAGES)
    plan = np.array([int(net.space.break_even_ranks[0]) - 1])
    rank = int(plan[0]) - 1
    model = net.linearize(plan, [[rank]], images, 10)
    before, after = net.factors["layer"].build(int(plan[0])), net.factors["layer"].build(rank)
    inputs = net.norm.images.batch(range(NUM_IMAGES))
    middle = before(inputs)
    first = before(after(inputs)) - before(middle)  # linear, but for the bias, which cancels
    second = after(middle) - before(middle)
    np.testing.assert_allclose(model.changes[0][rank], (first + second).numpy(), atol=1e-5)
    blocked = Net(Blocked(), (10,))
    assert not blocked.linearize(plan, [[rank]], images, 10).changes[0][rank].any()


def random_model(seed: int, num_layers: int) -> tuple[RankSpace, Ranks, LinearModel]:
    rng = np.random.default_rng(seed)
    space = RankSpace([str(i) for i in range(num_layers)], [[100.0 * rank for rank in range(1, 21)]] * num_layers)
    plan = rng.integers(3, 15, num_layers)
    others = alternatives(space, plan)
    changes = [
        {rank: rng.normal(0, abs(np.log(rank / own)), (8, 3)) for rank in ranks}
        for ranks, own in zip(others, plan, strict=True)
    ]
    return space, plan, LinearModel(rng.normal(0, 0.5, (8, 3)), changes, 0)


def value_by_model(space: RankSpace, objective: Objective, plan: Ranks, model: LinearModel, ranks: Ranks) -> float:
    """J with the loss raised by CAUTION standard errors of the gain."""
    moved = model.residuals.copy()
    for rows, rank, own in zip(model.changes, ranks, plan, strict=True):
        moved = moved + (rows[int(rank)] if rank != own else 0.0)
    losses = np.square(moved).sum(1)
    gains = losses - np.square(model.residuals).sum(1)
    cautious = losses.mean() + gauss_newton.CAUTION * gains.std(ddof=1) / np.sqrt(len(gains))
    return float(objective.value(cautious, space.ratio(ranks[None])[0]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.1, 1.0]))
def test_no_single_change_is_a_gain_where_coordinate_ascent_ends(seed: int, gamma: float) -> None:
    space, plan, model = random_model(seed, 3)
    objective = Objective(gamma)
    found = gauss_newton.coordinate_ascent(space, objective, plan, model)
    best = value_by_model(space, objective, plan, model, found)
    for layer, rows in enumerate(model.changes):
        for rank in [int(plan[layer]), *rows]:
            changed = found.copy()
            changed[layer] = rank
            assert value_by_model(space, objective, plan, model, changed) <= best + 1e-8


def test_a_line_search_begins_with_the_plan_and_ends_with_the_target() -> None:
    space, plan, _ = random_model(0, 3)
    plans = gauss_newton.line_search_plans(space, plan, plan + 3)
    assert plans[0].tolist() == plan.tolist()
    assert plans[-1].tolist() == (plan + 3).tolist()
    assert len(gauss_newton.line_search_plans(space, plan, plan)) == 1


def make_search(
    net: Net,
    journal: Journal,
    linearize: bool = True,
    max_evaluations: int = 100,
    target: SearchTarget | None = None,
    seed: int = 0,
    samples: int = 8,
) -> Search:
    chosen = SearchSettings(samples=samples, max_evaluations=max_evaluations, delta=0.1, seed=seed)
    objective = Objective(GAMMA / net.norm.output_energy)
    problem = SearchProblem(
        net.space, objective, net.evaluate, len(net.norm.images), linearize=net.linearize if linearize else None
    )
    return Search(problem, chosen, journal, target)


def run_search(
    net: Net, journal: Journal, linearize: bool = True, max_evaluations: int = 100, seed: int = 0
) -> tuple[Ranks, list[str], int]:
    ranks, record = make_search(net, journal, linearize, max_evaluations, seed=seed).run()
    return ranks, [row.source for row in record.history], record.image_passes


@pytest.mark.parametrize("asked", [(0.1, 0.01), (0.1, 0.3)])
def test_another_target_is_reached_by_gauss_newton_steps(asked: tuple[float, float]) -> None:
    net = Net(compressible_net(), num_images=200)
    first, then = (SearchTarget("loss", share * net.norm.output_energy) for share in asked)
    search = make_search(net, Journal(None, {}), target=first, samples=50)
    search.run()
    ranks, record = search.continue_for(then)
    found = net.evaluate(ranks, np.arange(200)).mean / net.norm.output_energy
    assert asked[1] / 4 <= found <= 4 * asked[1]  # three layers leave few plans to choose from
    assert [row.source for row in record.history].count("refinement") > 1


def test_a_gain_within_chance_is_not_taken() -> None:
    """Both layers lower the loss as much on average; one of them on one image alone."""
    space, plan = RankSpace(["sure", "lucky"], [[1.0, 2.0, 3.0]] * 2), np.array([2, 2])
    residuals = np.ones((100, 1))
    lucky = np.zeros((100, 1))
    lucky[0] = -1.0
    model = LinearModel(residuals, [{1: np.full((100, 1), -0.02)}, {3: lucky}], 0)
    found = gauss_newton.coordinate_ascent(space, Objective(1.0), plan, model)
    assert found.tolist() == [1, 2]


def test_a_step_leads_to_a_plan_that_is_no_worse_and_resumes_midway(tmp_path: Path) -> None:
    net = Net(compressible_net())
    path = tmp_path / "search.jsonl"
    ranks, sources, passes = run_search(net, Journal(path, {}), seed=2)
    plain, plain_sources, _ = run_search(net, Journal(None, {}), linearize=False, seed=2)
    assert "refinement" in sources
    assert "refinement" not in plain_sources
    every, objective = np.arange(NUM_IMAGES), Objective(GAMMA / net.norm.output_energy)
    before, after = (
        float(objective.value(np.array(net.evaluate(plan, every).mean), net.space.ratio(plan[None])[0]))
        for plan in (plain, ranks)
    )
    assert after >= before - 0.01
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    assert "sensitivities" in lines[1]
    steps = [number for number, line in enumerate(lines) if "step_from" in json.loads(line)]
    racings = [number for number, line in enumerate(lines) if json.loads(line).get("source") == "racing"]
    assert steps
    assert racings == list(range(racings[0], len(lines)))
    for kept in (1, 2, steps[0], steps[0] + 1, steps[0] + 2, racings[0], racings[0] + 3, len(lines)):
        path.write_text("".join(lines[:kept]))
        again = run_search(net, Journal(path, {}, resume=True), seed=2)
        assert again[0].tolist() == ranks.tolist()
        assert again[1:] == (sources, passes)
        assert path.read_text() == whole


def test_a_search_with_more_to_spend_goes_on(tmp_path: Path) -> None:
    net, path = Net(compressible_net()), tmp_path / "search.jsonl"
    _, record = make_search(net, Journal(path, {})).run()
    whole = path.read_text()
    assert record.evaluations > 5
    for budget in range(3, record.evaluations):
        run_search(net, Journal(path, {}), max_evaluations=budget)
        assert path.read_text() != whole
        run_search(net, Journal(path, {}, resume=True))
        assert path.read_text() == whole, "further evaluations replace the final racing of the shorter run"


def test_the_final_racing_is_not_evaluated_again(tmp_path: Path) -> None:
    net, path = Net(compressible_net()), tmp_path / "search.jsonl"
    ranks, *others = run_search(net, Journal(path, {}))
    whole = path.read_text()
    with mock.patch.object(net, "evaluate", side_effect=AssertionError):
        again, *same = run_search(net, Journal(path, {}, resume=True))
    assert again.tolist() == ranks.tolist()
    assert same == others
    assert path.read_text() == whole


def test_where_no_gradient_passes_layers_are_measured_one_at_a_time() -> None:
    torch.manual_seed(0)
    blocked = Net(Blocked(), (10,))
    norms, passes = linear_sensitivities(blocked.space, blocked.linearize, np.arange(20))
    assert not norms
    assert passes > 0
    _, sources, _ = run_search(blocked, Journal(None, {}))
    assert "initial" in sources


def test_where_the_network_is_linear_the_model_gives_the_measured_sensitivities() -> None:
    net, images = Net(linear_net(outputs=3)), np.arange(20)
    norms, _ = linear_sensitivities(net.space, net.linearize, images)
    measured = measure_sensitivities(net.space, lambda plans: [net.evaluate(plan, images) for plan in plans])
    for row, truth in zip(norms, measured, strict=True):
        np.testing.assert_allclose(row, truth, rtol=1e-3, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_around_a_plan_its_own_loss_and_its_neighbours_are_expected(seed: int) -> None:
    space, plan, model = random_model(seed, 3)
    rng = np.random.default_rng(seed)
    alone = [np.sort(rng.lognormal(size=int(break_even_rank)))[::-1] for break_even_rank in space.break_even_ranks]
    norms = [{rank: model.norm * own / rank for rank in row} for row, own in zip(model.changes, plan, strict=True)]
    expected = around_plan(plan, model.norm, norms, alone)
    assert expected(plan) == pytest.approx(model.norm)
    everywhere = expected(space.sample(200, rng))
    assert np.isfinite(everywhere).all()
    assert (everywhere > 0).all()
    for layer, row in enumerate(norms):
        lowest = min(row)
        assert expected(with_rank(plan, layer, lowest)) == pytest.approx(row[lowest])
        assert expected(with_rank(plan, layer, 1)) >= row[lowest] * (1 - 1e-9)


def test_around_a_plan_losses_go_on_beyond_the_ranks_that_the_model_knows() -> None:
    """Also where chance let the lowest of them seem better than the plan's own."""
    space, plan, _ = random_model(0, 3)
    alone = [np.geomspace(5.0, 0.01, int(break_even_rank)) for break_even_rank in space.break_even_ranks]
    break_even_ranks, own = space.break_even_ranks.tolist(), plan.tolist()
    chance = [
        {max(1, rank // 2): 0.9, min(break_even_rank - 1, 2 * rank): 0.8}
        for rank, break_even_rank in zip(own, break_even_ranks, strict=True)
    ]
    expected = around_plan(plan, 1.0, chance, alone)
    for layer, (row, break_even_rank) in enumerate(zip(chance, break_even_ranks, strict=True)):
        losses = [float(expected(with_rank(plan, layer, rank))) for rank in (1, min(row), max(row), break_even_rank)]
        assert losses[0] >= losses[1] + 0.9 * (alone[layer][0] - alone[layer][min(row) - 1])
        assert losses[2] > losses[3] > 0


def test_a_step_of_another_search_is_refused(tmp_path: Path) -> None:
    net, path = Net(compressible_net()), tmp_path / "search.jsonl"
    run_search(net, Journal(path, {}))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    step = next(row for row in rows if "step_from" in row)
    step["step_from"][0] += 1
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="departs from this search"):
        run_search(net, Journal(path, {}, resume=True))
