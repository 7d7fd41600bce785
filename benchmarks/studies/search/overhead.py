"""What the Gaussian process, the acquisition and the certificate cost next to the evaluations, on one thread.

A cheap analytic objective replaces the network, so that nearly all of the time is the search's own.

    python -m benchmarks.studies.search.overhead --evaluations 300
"""

import argparse
import time

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.studies.study import write_results
from compressor.arrays import Ranks
from compressor.fidelity.losses import Losses
from compressor.search.evaluation.journal import Journal
from compressor.search.objective import Objective
from compressor.search.optimizer import Search
from compressor.search.problem import SearchProblem
from compressor.search.settings import SearchSettings
from compressor.search.space import RankSpace

NUM_IMAGES = 5000  # more than the evaluations use up
DIMENSIONS = (16, 50)
EVALUATION_SECONDS = 0.5  # what 50 images through a ResNet-18 of 64 px took on two cores, to compare with


def make_search(num_dims: int, settings: SearchSettings) -> Search:
    """A search for ranks of `num_dims` layers whose losses fall as 1 / rank and interact."""
    rng = np.random.default_rng(num_dims)
    break_even_ranks = rng.integers(30, 300, num_dims)
    strengths = 4.0 * rng.lognormal(size=num_dims) / num_dims
    factors = rng.gamma(4.0, 0.25, NUM_IMAGES)  # of the images
    space = RankSpace(
        [str(layer) for layer in range(num_dims)],
        [[100 * rank for rank in range(1, break_even_rank + 1)] for break_even_rank in break_even_ranks],
    )

    def evaluate(ranks: Ranks, indices: np.ndarray) -> Losses:
        single = float((strengths * (1.0 / ranks - 1.0 / break_even_ranks)).sum())
        noise = np.random.default_rng([*ranks.tolist(), int(indices[0])]).gamma(20.0, 0.05, len(indices))
        return Losses(indices, single * (1.0 + 0.3 * single) * factors[indices] * noise)

    return Search(SearchProblem(space, Objective(0.2), evaluate, NUM_IMAGES), settings, Journal())


def measure(num_dims: int, evaluations: int, delta: float) -> dict[str, object]:
    """One search: processor seconds in all, and per evaluation those of fit, acquisition and certificate."""
    began, cpu_began = time.perf_counter(), time.process_time()
    _, record = make_search(num_dims, SearchSettings(max_evaluations=evaluations, delta=delta)).run()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    own_seconds = cpu_seconds * record.surrogate_seconds / seconds
    return {
        "dims": num_dims,
        "delta": delta,
        "evaluations": record.evaluations,
        "stopped_because": record.stopped_because,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "cpu_seconds_per_evaluation": round(own_seconds / record.evaluations, 4),
        "share_beside_evaluations": round(own_seconds / (own_seconds + EVALUATION_SECONDS * record.evaluations), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--evaluations", type=int, default=300, help="of the searches that no certificate stops")
    parser.add_argument("--name", default="overhead", help="of the file in benchmarks/results")
    arguments = parser.parse_args()
    began = time.perf_counter()
    rows = []
    with threadpool_limits(limits=1):
        for num_dims in DIMENSIONS:
            # A delta that no certificate meets, and the default.
            for delta in (1e-9, 0.05):
                rows.append(measure(num_dims, arguments.evaluations, delta))
                print(rows[-1], flush=True)
    write_results(arguments.name, {"evaluation_seconds": EVALUATION_SECONDS, "images": NUM_IMAGES}, rows, began)


if __name__ == "__main__":
    main()
