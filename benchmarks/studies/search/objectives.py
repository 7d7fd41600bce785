"""FC3 compressed by function norm, by risk and by error: the claim of the paper's Tables 3 and 4, and sparsity.

    python -m benchmarks.studies.search.objectives

The paper's 784-1000-1000-10 on Fashion-MNIST, its three layers by SVD of the weights, as there; no reconstruction, so
that only the searches differ. gamma is a multiple of each fidelity's own default, at which a lost output costs as much
as the whole size. 500 of Fashion-MNIST's test images are for the search, all others are the test images here.
"""

import time
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from benchmarks.datasets.fashion import load_test_images, trained_fc3
from benchmarks.studies.study import write_results
from compressor.arrays import Ranks
from compressor.data.images import ImageSet
from compressor.factorization.base import Factors
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.records import Fidelity
from compressor.fidelity.risk import Risk, compare_risks
from compressor.network.layers import FoundLayer, compressible, factorized_ranks, find_layers
from compressor.network.pruning import count_prunable, pruned_copy
from compressor.network.surgery import build_candidate
from compressor.pipeline.stages.factorize import weight_factors
from compressor.search.evaluation.journal import Journal
from compressor.search.objective import Objective
from compressor.search.optimizer import Search, SearchSettings
from compressor.search.problem import SearchProblem
from compressor.search.space import RankSpace
from compressor.search.sparsity_space import SparsitySpace

SEARCH_IMAGES = 500
CPU = torch.device("cpu")
# Times the default gamma, and images per evaluation.
FACTORS: dict[Fidelity, tuple[float, ...]] = {"norm": (0.5, 1, 2, 5, 10), "risk": (0.5, 1, 2, 5), "error": (0.5, 1, 2)}
SAMPLES = (50, 200)
FIXED = (0.1, 0.2, 0.3, 0.4, 0.5)  # shares pruned afterwards from a plan found without pruning


@dataclass(frozen=True)
class Bench:
    """FC3, its factors, and the images of search and test."""

    model: nn.Module
    layers: list[FoundLayer]
    factors: dict[str, Factors]
    pool: ImageSet
    test_images: ImageSet

    def space(self, sparse: bool) -> RankSpace:
        """Ranks, with the share of weights kept where `sparse`."""
        ranks = RankSpace([x.name for x in self.layers], [x.params_by_rank() for x in self.layers])
        others = count_prunable(self.model) - sum(layer.params for layer in self.layers)
        return SparsitySpace(ranks, others) if sparse else ranks

    def candidate(self, space: RankSpace, point: Ranks) -> nn.Module:
        """The network of a plan."""
        kept = factorized_ranks(self.layers, space.layer_ranks(point))
        return pruned_copy(build_candidate(self.model, self.factors, kept), space.prune_fraction(point))


def make_bench() -> Bench:
    """FC3 as `benchmarks.datasets.fashion` trains it."""
    images = load_test_images()
    pool, test_images = images.split(SEARCH_IMAGES, seed=0)
    model = trained_fc3().requires_grad_(False)
    layers = compressible(find_layers(model, images.batch([0])))
    factors = {layer.name: weight_factors(layer) for layer in layers}
    return Bench(model, layers, factors, pool, test_images)


def run(bench: Bench, kind: Fidelity, factor: float, samples: int, seed: int, sparse: bool) -> dict[str, Any]:
    """One search, and its plan on the test images."""
    norm = FunctionNorm(bench.model, bench.pool, CPU)
    measure = norm if kind == "norm" else Risk(norm, kind)
    objective, space = Objective(factor / measure.uninformative_loss), bench.space(sparse)
    began = time.process_time()
    problem = SearchProblem(
        space,
        objective,
        lambda ranks, images: measure.losses(bench.candidate(space, ranks), images),
        len(bench.pool),
        measure.noise_spec,
    )
    ranks, record = Search(problem, SearchSettings(samples=samples, seed=seed), Journal()).run()
    shares = (0.0, *FIXED) if kind == "norm" and not sparse else (0.0,)
    return {
        "fidelity": kind,
        "factor": factor,
        "gamma": objective.gamma,
        "samples": samples,
        "seed": seed,
        "sparse": sparse,
        "cpu_seconds": time.process_time() - began,
        "evaluations": record.evaluations,
        "image_passes": record.image_passes,
        "stopped_because": record.stopped_because,
        "z_rms": record.calibration.z_rms,
        "posterior_mean": record.objective,
        "posterior_sd": record.objective_sd,
        "ranks": space.layer_ranks(ranks).tolist(),
        **evaluate_plan(bench, kind, objective, space, ranks, shares),
    }


def evaluate_plan(
    bench: Bench, kind: Fidelity, objective: Objective, space: RankSpace, point: Ranks, shares: tuple[float, ...]
) -> dict[str, Any]:
    """The plan on the test images, and J where shares of its weights are pruned afterwards."""
    norm = FunctionNorm(bench.model, bench.test_images, CPU)
    measure, every = norm if kind == "norm" else Risk(norm, kind), np.arange(len(bench.test_images))
    network, ratio = bench.candidate(space, point), float(space.ratio(point[None])[0])
    outputs, labels = norm.outputs(network, torch.from_numpy(every)), bench.test_images.labels
    assert labels is not None
    risk = compare_risks(norm.targets, outputs, labels)
    pruned = {share: measure.losses(pruned_copy(network, share), every).mean for share in shares}
    values = {
        share: float(objective.value(np.array(loss), np.array(ratio * (1 - share)))) for share, loss in pruned.items()
    }
    best = max(values, key=lambda share: values[share])
    return {
        "ratio": ratio,
        "prune_fraction": space.prune_fraction(point),
        "objective": values[0.0],
        "best_fixed_prune": best,
        "objective_fixed_prune": values[best],
        "relative": measure.losses(network, every).function_norm / norm.output_energy,
        "risk_original": risk.original,
        "risk": risk.compressed,
        "top1_original": share_right(norm.targets, labels),
        "top1": share_right(outputs, labels),
    }


def share_right(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of right decisions."""
    return float((outputs.argmax(1) == labels).double().mean())


@click.command()
@click.option("--seeds", default=3, show_default=True)
@click.option("--name", default="objectives", show_default=True, help="Name of the results file.")
def main(seeds: int, name: str) -> None:
    """Run the study and write benchmarks/results/NAME.json."""
    began = time.perf_counter()
    bench, rows = make_bench(), []
    jobs = [
        (kind, factor, samples, sparse)
        for kind, factors in FACTORS.items()
        for factor in factors
        for samples in (SAMPLES if kind != "norm" else SAMPLES[:1])
        for sparse in ((False, True) if samples == SAMPLES[0] else (False,))
    ]
    for kind, factor, samples, sparse in jobs:
        for seed in range(seeds):
            rows.append(run(bench, kind, factor, samples, seed, sparse))
            row = rows[-1]
            click.echo(
                f"{kind} x {factor:g}, {samples} images, {'sparse' if sparse else 'dense'}, seed {seed}: "
                f"R {row['ratio']:.4f}, J {row['objective']:.4f}, top-1 {100 * row['top1']:.1f}, "
                f"{row['evaluations']} evaluations, {row['cpu_seconds']:.1f} s, {row['stopped_because']}",
                err=True,
            )
    about = {
        "network": "FC3 (784-1000-1000-10) on Fashion-MNIST",
        "evaluated_on": len(bench.test_images),
        "seeds": seeds,
    }
    write_results(name, about, rows, began)


if __name__ == "__main__":
    main()
