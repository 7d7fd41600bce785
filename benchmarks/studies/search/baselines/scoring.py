"""From a finished search to its row: its incumbents at the checkpoints, evaluated on test images."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.studies.search.baselines import DEFAULT, ComparedSearch
from benchmarks.studies.search.baselines.networks import PlanEvaluator
from benchmarks.studies.search.baselines.problem import Attempt, OutOfBudget, Step
from compressor.arrays import Ranks

NUM_CHECKPOINTS = 12
FIRST_CHECKPOINT = 1 / 40  # of the budget
FIGURES = 6  # significant digits of what is written
Row = dict[str, Any]


class Seconds(NamedTuple):
    """Processor seconds of a search beside its evaluations, and the mean cost of an image pass in this study.

    Evaluations that another search has made already cost nothing here, but would cost its user.
    """

    overhead: float
    per_pass: float


def checkpoints_of(budget: int) -> list[int]:
    """Image passes, geometric, at which incumbents are evaluated."""
    return sorted({int(passes) for passes in np.geomspace(FIRST_CHECKPOINT * budget, budget, NUM_CHECKPOINTS).round()})


def follow(search: ComparedSearch, attempt: Attempt) -> tuple[list[Step], float]:
    """Run a search to its end: its incumbents, the dense network first, and its own processor seconds."""
    began = time.process_time()
    steps: list[Step] = [(0, attempt.space.break_even_ranks)]
    try:
        steps.extend(search.run(attempt))
        attempt.stopped_because = attempt.stopped_because or "done"
    except OutOfBudget:
        attempt.stopped_because = "image passes spent"
    return steps, time.process_time() - began - attempt.evaluation_seconds


def held_at(steps: Sequence[Step], passes: int) -> Step:
    """The incumbent after so many passes, and since when."""
    return [step for step in steps if step[0] <= passes][-1]


def score(name: str, attempt: Attempt, steps: list[Step], seconds: Seconds, evaluator: PlanEvaluator) -> Row:
    """The row of one search and seed: its incumbents on the test images, and what they cost."""
    checkpoints = checkpoints_of(attempt.budget)
    held = [held_at(steps, passes) for passes in checkpoints]
    distinct = {since: _evaluated(since, ranks, evaluator) for since, ranks in held}
    last = held[-1][1]
    losses = evaluator.losses(last)
    return {
        "search": name,
        "seed": attempt.seed,
        "objective": _round(evaluator.objective(last)),
        "function_norm": _round(losses.mean),
        "stderr": _round(losses.variance**0.5),
        "relative": _round(losses.mean / evaluator.plans.norm.output_energy),
        "ratio": _round(evaluator.ratio(last)),
        "passes": attempt.passes,
        "evaluations": attempt.evaluations,
        "seconds": round(seconds.overhead + attempt.passes * seconds.per_pass, 2),
        "overhead_seconds": round(seconds.overhead, 2),
        "stopped_because": attempt.stopped_because,
        "certificate": attempt.certificate,
        "objectives": [distinct[since]["objective"] for since, _ in held],
        "incumbents": list(distinct.values()),
        "steps": [[passes, _written(ranks)] for passes, ranks in steps],
    }


def compare_with_default(rows: Sequence[Row], evaluator: PlanEvaluator) -> None:
    """Add to every row by how much the default's plan of the same seed is better, with the standard error over the same
    images, and the J of its incumbent when the default had stopped."""
    defaults = {row["seed"]: row for row in rows if row["search"] == DEFAULT}
    for row in rows:
        if row["seed"] in defaults and "default_advantage" not in row:
            default = defaults[row["seed"]]
            advantage, stderr = evaluator.advantage(final_ranks(default), final_ranks(row))
            row["default_advantage"], row["default_advantage_stderr"] = _round(advantage), _round(stderr)
            _, ranks = held_at([(passes, read_ranks(text)) for passes, text in row["steps"]], default["passes"])
            row["objective_at_end_of_default"] = _round(evaluator.objective(ranks))


def check_certificates(rows: Sequence[Row], evaluator: PlanEvaluator) -> None:
    """Add to certified rows whether any search's incumbent beats their plan by more than delta."""
    plans = [(held["objective"], held["ranks"], row) for row in rows for held in row["incumbents"]]
    if not plans:
        return
    _, best, finder = max(plans, key=lambda plan: plan[0])
    for row in rows:
        if row["certificate"].get("met"):
            advantage, stderr = evaluator.advantage(read_ranks(best), final_ranks(row))
            row["best_other"] = {"search": finder["search"], "seed": finder["seed"]}
            row["best_other_advantage"], row["best_other_stderr"] = _round(advantage), _round(stderr)
            row["contradicted"] = bool(advantage > row["certificate"]["delta"])


def final_ranks(row: Row) -> Ranks:
    """Ranks (d,) of the plan that a row ended with."""
    return read_ranks(row["incumbents"][-1]["ranks"])


def read_ranks(text: str) -> Ranks:
    """Ranks (d,) as they are written in a row."""
    return np.array([int(rank) for rank in text.split()], dtype=np.int64)


def _evaluated(since: int, ranks: Ranks, evaluator: PlanEvaluator) -> Row:
    return {
        "since": since,
        "objective": _round(evaluator.objective_roughly(ranks)),
        "function_norm": _round(evaluator.losses_roughly(ranks).mean),
        "ratio": _round(evaluator.ratio(ranks)),
        "ranks": _written(ranks),
    }


def _written(ranks: Ranks) -> str:
    return " ".join(map(str, ranks.tolist()))


def _round(value: float) -> float:
    return float(f"{value:.{FIGURES}g}")
