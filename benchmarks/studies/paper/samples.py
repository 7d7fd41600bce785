"""The supplement's question of how many images an evaluation takes, and why 50.

    python -m benchmarks.studies.paper.samples MODEL DATA --input-size 64 --runs 0:10

Two things by the number of images: how far an estimate of L is from that of the whole pool, and how far from Gaussian
such estimates are (over random plans and draws); and what the paper's search finds, and spends, with as many.
"""

from typing import Any

import click
import numpy as np
from scipy.stats import kurtosis, skew

from benchmarks.studies.paper.report import tables
from benchmarks.studies.paper.rows import Results, table_command
from benchmarks.studies.paper.subject import Subject
from benchmarks.studies.paper.ways import OURS, Job

SAMPLES = (10, 20, 50, 100, 200)
NUM_PLANS, NUM_DRAWS = 20, 2000
STREAM = 97


def estimates(subject: Subject, samples: int) -> dict[str, Any]:
    """Medians over plans: relative deviation, skewness and excess kurtosis of estimates from `samples` images."""
    rng = np.random.default_rng(STREAM)
    every = np.arange(len(subject.pool))
    plans = subject.space().sample(NUM_PLANS, rng)
    found = []
    for ranks in plans:
        losses = subject.norm.losses(subject.network(ranks), every).values
        means = losses[rng.integers(len(losses), size=(NUM_DRAWS, samples))].mean(1)
        found.append((means.std() / losses.mean(), skew(means), kurtosis(means)))
    deviation, skewness, tails = np.median(np.abs(found), axis=0).tolist()
    return {
        "what": "estimates",
        "samples": samples,
        "plans": NUM_PLANS,
        "deviation": deviation,
        "skewness": skewness,
        "excess_kurtosis": tails,
    }


@table_command("samples", tables.table_of_samples)
@click.option("--gamma", type=float, help="One of the paper's, scaled as its tables are; left out: a middle one.")
def main(subject: Subject, results: Results, runs: tuple[int, ...], gamma: float | None) -> None:
    """Measure what the number of images per evaluation does, for MODEL with the images in DATA."""
    for samples in SAMPLES:
        if not results.has({"what": "estimates", "samples": samples}):
            results.add(estimates(subject, samples))
    gamma = gamma or subject.middle_gamma
    results.fill(subject, [Job(OURS, gamma, seed, samples=samples) for seed in runs for samples in SAMPLES])


if __name__ == "__main__":
    main()
