"""What a search hands on."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compressor.fidelity.losses import Losses
from compressor.search.evaluation.history import CANDIDATE, INITIAL, Evaluation, History
from compressor.search.result import losses_at_end, pareto_front

IMAGES = np.arange(4)


def history_of(plans: dict[tuple[int, int], float]) -> History:
    """Plans with the L that was observed of each."""
    history = History()
    for place, (ranks, loss) in enumerate(plans.items()):
        source = INITIAL if place < 2 else CANDIDATE
        spread = np.array([-0.1, 0.1, -0.1, 0.1])
        history.add(Evaluation(source, np.array(ranks), IMAGES), Losses(IMAGES, loss + spread))
    return history


def posterior_of(fitted: list[tuple[int, int]]) -> Any:
    """One that has learnt of some plans only, and takes L of every plan for 2.3."""
    space = SimpleNamespace(encode=lambda ranks: ranks / 10.0, ratio=lambda ranks: ranks.sum(1) / 20.0)
    return SimpleNamespace(
        space=space,
        process=SimpleNamespace(thetas=np.array(fitted) / 10.0),
        loss=lambda ranks: (np.full(len(ranks), 2.3), np.full(len(ranks), 0.5)),
    )


def test_a_plan_that_the_process_has_not_learnt_of_keeps_what_was_observed() -> None:
    history = history_of({(1, 1): 0.4, (5, 5): 1.0})
    means, deviations = losses_at_end(history, posterior_of([(5, 5)]), np.array([(1, 1), (5, 5)]))
    assert means == pytest.approx([0.4, 2.3])
    assert deviations == pytest.approx([np.sqrt(0.1**2 * 4 / 3 / 4), 0.5])


def test_the_front_is_made_of_what_is_known_at_the_end() -> None:
    history = history_of({(1, 1): 3.0, (2, 2): 0.4, (5, 5): 1.0})
    front = pareto_front(history, posterior_of([(5, 5)]))
    assert [(plan.ranks.tolist(), plan.function_norm) for plan in front] == [
        ([1, 1], pytest.approx(3.0)),
        ([2, 2], pytest.approx(0.4)),
    ]
