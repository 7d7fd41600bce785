"""How often a search that stopped with its certificate was wrong, where the Gaussian process is right.

The objective is a sample path of a Gaussian process whose hyperparameters the search knows, so that only the stopping
rule is tested: Eq. (12) as written; the same, but measuring the incumbent again where that reduces the variance more;
and the joint certificate with re-measuring. A stop is wrong if some lattice point beats the incumbent by more than
delta; many local searches on the path itself look for such a point.

    python -m benchmarks.studies.search.certificates --problems 200
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.studies.study import RESULTS, read_results, write_results
from compressor.arrays import Ranks
from compressor.search.acquisition.optimize import perturb, should_remeasure
from compressor.search.objective import Objective
from compressor.search.records import Certificate
from compressor.search.settings import SearchSettings
from compressor.search.space import RankSpace
from compressor.search.stopping.criterion import StopRule
from compressor.search.stopping.joint_certificate import lower_bound, upper_bound
from compressor.search.stopping.sample_paths import SamplePaths, local_search
from compressor.search.surrogate import gp
from compressor.search.surrogate.gaussian import LossSurrogate
from compressor.search.surrogate.posterior import Posterior

EPSILON = 0.05
INTERVAL_TAIL = 0.025  # of the 95 % intervals, on either side
NUM_LEVELS = 17  # ranks per layer
EXTRA_COST_OF_DENSE = 1e-9
EVALUATION_NOISE = 0.1  # standard deviation of an evaluation; the process's own is 1
MAX_EVALUATIONS = 250
TRUTH_FEATURES = 2048
NUM_STARTS, START_POOL, TRUTH_SWEEPS = 64, 4096, 8
TRUTH_STREAM, RUN_STREAM = 71, 72
RULES: dict[str, tuple[Certificate, bool]] = {  # certificate, re-measuring
    "Eq. (12)": ("pointwise", False),
    "Eq. (12), re-measuring": ("pointwise", True),
    "joint, re-measuring": ("joint", True),
}


@dataclass(frozen=True)
class Family:
    """Problems of d layers with one length-scale (in theta) and delta (in standard deviations of the process)."""

    num_dims: int
    length_scale: float
    delta: float


FAMILIES = (Family(6, 0.8, 0.3), Family(16, 2.0, 0.6))


class Problem:
    """One sampled objective, its noisy evaluations, and its largest value."""

    def __init__(self, family: Family, number: int) -> None:
        self.family = family
        names = [str(layer) for layer in range(family.num_dims)]
        # Every rank costs the same but dense, which costs a little more: J is the process itself less 1.
        costs = [1.0] * (NUM_LEVELS - 1) + [1.0 + EXTRA_COST_OF_DENSE]
        self.space = RankSpace(names, [costs] * family.num_dims, coordinates="linear")
        self.surrogate = LossSurrogate(self.space, Objective(1.0))
        self.hyper = gp.Hyperparameters(np.full(family.num_dims, family.length_scale), 1.0, 0.0, 0.0)
        self.rng = np.random.default_rng([TRUTH_STREAM, family.num_dims, number])
        nothing = np.zeros((0, family.num_dims), dtype=np.int64)
        self.truth = SamplePaths(self.posterior(nothing, np.zeros(0)), 1, self.rng, TRUTH_FEATURES)

    def posterior(self, ranks: Ranks, values: np.ndarray) -> Posterior:
        """The posterior given values (n,) at ranks (n, d), with the hyperparameters of the sampled objective."""
        noise = EVALUATION_NOISE**2 * np.eye(len(ranks))
        return self.surrogate.posterior(gp.GaussianProcess(self.space.encode(ranks), values, noise, self.hyper))

    def value(self, ranks: Ranks) -> np.ndarray:
        """The process's true values (m,) at ranks (m, d)."""
        return np.asarray(self.truth(ranks)[:, 0] - self.surrogate.objective.size_term(np.ones(1)))

    def largest(self, visited: Ranks) -> float:
        """The largest value that local searches find, from random points and from points around `visited` (n, d)."""
        pool = [self.space.sample(START_POOL, self.rng), perturb(self.space, visited, START_POOL, self.rng)]
        starts = [part[np.argsort(-self.value(part))[: NUM_STARTS // 2]] for part in pool]
        _, heights = local_search(
            self.truth, np.zeros(NUM_STARTS, dtype=np.int64), np.concatenate(starts), TRUTH_SWEEPS
        )
        return float(heights.max() - self.surrogate.objective.size_term(np.ones(1))[0])


def run_rule(problem: Problem, number: int, rule: str) -> tuple[int, bool, Ranks, Ranks]:
    """Number of evaluations, whether the rule stopped, the incumbent (d,) and the plans visited (n, d)."""
    certificate, remeasures = RULES[rule]
    family = problem.family
    settings = SearchSettings(
        delta=family.delta, delta_is_relative=False, epsilon=EPSILON, certificate=certificate, seed=number
    )
    stop = StopRule(settings)
    rng = np.random.default_rng([RUN_STREAM, family.num_dims, number])
    visited = problem.space.sample(2 * family.num_dims + 2, rng)
    values = problem.value(visited) + EVALUATION_NOISE * rng.standard_normal(len(visited))
    noise = np.full(2, EVALUATION_NOISE**2)
    while True:
        test = stop.test(problem.posterior(visited, values), visited, may_stop=True)
        incumbent = test.incumbent
        if test.met or len(visited) >= MAX_EVALUATIONS:
            return len(visited), test.met, incumbent, visited
        again = remeasures and should_remeasure(test.posterior, incumbent, test.candidate, noise)
        chosen = (incumbent if again else test.candidate)[None]
        visited = np.concatenate([visited, chosen])
        values = np.append(values, problem.value(chosen) + EVALUATION_NOISE * rng.standard_normal())


@dataclass(frozen=True)
class Run:
    """One rule on one problem: evaluations, whether it stopped, and how far the incumbent lies below the best."""

    evaluations: int
    stopped: bool
    regret: float
    seconds: float


def run_problem(family: Family, number: int) -> dict[str, Run]:
    """Every rule on the same sampled objective with the same initial evaluations."""
    problem = Problem(family, number)
    outcomes = {}
    for rule in RULES:
        began = time.perf_counter()
        outcomes[rule] = (*run_rule(problem, number, rule), time.perf_counter() - began)
    largest = problem.largest(np.concatenate([visited for *_, visited, _ in outcomes.values()]))
    return {
        rule: Run(evaluations, stopped, round(largest - float(problem.value(incumbent[None])[0]), 5), round(seconds, 2))
        for rule, (evaluations, stopped, incumbent, _, seconds) in outcomes.items()
    }


def summarize(family: Family, rule: str, runs: Sequence[Run]) -> dict[str, object]:
    """A row of the study: how often the rule stopped, and how often it was then wrong (95 % interval)."""
    stopped = [run for run in runs if run.stopped]
    wrong = sum(run.regret > family.delta for run in stopped)
    low, high = (bound(wrong, len(stopped), INTERVAL_TAIL) for bound in (lower_bound, upper_bound))
    return {
        "dims": family.num_dims,
        "length_scale": family.length_scale,
        "delta": family.delta,
        "rule": rule,
        "problems": len(runs),
        "stopped": len(stopped),
        "wrong": wrong,
        "wrong_low": low,
        "wrong_high": high,
        "median_evaluations": float(np.median([run.evaluations for run in runs])),
        "seconds": round(sum(run.seconds for run in runs), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--problems", type=int, default=200, help="per number of dimensions")
    parser.add_argument("--first", type=int, default=0, help="number of the first problem")
    parser.add_argument("--name", default="certificates", help="of the file in benchmarks/results")
    parser.add_argument("--add", action="store_true", help="continue after the problems that the results file holds")
    arguments = parser.parse_args()
    began = time.perf_counter()
    about: dict[str, Any] = {
        "epsilon": EPSILON,
        "evaluation_noise": EVALUATION_NOISE,
        "max_evaluations_drawn": MAX_EVALUATIONS,
        "levels": NUM_LEVELS,
        "features_of_the_truth": TRUTH_FEATURES,
    }
    pairs = [(family, rule) for family in FAMILIES for rule in RULES]
    runs: dict[tuple[Family, str], list[Run]] = {pair: [] for pair in pairs}
    if arguments.add and (RESULTS / f"{arguments.name}.json").exists():
        earlier = read_results(arguments.name)
        began -= earlier["seconds"]
        runs = {
            pair: [Run(*run) for run in json.loads(done)] for pair, done in zip(pairs, earlier["runs"], strict=True)
        }
    with threadpool_limits(limits=1):
        for number in range(arguments.first + len(runs[pairs[0]]), arguments.first + arguments.problems):
            for family in FAMILIES:
                for rule, run in run_problem(family, number).items():
                    runs[family, rule].append(run)
            rows = [summarize(family, rule, done) for (family, rule), done in runs.items()]
            about["runs"] = [json.dumps([astuple(run) for run in done]) for done in runs.values()]
            write_results(arguments.name, about, rows, began)
            print(number + 1, [(row["stopped"], row["wrong"]) for row in rows], flush=True)


if __name__ == "__main__":
    main()
