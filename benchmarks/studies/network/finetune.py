"""What fine-tuning gives back at a strong compression, and which way of it.

    python -m benchmarks.studies.network.finetune MODEL DATA TRAIN --input-size 64

A plan is searched, and all its ranks are scaled by one factor until the convolutions hold a given share of their
weights. The network, recalibrated, or of bare factors, fitted to the layers' inputs or of the weights alone as in the
paper, is tuned in several ways from the same start, on images of TRAIN; function norm and top-1 are on images of DATA
that neither search nor tuning saw.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from torch import nn

from benchmarks.studies.loading import load_squares
from benchmarks.studies.study import earlier_rows, write_results
from compressor.data.images import load_folder
from compressor.factorization.records import FactorChoice
from compressor.fidelity.evaluation import TestEvaluator
from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.layers import FoundLayer
from compressor.pipeline.prepare import function_norm, prepare
from compressor.pipeline.settings import Settings
from compressor.pipeline.stages.build import build
from compressor.pipeline.stages.finetune import tune_network
from compressor.pipeline.stages.search_ranks import RankSearch
from compressor.pipeline.state import Job, SearchResult
from compressor.progress import progress_for_stderr
from compressor.recovery.schedules import TuneSettings

FACTOR_STEP = 0.01
WAYS = {
    "teacher, cosine": TuneSettings(),
    "teacher, step": TuneSettings(schedule="step"),
    "teacher, cyclic": TuneSettings(schedule="cyclic"),
    "labels, step": TuneSettings(by="labels", schedule="step"),
    "labels, cosine": TuneSettings(by="labels"),
    "labels, cosine, 0.001": TuneSettings(by="labels", learning_rate=1e-3),
}


def share_of_convs(layers: Sequence[FoundLayer], ranks: Sequence[int]) -> float:
    """Weights of the searched convolutions at these ranks over those they had."""
    convs = [(layer, rank) for layer, rank in zip(layers, ranks, strict=True) if layer.kind == "conv"]
    return sum(layer.params_by_rank()[rank - 1] for layer, rank in convs) / sum(layer.params for layer, _ in convs)


def scale_ranks(layers: Sequence[FoundLayer], ranks: Sequence[int], share: float) -> list[int]:
    """The ranks times the largest factor at which the convolutions keep at most this share; dense layers stay."""
    factor = 1.0
    while True:
        scaled = [
            rank if rank >= layer.dense_rank else max(1, round(factor * rank))
            for layer, rank in zip(layers, ranks, strict=True)
        ]
        if share_of_convs(layers, scaled) <= share or factor < 2 * FACTOR_STEP:
            return scaled
        factor -= FACTOR_STEP


def compressed_to(job: Job, share: float) -> tuple[nn.Module, SearchResult]:
    """The job's network at this share of its convolutions' weights, recalibrated."""
    norm = function_norm(job)
    with RankSearch(job, norm, resume=False) as search:
        found = search.run()
    result = replace(found, ranks=scale_ranks(found.layers, found.ranks, share))
    return build(job, result, norm).network, result


def run_way(job: Job, network: nn.Module, way: str, settings: TuneSettings) -> dict[str, Any]:
    """One row: the network tuned in one way."""
    tuned, record = tune_network(job, network, settings, job.folder / "finetune.safetensors", {})
    del tuned
    before, after = record.before, record.after
    assert before is not None
    assert after is not None
    return {
        "way": way,
        "factors": job.settings.factors,
        "recalibrated": job.settings.recalibrate,
        "epochs": record.rows[-1].epoch,
        "kept_epoch": record.kept_epoch,
        "learning_rate": record.learning_rate,
        "train_images": record.train_images,
        "norm_before": before.function_norm,
        "norm_after": after.function_norm,
        "top1_before": before.top1,
        "top1_after": after.top1,
        "check_losses": [row.check_loss for row in record.rows],
        "seconds": round(record.seconds, 1),
    }


@click.command()
@click.argument("model_path", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("train", type=click.Path(path_type=Path))
@click.option("--input-size", type=int, required=True)
@click.option("--gamma", default=0.03, show_default=True, help="Of the search, before ranks are scaled.")
@click.option("--share", default=0.05, show_default=True, help="Of the convolutions' weights that is left.")
@click.option("--epochs", default=5, show_default=True)
@click.option("--max-images", default=10_000, show_default=True, help="Of DATA.")
@click.option("--train-images", default=20_000, show_default=True, help="Of TRAIN, at most.")
@click.option("--factors", type=click.Choice(["auto", "weight"]), default="auto", show_default=True)
@click.option("--recalibrate/--no-recalibrate", default=True, show_default=True, help="Before tuning.")
@click.option("--ways", default=";".join(WAYS), show_default=True, help="Separated by semicolons.")
@click.option("--add", is_flag=True, help="Keep the rows that the results file holds already.")
@click.option("--name", default="finetune", show_default=True, help="Name of the results file.")
def main(
    model_path: Path,
    data: Path,
    train: Path,
    input_size: int,
    gamma: float,
    share: float,
    epochs: int,
    max_images: int,
    train_images: int,
    factors: FactorChoice,
    recalibrate: bool,
    ways: str,
    add: bool,
    name: str,
) -> None:
    """Run the study and write benchmarks/results/NAME.json, anew after every way."""
    began = time.perf_counter()
    loaded, images, transform = load_squares(model_path, data, input_size, max_images)
    to_train_on = load_folder(train, transform, train_images, seed=0)
    rows, began = earlier_rows(name, add, began)
    with tempfile.TemporaryDirectory() as folder:
        tune = TuneSettings(epochs=epochs)
        settings = Settings(gamma=gamma, factors=factors, recalibrate=recalibrate, tune=tune)
        job = prepare(
            loaded.model, images, Path(folder) / "out", settings, None, progress_for_stderr(), False, to_train_on
        )
        network, result = compressed_to(job, share)
        about = {
            "network": loaded.arch,
            "gamma": gamma,
            "share": share_of_convs(result.layers, result.ranks),
            "epochs": epochs,
        }
        top1_original = (
            TestEvaluator(FunctionNorm(job.original, job.test_images, job.device)).evaluate(job.original).top1
        )
        for way in ways.split(";"):
            row = run_way(job, network, way, replace(WAYS[way], epochs=epochs))
            rows.append(row | {"top1_original": top1_original, "evaluated_on": len(job.test_images)})
            click.echo(rows[-1], err=True)
            write_results(name, about, rows, began)


if __name__ == "__main__":
    main()
