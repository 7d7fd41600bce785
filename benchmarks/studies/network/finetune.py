"""What fine-tuning regains after strong compression, and which way of it is best.

    python -m benchmarks.studies.network.finetune MODEL DATA TRAIN --input-size 64

A plan is searched, and all its ranks are scaled by one factor until the convolutions hold a given share of their
weights. The network, with or without layer-wise reconstruction, its factors fitted to the layers' inputs or those of
the weights alone as in the paper, is fine-tuned in several ways from the same start, on images of TRAIN. Function norm
and top-1 are on test images of DATA.
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
from compressor.data.folders import load_folder
from compressor.factorization.records import FactorChoice
from compressor.fidelity.evaluation import TestEvaluator
from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.layers import FoundLayer
from compressor.pipeline.context import Context
from compressor.pipeline.prepare import prepare
from compressor.pipeline.settings import Settings
from compressor.pipeline.stage import run_stages
from compressor.pipeline.stages.build import build
from compressor.pipeline.stages.cost import TabulateCosts
from compressor.pipeline.stages.evaluate_original import EvaluateOriginal
from compressor.pipeline.stages.factorize import Factorize
from compressor.pipeline.stages.finetune import tune_network
from compressor.pipeline.stages.search_ranks import RankSearch
from compressor.pipeline.state import SearchResult, State, needed
from compressor.progress import progress_for_stderr
from compressor.recovery.settings import TuneSettings

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


def compress_to(context: Context, share: float) -> tuple[nn.Module, SearchResult]:
    """The network at this share of its convolutions' weights, reconstructed if the settings say so, and its plan."""
    state = run_stages([EvaluateOriginal(), Factorize(), TabulateCosts()], context, State(context.original))
    with RankSearch(context, state) as search:
        found = search.run()
    result = replace(found, ranks=scale_ranks(_layers(found), found.ranks, share))
    return build(context, result, needed(state.norm, "a function norm")).network, result


def _layers(result: SearchResult) -> list[FoundLayer]:
    """The plan's layers, of which none loses channels."""
    return [layer for layer in result.layers if isinstance(layer, FoundLayer)]


def run_way(context: Context, network: nn.Module, way: str, settings: TuneSettings) -> dict[str, Any]:
    """The row of the network fine-tuned in one way."""
    _, record = tune_network(context, network, settings, {"way": way})
    before, after = record.before, record.after
    assert before is not None
    assert after is not None
    return {
        "way": way,
        "factors": context.settings.factors,
        "recalibrated": context.settings.recalibrate,
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
@click.option("--recalibrate/--no-recalibrate", default=True, show_default=True, help="Before fine-tuning.")
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
    training_images = load_folder(train, transform, train_images, seed=0)
    rows, began = earlier_rows(name, add, began)
    with tempfile.TemporaryDirectory() as folder:
        tune = TuneSettings(epochs=epochs)
        settings = Settings(gamma=gamma, factors=factors, recalibrate=recalibrate, tune=tune)
        context = prepare(
            loaded.model, images, Path(folder) / "out", settings, None, progress_for_stderr(), False, training_images
        )
        network, result = compress_to(context, share)
        about = {
            "network": loaded.arch,
            "gamma": gamma,
            "share": share_of_convs(_layers(result), result.ranks),
            "epochs": epochs,
        }
        evaluator = TestEvaluator(FunctionNorm(context.original, context.test_images, context.device))
        top1_original = evaluator.evaluate(context.original).top1
        for way in ways.split(";"):
            row = run_way(context, network, way, replace(WAYS[way], epochs=epochs))
            rows.append(row | {"top1_original": top1_original, "evaluated_on": len(context.test_images)})
            click.echo(rows[-1], err=True)
            write_results(name, about, rows, began)


if __name__ == "__main__":
    main()
