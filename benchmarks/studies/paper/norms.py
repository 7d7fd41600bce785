"""Figs. 2 and 3: the function norm at several depths against the top-1 error; and the supplement's bound.

    python -m benchmarks.studies.paper.norms MODEL DATA --input-size 64 --plans 60

Random plans: ranks of one layer in three uniform on the paper's scale, so that both mild and destroyed networks are
among them. The norm is estimated on the pool, the error on the test images, as in the paper on other images. Depths are
outputs of compressed layers, evenly spaced, and the network's outputs. With the outputs' norm L goes the bound
risk(f~) - risk(f*) <= K sqrt(L), K = sqrt(2) for cross-entropy, whose gradient is a difference of two distributions.
"""

from collections.abc import Callable
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.studies.paper.report import tables
from benchmarks.studies.paper.rows import Results, table_command
from benchmarks.studies.paper.subject import Subject
from compressor.arrays import Ranks

NUM_DEPTHS = 4  # beside the outputs
OUTPUTS = "outputs"
BATCH_SIZE = 50
STREAM = 96


def depths_of(subject: Subject) -> list[str]:
    """Names of layers, evenly spaced from the first to the last."""
    names = [layer.name for layer in subject.layers]
    picked = np.linspace(0, len(names) - 1, min(NUM_DEPTHS, len(names))).round().astype(int)
    return [names[number] for number in dict.fromkeys(picked.tolist())]


def random_plan(subject: Subject, number: int) -> Ranks:
    """Plan (d,) of this number: a random share of the layers gets random ranks, the others stay dense."""
    rng = np.random.default_rng([STREAM, number])
    space = subject.space()
    ranks = space.sample(1, rng)[0]
    return np.where(rng.random(space.num_dims) < rng.random(), ranks, space.break_even_ranks)


def norms_at_depths(subject: Subject, network: nn.Module) -> dict[str, float]:
    """E||h~ - h*||^2 on the pool, of the outputs of some layers and of the network.

    Both networks run batch by batch: all outputs of a layer would be gigabytes.
    """
    names = depths_of(subject)
    sums = dict.fromkeys([*names, OUTPUTS], 0.0)
    for batch in torch.arange(len(subject.pool)).split(BATCH_SIZE):
        original, found = (outputs_at(subject, each, names, batch) for each in (subject.model, network))
        for name in sums:
            sums[name] += float((found[name] - original[name]).double().flatten(1).square().sum())
    return {name: total / len(subject.pool) for name, total in sums.items()}


def outputs_at(subject: Subject, network: nn.Module, names: list[str], batch: Tensor) -> dict[str, Tensor]:
    """Outputs of these layers and of the network on the images `batch` (m,) of the pool."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: kept.__setitem__(name, output.clone())

    handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        kept[OUTPUTS] = subject.norm.outputs(network, batch)
    finally:
        for handle in handles:
            handle.remove()
    return kept


def measure(subject: Subject, number: int) -> dict[str, Any]:
    """One plan: its norms on the pool, its accuracies and cross-entropy on the test images."""
    ranks = random_plan(subject, number)
    found = subject.evaluate(ranks)
    return {"plan": number, "norms": norms_at_depths(subject, subject.network(ranks)), **found, "ranks": ranks.tolist()}


@table_command("norms", tables.correlations)
@click.option("--plans", "num_plans", default=100, show_default=True, help="Random plans.")
def main(subject: Subject, results: Results, runs: tuple[int, ...], num_plans: int) -> None:
    """Measure norms and errors of random plans of MODEL with the images in DATA; --runs has no part in it."""
    for number in range(num_plans):
        if not results.has({"plan": number}):
            results.add(measure(subject, number))


if __name__ == "__main__":
    main()
