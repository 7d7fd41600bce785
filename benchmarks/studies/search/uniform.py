"""The searched plan against every uniform plan (all layers at the same fraction of their break-even ranks).

    python -m benchmarks.studies.search.uniform MODEL DATA --input-size 64

Both use the weights' own factors, so that only the plans differ, and are compared by the same objective on test images.
L does not depend on gamma, so the uniform plans are evaluated once.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.studies.loading import load_squares
from benchmarks.studies.study import write_results
from compressor.arrays import Ranks
from compressor.data.images import MAX_IMAGES, ImageSet
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.losses import Losses
from compressor.network.layers import FoundLayer, compressible, factorized_ranks, find_layers
from compressor.network.surgery import build_candidate
from compressor.pipeline.compress import compress
from compressor.pipeline.settings import Settings
from compressor.pipeline.stages.factorize import weight_factors
from compressor.progress import progress_for_stderr
from compressor.report.records import Report
from compressor.search.objective import Objective
from compressor.search.optimizer import SearchSettings
from compressor.search.space import RankSpace

FRACTIONS = (
    *(0.001, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2),
    *(0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 1.0),
)
NUM_TEST = 2000


class PlanEvaluator:
    """L of any plan on test images."""

    def __init__(self, model: torch.nn.Module, images: ImageSet) -> None:
        self._model = model
        self._layers: list[FoundLayer] = compressible(find_layers(model, images.batch([0])))
        self.space = RankSpace([x.name for x in self._layers], [x.params_by_rank() for x in self._layers])
        self._factors = {layer.name: weight_factors(layer) for layer in self._layers}
        self._norm = FunctionNorm(model, images, torch.device("cpu"))
        self._every = np.arange(len(images))

    def losses(self, ranks: Ranks) -> Losses:
        """Per-image losses of the plan with `ranks` (d,)."""
        kept = factorized_ranks(self._layers, ranks)
        return self._norm.losses(build_candidate(self._model, self._factors, kept), self._every)

    def ratio(self, ranks: Ranks) -> float:
        """R of the plan."""
        return float(self.space.ratio(ranks[None])[0])


def compare(evaluator: PlanEvaluator, gamma: float, ours: Ranks, uniform: dict[float, Losses]) -> dict[str, Any]:
    """J of the searched plan and of the best uniform plan, and the standard error of their difference (same images)."""
    objective = Objective(gamma)

    def value(losses: Losses, ratio: float) -> float:
        return float(objective.value(np.array(losses.mean), np.array(ratio)))

    ratios = {fraction: evaluator.ratio(evaluator.space.uniform(fraction)) for fraction in uniform}
    best = max(uniform, key=lambda fraction: value(uniform[fraction], ratios[fraction]))
    mine = evaluator.losses(ours)
    differences = gamma * (uniform[best].values - mine.values)
    return {
        "objective": value(mine, evaluator.ratio(ours)),
        "ratio": evaluator.ratio(ours),
        "function_norm": mine.mean,
        "best_uniform_objective": value(uniform[best], ratios[best]),
        "best_uniform_fraction": best,
        "best_uniform_ratio": ratios[best],
        "best_uniform_function_norm": uniform[best].mean,
        "advantage": value(mine, evaluator.ratio(ours)) - value(uniform[best], ratios[best]),
        "advantage_stderr": float(differences.std(ddof=1) / np.sqrt(len(differences))),
    }


def summarize(report: Report) -> dict[str, Any]:
    """The run's own figures."""
    assert report.search is not None
    record = report.latency["CPUExecutionProvider"]
    return {
        "evaluations": report.search.evaluations,
        "image_passes": report.search.image_passes,
        "search_seconds": report.search.seconds,
        "surrogate_seconds": report.search.surrogate_seconds,
        "seconds": report.seconds,
        "stopped_because": report.search.stopped_because,
        "pointwise": report.search.certificate.pointwise,
        "delta": report.search.certificate.delta,
        "macs_ratio": report.macs.compressed / report.macs.original,
        "onnx_bytes_ratio": report.onnx_bytes.compressed / report.onnx_bytes.original,
        "latency_ratio": record.ratio,
        "latency_ratio_low": record.ratio_low,
        "latency_ratio_high": record.ratio_high,
        "export_check": report.export_check.max_rel_error,
        "top1_original": report.top1.original if report.top1 else None,
        "top1_compressed": report.top1.compressed if report.top1 else None,
    }


@click.command()
@click.argument("model_path", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--input-size", type=int, required=True)
@click.option("--gammas", default="0.003,0.01,0.03,0.1", show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--name", default="uniform", show_default=True, help="Name of the results file.")
def main(model_path: Path, data: Path, input_size: int, gammas: str, seeds: int, name: str) -> None:
    """Run the study and write benchmarks/results/NAME.json."""
    began = time.perf_counter()
    progress = progress_for_stderr()
    loaded, images, _ = load_squares(model_path, data, input_size, NUM_TEST + MAX_IMAGES)
    test_images, others = images.split(min(NUM_TEST, max(len(images) - MAX_IMAGES, len(images) // 2)), seed=0)
    evaluator = PlanEvaluator(loaded.model, test_images)
    uniform = {}
    with progress.stage("uniform plans", len(FRACTIONS)) as stage:
        for count, fraction in enumerate(FRACTIONS):
            uniform[fraction] = evaluator.losses(evaluator.space.uniform(fraction))
            stage.update(count + 1)
    rows = []
    for gamma in map(float, gammas.split(",")):
        for seed in range(seeds):
            progress.log(f"gamma {gamma:g}, seed {seed}")
            settings = Settings(
                gamma=gamma,
                method="spatial",
                factors="weight",
                recalibrate=False,
                search=SearchSettings(seed=seed),
            )
            with tempfile.TemporaryDirectory() as folder:
                result = compress(loaded.model, others, Path(folder) / "out", settings, progress=progress)
            dense = evaluator.space.break_even_ranks.tolist()
            ranks = np.array([row.rank or last for row, last in zip(result.plan.layers, dense, strict=True)])
            row = {"gamma": gamma, "seed": seed} | compare(evaluator, gamma, ranks, uniform) | summarize(result.report)
            rows.append(row)
            progress.log(f"J {row['objective']:.4f}, best uniform {row['best_uniform_objective']:.4f}")
    about = {"network": loaded.arch, "evaluated_on": len(test_images), "layers": len(evaluator.space.names)}
    click.echo(write_results(name, about, rows, began))


if __name__ == "__main__":
    main()
