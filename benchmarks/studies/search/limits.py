"""The search within a limit of size beside other ways to a plan of that size, on the same network, factors and images.

    python -m benchmarks.studies.search.limits MODEL DATA --input-size 64

Factors are the weights' own, as in `comparison`. Uniform plans and energy thresholds need no evaluation; random plans,
moved to the limit, take as many image passes as the search did, 50 images each, and the best observed counts. L is that
on all test images, relative to the output energy.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.studies.search.baselines.networks import PlanEvaluator, gamma_of, load_network
from benchmarks.studies.search.baselines.problem import Attempt, Problem
from benchmarks.studies.study import write_results
from compressor.arrays import Array, Ranks
from compressor.search.evaluation.journal import Journal
from compressor.search.initial.allocation import allocate_within
from compressor.search.optimizer import Search
from compressor.search.problem import SearchProblem
from compressor.search.settings import SearchSettings
from compressor.search.space import RankSpace
from compressor.search.target.target import SearchTarget

ALL = 10**9  # image passes: no limit


def search_within(problem: Problem, limit: float, seed: int) -> tuple[Ranks, dict[str, Any]]:
    """The plan (d,) of the search, and what it took."""
    attempt = Attempt(problem, ALL, seed)
    given = SearchProblem(
        problem.space,
        problem.objective,
        attempt.evaluate,
        problem.num_images,
        linearize=attempt.linearize if problem.linearize else None,
    )
    settings = SearchSettings(samples=problem.samples, seed=seed)
    ranks, record = Search(given, settings, Journal(), SearchTarget("ratio", limit)).run()
    smallest = min(row.ratio for row in record.history) / limit
    found = {"passes": attempt.passes, "evaluations": record.evaluations, "stopped_because": record.stopped_because}
    return ranks, found | {"certificate_met": record.certificate.met, "smallest_share": smallest}


def random_within(problem: Problem, limit: float, seed: int, passes: int) -> Ranks:
    """The best observed of random plans at the limit."""
    attempt, rng = Attempt(problem, ALL, seed), np.random.default_rng(seed)
    plans = problem.space.fit(problem.space.sample(max(1, passes // problem.samples), rng), limit)
    return min(plans, key=lambda ranks: attempt.evaluate(ranks, attempt.draw()).mean)


def largest_within(space: RankSpace, plan_at: Callable[[float], Ranks], limit: float) -> Ranks:
    """The plan (d,) at the largest position in [0, 1] that keeps to the limit; sizes rise with the position."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if space.ratio(plan_at(middle)[None])[0] <= limit else (low, middle)
    return plan_at(low)


def baselines(problem: Problem, limit: float) -> dict[str, Ranks]:
    """Plans (d,) that need no evaluation."""
    space = problem.space

    def by_energy(kept: float) -> Ranks:
        # The first rank that discards at most the rest of the energy.
        return np.array([1 + int(np.argmax(share <= 1.0 - kept)) for share in problem.energies], dtype=np.int64)

    def options(tables: list[Array]) -> list[tuple[Ranks, Array]]:
        return [(choices, table[choices - 1]) for choices, table in zip(space.choices, tables, strict=True)]

    return {
        "uniform": largest_within(space, space.uniform, limit),
        "energy threshold": largest_within(space, by_energy, limit),
        "least energy": allocate_within(space, options(problem.energies), limit),
    }


@click.command()
@click.argument("model")
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option("--input-size", type=int)
@click.option("--ratios", default="0.4,0.15", show_default=True, help="Limits of R, separated by commas.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--test-images", "num_test", default=1000, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--name", default="limits", show_default=True, help="Name of the results file.")
def main(
    model: str,
    data: Path | None,
    input_size: int | None,
    ratios: str,
    seeds: int,
    num_test: int,
    device: str,
    name: str,
) -> None:
    """Run the searches and write benchmarks/results/NAME.json, anew after every limit."""
    began, rows = time.perf_counter(), list[dict[str, Any]]()
    network = load_network(model, data, input_size, ["*"], num_test, torch.device(device))
    plans = network.plans(network.pool)
    problem = network.problem(plans, gamma_of(plans, None, 1.0), 50)
    evaluator = PlanEvaluator(network.plans(network.test_images), problem)
    about = {"network": network.name, "layers": len(network.layers), "pool": len(network.pool), "device": device}
    energy = evaluator.plans.norm.output_energy

    def add(search: str, limit: float, ranks: Ranks, **more: Any) -> None:
        losses = evaluator.losses(ranks)
        row = {"search": search, "limit": limit, "ratio": evaluator.ratio(ranks), "relative": losses.mean / energy}
        rows.append(row | more)
        click.echo(rows[-1], err=True)

    for limit in map(float, ratios.split(",")):
        for baseline, ranks in baselines(problem, limit).items():
            add(baseline, limit, ranks)
        for seed in range(seeds):
            ranks, found = search_within(problem, limit, seed)
            add("bocompress", limit, ranks, seed=seed, **found)
            chance = random_within(replace(problem), limit, seed, found["passes"])
            add("random", limit, chance, seed=seed, passes=found["passes"])
        write_results(name, about, rows, began)


if __name__ == "__main__":
    main()
