"""What reconstruction is expected to leave, and searches that weigh plans by it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.arrays import Ranks
from compressor.fidelity.linear_model import LinearModel
from compressor.fidelity.losses import Losses
from compressor.search.evaluation.journal import Journal
from compressor.search.expected_gain import MIN_LEAST, ExpectedGain
from compressor.search.objective import Objective
from compressor.search.optimizer import Search, SearchSettings
from compressor.search.problem import SearchProblem
from compressor.search.space import RankSpace

NUM_IMAGES = 120
LOST = 1.0
SPACE = RankSpace(["a", "b", "c"], [np.arange(1, 41)] * 3)
SETTINGS = SearchSettings(max_evaluations=60, samples=20)

leasts = st.floats(MIN_LEAST, 1.0)
losses = st.floats(1e-6, 3.0)


@given(leasts, losses, losses)
def test_reconstruction_never_adds_and_keeps_the_order(least: float, first: float, second: float) -> None:
    gain = ExpectedGain(least, LOST)
    low, high = sorted((first, second))
    after = gain.delivered(np.array([low, high]))
    assert (after <= np.array([low, high]) * (1 + 1e-12)).all()
    assert after[0] <= after[1]
    assert (after >= least * np.array([low, high]) * (1 - 1e-12)).all()


@given(leasts, losses)
def test_the_loss_before_is_found_from_that_after(least: float, loss: float) -> None:
    gain = ExpectedGain(least, LOST)
    assert gain.before(float(gain.delivered(np.array(loss)))) == pytest.approx(loss)


@given(leasts, st.floats(1e-3, 0.99))
def test_one_network_shows_the_gain(least: float, before: float) -> None:
    after = float(ExpectedGain(least, LOST).delivered(np.array(before)))
    assert ExpectedGain(0.5, LOST).through(before, after).least == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize("before", [0.0, 1.0, 2.0])
def test_nothing_is_learnt_from_a_network_without_loss_or_without_outputs(before: float) -> None:
    assert ExpectedGain(0.5, LOST).through(before, 0.0).least == 1.0


def test_losses_are_scaled_as_a_whole() -> None:
    given_losses = Losses(np.arange(3), np.array([0.1, 0.2, 0.3]))
    scaled = ExpectedGain(0.5, LOST).scaled(given_losses)
    np.testing.assert_allclose(scaled.values, given_losses.values * (0.5 + 0.5 * 0.2))


def loss_of(ranks: Ranks) -> float:
    """L of a plan before reconstruction: near `LOST` at rank 1."""
    return float(np.prod(1.0 + 12.0 / ranks**1.5) - 1.0) * 0.02


def evaluate(ranks: Ranks, indices: np.ndarray) -> Losses:
    noise = np.random.default_rng([7, *indices.tolist()]).lognormal(0.0, 0.1, len(indices))
    return Losses(indices, loss_of(ranks) * noise)


def search(gain: ExpectedGain, journal: Journal) -> Search:
    problem = SearchProblem(SPACE, Objective(4.0), evaluate, NUM_IMAGES, gain=gain)
    return Search(problem, SETTINGS, journal)


def worth(ranks: Ranks, gain: ExpectedGain) -> float:
    """J of the network after reconstruction."""
    loss = gain.delivered(np.array(loss_of(ranks)))
    return float(Objective(4.0).value(loss, SPACE.ratio(ranks[None])[0]))


def best(gain: ExpectedGain) -> float:
    grid = np.stack(np.meshgrid(*[np.arange(1, 41)] * 3), -1).reshape(-1, 3)
    return max(worth(ranks, gain) for ranks in grid)


@pytest.mark.parametrize("least", [0.3, 1.0])
def test_the_plan_is_best_after_reconstruction(least: float) -> None:
    gain = ExpectedGain(least, LOST)
    ranks, _ = search(gain, Journal()).run()
    assert worth(ranks, gain) > 1.05 * best(gain)  # both are negative


@pytest.mark.slow
def test_a_search_goes_on_by_what_a_network_showed() -> None:
    """A gain far from the guess makes another plan better; one like it keeps the plan."""
    guess, shown = ExpectedGain(1.0, LOST), ExpectedGain(0.2, LOST)
    running = search(guess, Journal())
    first, _ = running.run()
    following, record = running.continue_with(shown, first)
    assert worth(following, shown) > 1.05 * best(shown)
    assert worth(following, shown) >= worth(first, shown)
    assert SPACE.ratio(following[None])[0] < SPACE.ratio(first[None])[0]
    for row in record.history:
        raw = shown.before(row.function_norm)
        ranks = np.array([40 if rank is None else rank for rank in row.ranks])  # of a layer kept dense
        assert raw == pytest.approx(loss_of(ranks), rel=0.2), "all are as reconstruction leaves them"
    running = search(guess, Journal())
    first, before = running.run()
    same, after = running.continue_with(guess, first)
    assert same.tolist() == first.tolist()
    assert after.evaluations - before.evaluations <= 20


VECTORS = np.random.default_rng(0).standard_normal((4, 200, 8)) * np.array([0.6, 1.0, 0.4, 1.4])[:, None, None]


def vectors_at(ranks: Ranks, images: np.ndarray) -> np.ndarray:
    """By how much outputs (m, 8) move: losses of layers add up as vectors."""
    return np.einsum("l,lmp->mp", ranks**-0.7 - 40**-0.7, VECTORS[:, images])


def linear_model(ranks: Ranks, others: Sequence[Sequence[int]], images: np.ndarray, _: int) -> LinearModel:
    here = vectors_at(ranks, images)

    def change(layer: int, other: int) -> np.ndarray:
        return vectors_at(np.concatenate([ranks[:layer], [other], ranks[layer + 1 :]]), images) - here

    changes = [{other: change(layer, other) for other in row} for layer, row in enumerate(others)]
    return LinearModel(here, changes, 10)


def losses_of_vectors(ranks: Ranks, indices: np.ndarray) -> Losses:
    return Losses(indices, np.square(vectors_at(ranks, indices)).sum(1))


class CountedSearch:
    """A search with a linear model.

    Attributes:
        models: how many of them were made.
    """

    def __init__(self, journal: Journal) -> None:
        self.models = 0
        space = RankSpace(list("abcd"), [np.arange(1, 41) * 100.0] * 4)
        guess = ExpectedGain(0.6, 20.0)
        problem = SearchProblem(
            space, Objective(0.15), losses_of_vectors, 200, linearize=self._linear_model, gain=guess
        )
        self.search = Search(problem, SearchSettings(max_evaluations=40, samples=30), journal)

    def _linear_model(self, *given: Any) -> LinearModel:
        self.models += 1
        return linear_model(*given)


def test_record_and_steps_are_by_the_gain_that_was_shown() -> None:
    """What is recorded is of the plan that is delivered, and steps compare losses by one gain alone."""
    shown, counted = ExpectedGain(0.95, 20.0), CountedSearch(Journal())
    running = counted.search
    first, _ = running.run()
    before = counted.models
    plan, record = running.continue_with(shown, first)
    assert counted.models == before, "the last linear model does for another gain"
    assert record.objective == pytest.approx(float(running._fitter.posterior().mean(plan[None])[0]))
    refinement = running._initial_design._refinement
    assert refinement is not None
    assert refinement.gain == shown
    assert refinement._losses
    for key, known in refinement._losses.items():
        raw = losses_of_vectors(np.frombuffer(key, dtype=np.int64), known.indices).values
        np.testing.assert_allclose(known.values / raw, (known.values / raw)[0], rtol=0.05)
        assert (known.values / raw).min() > 0.9


def test_a_resumed_search_makes_the_last_linear_model_again(tmp_path: Path) -> None:
    shown, whole = ExpectedGain(0.95, 20.0), tmp_path / "whole.jsonl"

    def run(path: Path, resume: bool) -> tuple[list[int], int]:
        counted = CountedSearch(Journal.open(path, {"journal_version": 1}, resume))
        first, _ = counted.search.run()
        plan: list[int] = counted.search.continue_with(shown, first)[0].tolist()
        return plan, counted.models

    plan, _ = run(whole, resume=False)
    lines = whole.read_text().splitlines(keepends=True)
    steps = [number for number, line in enumerate(lines) if "step_from" in line]
    assert len(steps) == 3
    part = tmp_path / "part.jsonl"
    part.write_text("".join(lines[: steps[2]]))
    again, models = run(part, resume=True)
    assert (again, models) == (plan, 1)
    assert rows_of(part) == rows_of(whole)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """A journal's rows without the passes of models, which a resumed search counts again."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("passes", "checksum")} for row in rows]


def test_the_journal_keeps_losses_as_they_were_and_resumes_both_parts(tmp_path: Path) -> None:
    guess, shown = ExpectedGain(0.8, LOST), ExpectedGain(0.2, LOST)

    def run(path: Path, resume: bool) -> list[int]:
        running = search(guess, Journal.open(path, {"journal_version": 1}, resume))
        first, _ = running.run()
        plan: list[int] = running.continue_with(shown, first)[0].tolist()
        return plan

    whole = tmp_path / "whole.jsonl"
    plan = run(whole, resume=False)
    text = whole.read_text()
    rows = [json.loads(line) for line in text.splitlines()[1:]]
    for row in rows:
        if "losses" in row:
            found = evaluate(np.array(row["ranks"]), np.array(row["images"]))
            np.testing.assert_allclose(row["losses"], found.values)
    racings = [number for number, row in enumerate(rows) if row.get("source") == "racing"]
    for kept in (1, 5, len(rows) // 2, *(racings[:1]), len(rows)):
        part = tmp_path / f"part{kept}.jsonl"
        part.write_text("".join(line + "\n" for line in text.splitlines()[: 1 + kept]))
        assert run(part, resume=True) == plan
        assert part.read_text() == text
