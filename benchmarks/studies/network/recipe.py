"""The paper's recipe for VGG, stage by stage, killed once at every stage and resumed (its Table 5).

    python -m benchmarks.studies.network.recipe TRAIN DATA

TRAIN and DATA are folders of images in ten classes. A small VGG with batch normalization is trained once on TRAIN
(build/small-vgg.pt) and compressed with `--recipe vgg` on the command line: in one uninterrupted run, and in one that
is killed in the middle of each stage, as its files show, and resumed. Accuracies are on test images of DATA.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file

from benchmarks.datasets.small_vgg import SIZE, log, save_small_vgg, train_small_vgg
from benchmarks.studies.study import EXPORT_PROGRAM, write_results
from compressor.data.folders import load_folder
from compressor.data.transforms import Transform
from compressor.pipeline.recipe import Recipe, load_recipe
from compressor.pipeline.stages.recorded import STAGE
from compressor.report.records import Report

CACHE = Path("build/small-vgg.pt")
EVALUATIONS_BEFORE_KILL = 12
SECONDS_BETWEEN_POLLS = 0.02


def trained_vgg(train: Path, count: int, cache: Path = CACHE) -> Path:
    """The checkpoint of the network, trained where it is missing."""
    if not cache.exists():
        images = load_folder(train, Transform(SIZE, SIZE), count, seed=0)
        assert images.labels is not None
        inputs = images.batch(slice(None))
        save_small_vgg(train_small_vgg(inputs, images.labels, on_step=log), cache)
    return cache


def is_under_way(kind: str, folder: Path) -> bool:
    """Whether a stage has begun and left something to resume from."""
    if (folder / STAGE).exists():
        return False
    if kind == "compress":
        journal = folder / "search.jsonl"
        return journal.exists() and journal.read_bytes().count(b"\n") > EVALUATIONS_BEFORE_KILL
    return (folder / "finetune.safetensors").exists() if kind == "finetune" else folder.exists()


def run(arguments: Sequence[str], kill_when: Callable[[], bool] = lambda: False) -> bool:
    """Run the command; whether it was killed before its end."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", EXPORT_PROGRAM, *arguments], stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        if kill_when():
            process.kill()
            process.wait()
            return True
        time.sleep(SECONDS_BETWEEN_POLLS)
    if process.returncode:
        raise SystemExit(process.returncode)
    return False


def run_interrupted(arguments: Sequence[str], out: Path, recipe: Recipe) -> list[str]:
    """Run the recipe to its end, killed once in every stage; the stages in which it was."""
    killed: list[str] = []
    for stage, name in zip(recipe.stage, recipe.folders, strict=True):
        folder = out / "stages" / name
        resume = ["--resume"] if out.exists() else []
        if run([*arguments, "--out", str(out), *resume], lambda: is_under_way(stage.kind, folder)):  # noqa: B023
            killed.append(name.partition("-")[2])
        click.echo(f"killed in {', '.join(killed)}", err=True)
    run([*arguments, "--out", str(out), "--resume"])
    return killed


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same network, bit by bit."""
    weights = [load_file(folder / "compressed.safetensors") for folder in (one, other)]
    return weights[0].keys() == weights[1].keys() and all(
        torch.equal(value, weights[1][name]) for name, value in weights[0].items()
    )


def stage_rows(report: Report, killed: Sequence[str]) -> list[dict[str, Any]]:
    """The columns of the paper's Table 5, and the function norm of each network."""
    return [
        {
            "network": stage.name,
            "what": stage.what,
            "top1": stage.metrics.top1,
            "top5": stage.metrics.top5,
            "ratio": stage.ratio,
            "function_norm": stage.metrics.function_norm,
            "seconds": round(stage.seconds, 1),
            "killed": stage.name in killed,
        }
        for stage in report.stages
    ]


@click.command()
@click.argument("train", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--recipe", "recipe_name", default="vgg", show_default=True)
@click.option("--gamma", default="auto", show_default=True)
@click.option("--train-images", default=20_000, show_default=True, help="Of TRAIN, that the network is trained on.")
@click.option("--tune-images", default=8_000, show_default=True, help="Of TRAIN, that stages tune on.")
@click.option("--max-images", default=4000, show_default=True, help="Of DATA.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("build/recipe"), show_default=True)
@click.option("--name", default="recipe", show_default=True, help="Name of the results file.")
def main(
    train: Path,
    data: Path,
    recipe_name: str,
    gamma: str,
    train_images: int,
    tune_images: int,
    max_images: int,
    folder: Path,
    name: str,
) -> None:
    """Run the study and write benchmarks/results/NAME.json. FOLDER must not exist yet."""
    began = time.perf_counter()
    model = trained_vgg(train, train_images)
    arguments = [str(model), "--trust-pickle", "--input-size", str(SIZE), "--data", str(data)]
    arguments += ["--max-images", str(max_images), "--recipe", recipe_name, "--gamma", gamma]
    arguments += ["--train-data", str(train), "--max-train-images", str(tune_images)]
    run([*arguments, "--out", str(folder / "whole")])
    killed = run_interrupted(arguments, folder / "killed", load_recipe(recipe_name))
    report = Report.model_validate_json((folder / "killed" / "report.json").read_text(encoding="utf-8"))
    about = {
        "recipe": recipe_name,
        "trained_on": train_images,
        "tuned_on": tune_images,
        "evaluated_on": report.images.test_images,
        "params": report.params.original,
        "killed": killed,
        "same_as_undisturbed": same_weights(folder / "whole", folder / "killed"),
        "latency_ratio": report.latency["CPUExecutionProvider"].ratio,
        "export_check": report.export_check.max_rel_error,
    }
    click.echo(write_results(name, about, stage_rows(report, killed), began))


if __name__ == "__main__":
    main()
