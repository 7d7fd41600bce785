"""Searches with Gauss-Newton steps: what they find, and that they resume."""

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from compressor.arrays import Ranks
from compressor.errors import InputError
from compressor.files import append_line, read_lines
from compressor.search.evaluation.journal import Journal
from compressor.search.initial.sensitivity import linear_sensitivities, measure_sensitivities
from compressor.search.objective import Objective
from compressor.search.optimizer import Search, SearchSettings
from compressor.search.problem import SearchProblem
from compressor.search.target.target import SearchTarget
from tests.search.initial.networks import NUM_IMAGES, Blocked, Net, compressible_net, linear_net

GAMMA = 2.0  # of the searches, times the energy of the outputs
HEADER = {"journal_version": 1}


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


@pytest.mark.parametrize("asked", [(0.1, 0.01), pytest.param((0.1, 0.3), marks=pytest.mark.slow)])
def test_another_target_is_reached_by_gauss_newton_steps(asked: tuple[float, float]) -> None:
    net = Net(compressible_net(), num_images=200)
    first, then = (SearchTarget("loss", share * net.norm.output_energy) for share in asked)
    search = make_search(net, Journal(), target=first, samples=50)
    search.run()
    ranks, record = search.continue_for(then)
    found = net.evaluate(ranks, np.arange(200)).mean / net.norm.output_energy
    assert asked[1] / 4 <= found <= 4 * asked[1]  # three layers leave few plans to choose from
    assert [row.source for row in record.history].count("refinement") > 1


@pytest.mark.slow
def test_steps_lead_to_plans_that_are_no_worse_on_average() -> None:
    """Delta is 0.1, and a search sees eight images at a time: single ones may well be worse by half of that."""
    net = Net(compressible_net())
    every, objective = np.arange(NUM_IMAGES), Objective(GAMMA / net.norm.output_energy)
    found: dict[bool, list[float]] = {True: [], False: []}
    num_refined = 0
    for seed in range(6):
        for linearize, values in found.items():
            plan, sources, _ = run_search(net, Journal(), linearize, seed=seed)
            assert linearize or "refinement" not in sources
            num_refined += "refinement" in sources
            loss = np.array(net.evaluate(plan, every).mean)
            values.append(float(objective.value(loss, net.space.ratio(plan[None])[0])))
    assert num_refined
    assert np.mean(found[True]) >= np.mean(found[False]) - 0.01


def test_a_search_with_steps_resumes_midway(tmp_path: Path) -> None:
    net = Net(compressible_net())
    path = tmp_path / "search.jsonl"
    ranks, sources, passes = run_search(net, Journal.open(path, HEADER), seed=2)
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    assert "sensitivities" in lines[1]
    steps = [number for number, line in enumerate(lines) if "step_from" in json.loads(line)]
    racings = [number for number, line in enumerate(lines) if json.loads(line).get("source") == "racing"]
    assert steps
    assert racings == list(range(racings[0], len(lines)))
    for kept in (2, steps[0], steps[0] + 1, racings[0] + 3):
        path.write_text("".join(lines[:kept]))
        again = run_search(net, Journal.open(path, HEADER, resume=True), seed=2)
        assert again[0].tolist() == ranks.tolist()
        assert again[1:] == (sources, passes)
        assert path.read_text() == whole


def test_a_search_with_more_to_spend_goes_on(tmp_path: Path) -> None:
    net, path = Net(compressible_net()), tmp_path / "search.jsonl"
    _, record = make_search(net, Journal.open(path, HEADER)).run()
    whole = path.read_text()
    assert record.evaluations > 5
    for budget in (3, record.evaluations // 2, record.evaluations - 1):
        run_search(net, Journal.open(path, HEADER), max_evaluations=budget)
        assert path.read_text() != whole
        run_search(net, Journal.open(path, HEADER, resume=True))
        assert path.read_text() == whole, "further evaluations replace the final racing of the shorter run"


def test_the_final_racing_is_not_evaluated_again(tmp_path: Path) -> None:
    net, path = Net(compressible_net()), tmp_path / "search.jsonl"
    ranks, *others = run_search(net, Journal.open(path, HEADER))
    whole = path.read_text()
    with mock.patch.object(net, "evaluate", side_effect=AssertionError):
        again, *same = run_search(net, Journal.open(path, HEADER, resume=True))
    assert again.tolist() == ranks.tolist()
    assert same == others
    assert path.read_text() == whole


def test_where_no_gradient_passes_layers_are_measured_one_at_a_time() -> None:
    torch.manual_seed(0)
    blocked = Net(Blocked(), (10,))
    norms, passes = linear_sensitivities(blocked.space, blocked.linearize, np.arange(20))
    assert not norms
    assert passes > 0
    _, sources, _ = run_search(blocked, Journal())
    assert "initial" in sources


def test_where_the_network_is_linear_the_model_gives_the_measured_sensitivities() -> None:
    net, images = Net(linear_net(outputs=3)), np.arange(20)
    norms, _ = linear_sensitivities(net.space, net.linearize, images)
    measured = measure_sensitivities(net.space, lambda plans: [net.evaluate(plan, images) for plan in plans])
    for row, truth in zip(norms, measured, strict=True):
        np.testing.assert_allclose(row, truth, rtol=1e-3, atol=1e-9)


def test_a_step_of_another_search_is_refused(tmp_path: Path) -> None:
    net, path = Net(compressible_net()), tmp_path / "search.jsonl"
    run_search(net, Journal.open(path, HEADER))
    rows = read_lines(path, "journal").rows
    step = next(row for row in rows if "step_from" in row)
    step["step_from"][0] += 1
    for number, row in enumerate(rows):
        append_line(path, row, first=number == 0)
    with pytest.raises(InputError, match="departs from this search"):
        run_search(net, Journal.open(path, HEADER, resume=True))
