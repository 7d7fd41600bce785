"""The search within a limit of size beside other ways to a plan of that size, on the same network, factors and images.

    python -m benchmarks.studies.search.limits MODEL DATA --input-size 64

Factors are the weights' own, as in `comparison`. Uniform plans and energy thresholds need no evaluation. The others
take as many image passes as this project's search did with the same seed: layers measured one by one, and searches that
know no limits, whose every plan is moved to the limit before it is evaluated. L is that on all test images, relative to
the output energy.
"""

import time
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.studies.search.baselines import DEFAULT, SEARCHES
from benchmarks.studies.search.baselines.networks import PlanEvaluator, gamma_of, load_network
from benchmarks.studies.search.baselines.problem import Attempt, Problem
from benchmarks.studies.search.baselines.within import layer_by_layer, plans_without_evaluation, search_moved
from benchmarks.studies.search.comparison import choose_searches
from benchmarks.studies.study import write_results
from compressor.arrays import Ranks
from compressor.search.evaluation.journal import Journal
from compressor.search.optimizer import Search
from compressor.search.problem import SearchProblem
from compressor.search.settings import SearchSettings
from compressor.search.target.target import SearchTarget

ALL = 10**9  # image passes: no limit
LAYER_BY_LAYER = "layer by layer"


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


@click.command()
@click.argument("model")
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option("--input-size", type=int)
@click.option("--ratios", default="0.4,0.15", show_default=True, help="Limits of R, separated by commas.")
@click.option("--seeds", default=3, show_default=True)
@click.option(
    "--searches", default="random,tpe,optuna-gp,skopt,botorch", show_default=True, help="Those that know no limits."
)
@click.option("--test-images", "num_test", default=1000, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--name", default="limits", show_default=True, help="Name of the results file.")
def main(
    model: str,
    data: Path | None,
    input_size: int | None,
    ratios: str,
    seeds: int,
    searches: str,
    num_test: int,
    device: str,
    name: str,
) -> None:
    """Run the searches and write benchmarks/results/NAME.json, anew after every row."""
    began, rows, names = time.perf_counter(), list[dict[str, Any]](), choose_searches(searches)
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
        write_results(name, about | {"evaluated_on": len(network.test_images)}, rows, began)

    for limit in map(float, ratios.split(",")):
        for rule, ranks in plans_without_evaluation(problem, limit).items():
            add(rule, limit, ranks)
        for seed in range(seeds):
            ranks, found = search_within(problem, limit, seed)
            add(DEFAULT, limit, ranks, seed=seed, **found)
            passes = found["passes"]
            alone = layer_by_layer(problem, limit, seed, passes)
            add(LAYER_BY_LAYER, limit, alone, seed=seed, passes=passes)
            for search in names:
                moved = search_moved(SEARCHES[search], problem, limit, seed, passes)
                add(search, limit, moved, seed=seed, passes=passes)


if __name__ == "__main__":
    main()
