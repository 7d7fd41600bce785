"""Searches compared on the same network, factors, objective and images, for the same number of image passes.

    python -m benchmarks.studies.search.comparison MODEL DATA --input-size 64 --gamma 0.03 --name search-resnet18
    python -m benchmarks.studies.search.comparison MODEL DATA --input-size 64
        --gamma-factor 2 --divided 1500 --name search-resnet50
    python -m benchmarks.studies.search.comparison fc3 --gamma-factor 0.1 --budget 6000 --name search-fc3

Factors are the weights' own, decomposed once, without layer-wise reconstruction: only plans differ. Every evaluation
takes 50 images of one pool of 500; the last incumbent of a search is evaluated on all test images, earlier ones on some
of them. The baselines get the log scale of ranks, too, which is worth more to them than any acquisition function. Those
that do not model noise return the plan of their best evaluation, as for their users. A search that stops keeps its plan
to the end of the budget. To show what the others gain by further passes, each is also compared by its incumbent at the
time when the default had stopped.

gamma of ResNet-50 and FC3 is a multiple of 1 / E||f*||^2, set before any comparison so that good plans keep a relative
function norm of 0.05 to 0.1, by `--searches lagrange-cheap --seeds 1` alone. ResNet-50 (3,200 passes): 0.20 at once
this gamma, 0.05 at three times; so twice. FC3 (3,000 passes): 0.17 at 0.05, 0.05 at 0.1, 0.02 from 0.25 to 2; so 0.1.
"""

import time
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.studies.search.baselines import SEARCHES
from benchmarks.studies.search.baselines.networks import CURVE_IMAGES, PlanEvaluator, Plans, gamma_of, load_network
from benchmarks.studies.search.baselines.problem import Attempt, Problem
from benchmarks.studies.search.baselines.scoring import (
    Row,
    Seconds,
    check_certificates,
    checkpoints_of,
    compare_with_default,
    follow,
    score,
)
from benchmarks.studies.search.baselines.summary import best_baseline, summarize
from benchmarks.studies.study import RESULTS, changed, read_results, write_results
from compressor.errors import InputError

BASELINES = ("optuna", "botorch", "gpytorch")  # beside those that every results file names


@dataclass
class Study:
    """One network's comparison; `rows` fills as searches end, and the results file is written anew after each."""

    name: str
    about: dict[str, Any]
    problem: Problem
    plans: Plans
    evaluator: PlanEvaluator
    budget: int
    began: float
    rows: list[Row] = field(default_factory=list)

    def run(self, search: str, seed: int) -> None:
        """One search with one seed."""
        attempt = Attempt(self.problem, self.budget, seed)
        steps, overhead = follow(SEARCHES[search], attempt)
        seconds = Seconds(overhead, self.plans.seconds_per_pass)
        self.rows.append(score(search, attempt, steps, seconds, self.evaluator))
        compare_with_default(self.rows, self.evaluator)
        check_certificates(self.rows, self.evaluator)
        self.save()
        row = self.rows[-1]
        click.echo(
            f"{search} (seed {seed}): J {row['objective']:.4f}, R {row['ratio']:.3f}, "
            f"relative L {row['relative']:.3f}, {row['passes']} passes, {row['evaluations']} evaluations, "
            f"{overhead:.1f} s beside them; {row['stopped_because']}",
            err=True,
        )

    def save(self) -> None:
        """Write benchmarks/results/NAME.json."""
        about = self.about | {
            "checkpoints": checkpoints_of(self.budget),
            "seconds_per_pass": self.plans.seconds_per_pass,
            "summary": summarize(self.rows),
            "best_baseline": best_baseline(self.rows),
            "baselines": {name: version(name) for name in BASELINES if find_spec(name)},
        }
        write_results(self.name, about, self.rows, self.began)


def keep_earlier(study: Study) -> None:
    """Add the rows of the results file, if there is one.

    Raises:
        InputError: its rows are of another problem.
    """
    if not (RESULTS / f"{study.name}.json").exists():
        return
    earlier = read_results(study.name)
    if different := changed(study.about, earlier):
        raise InputError(f"{study.name} was measured with other {', '.join(different)}: choose another --name")
    study.rows += earlier["rows"]
    study.began -= earlier["seconds"]


def choose_searches(names_given: str) -> list[str]:
    """The searches named, or all; those whose package is missing are left out with a line on stderr.

    Raises:
        InputError: there is no such search.
    """
    names = list(SEARCHES) if names_given == "all" else names_given.split(",")
    unknown = [name for name in names if name not in SEARCHES]
    if unknown:
        raise InputError(f"no search is called {', '.join(unknown)}; there are {', '.join(SEARCHES)}")
    for name in names:
        if not SEARCHES[name].is_installed:
            click.echo(
                f"{name} is left out: {SEARCHES[name].package} is not installed (pip install '.[bench]')", err=True
            )
    return [name for name in names if SEARCHES[name].is_installed]


@click.command()
@click.argument("model")
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option("--input-size", type=int)
@click.option("--layers", "patterns", default="*", show_default=True, help="Name patterns, separated by commas.")
@click.option("--gamma", type=float, help="Of the objective; default: --gamma-factor times 1 / E||f*||^2.")
@click.option("--gamma-factor", default=1.0, show_default=True)
@click.option("--budget", default=10_000, show_default=True, help="Image passes per search.")
@click.option("--samples", default=50, show_default=True, help="Images per evaluation of a plan.")
@click.option("--seeds", default=5, show_default=True)
@click.option("--first-seed", default=0, show_default=True)
@click.option("--test-images", "num_test", default=2000, show_default=True)
@click.option(
    "--divided",
    type=int,
    help="Images divided between pool and test before the others are added to the test; default: all.",
)
@click.option("--searches", default="all", show_default=True, help="Names, separated by commas.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--add", is_flag=True, help="Keep the rows that the results file holds already.")
@click.option("--name", default="search", show_default=True, help="Name of the results file.")
def main(
    model: str,
    data: Path | None,
    input_size: int | None,
    patterns: str,
    gamma: float | None,
    gamma_factor: float,
    budget: int,
    samples: int,
    seeds: int,
    first_seed: int,
    num_test: int,
    divided: int | None,
    searches: str,
    device: str,
    add: bool,
    name: str,
) -> None:
    """Run the comparison and write benchmarks/results/NAME.json, anew after every search."""
    began = time.perf_counter()
    try:
        names = choose_searches(searches)
        network = load_network(model, data, input_size, patterns.split(","), num_test, torch.device(device), divided)
        plans = network.plans(network.pool)
        problem = network.problem(plans, gamma_of(plans, gamma, gamma_factor), samples)
        about = {
            "network": network.name,
            "layers": len(network.layers),
            "patterns": patterns,
            "gamma": problem.objective.gamma,
            "budget": budget,
            "samples": samples,
            "pool": len(network.pool),
            "evaluated_on": len(network.test_images),
            "curve_on": min(CURVE_IMAGES, len(network.test_images)),
            "output_energy": plans.norm.output_energy,
            "device": device,
        }
        study = Study(
            name, about, problem, plans, PlanEvaluator(network.plans(network.test_images), problem), budget, began
        )
        if add:
            keep_earlier(study)
    except InputError as error:
        raise click.ClickException(str(error)) from error
    known = {(row["search"], row["seed"]) for row in study.rows}
    for seed in range(first_seed, first_seed + seeds):
        for search in names:
            if (search, seed) not in known:
                study.run(search, seed)


if __name__ == "__main__":
    main()
