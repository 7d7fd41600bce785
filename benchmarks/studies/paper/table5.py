"""Table 5: the stages of VGG-16's recipe, by the paper's search and by this project's default.

    python -m benchmarks.studies.paper.table5 TRAIN DATA
    python -m benchmarks.studies.paper.table5 TRAIN DATA --model vgg16_bn.pth --gamma 0.0001

Convolutions by spatial factors, five epochs of fine-tuning, linear layers by SVD, five epochs, pruning: the command
line's `--recipe vgg`, with and without `--preset paper`. Without --model, a small VGG with batch normalization is
trained on TRAIN first (build/). Accuracies are on test images of DATA. Without folders, scikit-learn's handwritten
digits are written as two (build/digits).
"""

import tempfile
from pathlib import Path

import click

from benchmarks.datasets.small_vgg import SIZE
from benchmarks.demo.class_folders import write_class_folders
from benchmarks.demo.digits import NUM_TEST_IMAGES, load_digits_images
from benchmarks.studies.network.recipe import stage_rows, trained_vgg
from benchmarks.studies.paper.report import tables
from benchmarks.studies.paper.rows import Results
from benchmarks.studies.study import EXPORT_PROGRAM, RESULTS, read_results, run_reported

BUILD = Path("build")
WAYS: dict[str, list[str]] = {"paper": ["--preset", "paper"], "bocompress": []}


def digits_folders() -> tuple[Path, Path]:
    """Folders of handwritten digits to train and to test on, written where they are missing."""
    folders = BUILD / "digits" / "train", BUILD / "digits" / "test"
    images, labels = load_digits_images()
    parts = slice(None, -NUM_TEST_IMAGES), slice(-NUM_TEST_IMAGES, None)
    for folder, part in zip(folders, parts, strict=True):
        if not folder.exists():
            write_class_folders(folder, images[part], labels[part])
    return folders


def require_folder(path: Path) -> Path:
    """The path, if it is a folder.

    Raises:
        click.UsageError: it is none.
    """
    if not path.is_dir():
        raise click.UsageError(f"{path} is no folder of images")
    return path


@click.command()
@click.argument("train", type=click.Path(path_type=Path), required=False)
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option(
    "--model", type=click.Path(path_type=Path, exists=True), help="A VGG; left out: a small one, trained here."
)
@click.option("--input-size", type=int, help="Side of the input of --model; left out: the published transform.")
@click.option("--gamma", default="auto", show_default=True)
@click.option("--train-images", default=20_000, show_default=True, help="Of TRAIN, that the small VGG is trained on.")
@click.option("--tune-images", default=8_000, show_default=True, help="Of TRAIN, that stages tune on.")
@click.option("--max-images", default=4000, show_default=True, help="Of DATA.")
@click.option("--name", help="Of the results file; left out: paper-table5-MODEL.")
def main(
    train: Path | None,
    data: Path | None,
    model: Path | None,
    input_size: int | None,
    gamma: str,
    train_images: int,
    tune_images: int,
    max_images: int,
    name: str | None,
) -> None:
    """Measure the rows of Table 5. TRAIN and DATA are folders with a subfolder per class; left out: digits."""
    if train is not None and data is None:
        raise click.UsageError("TRAIN needs DATA: the networks are tested on images that they are not tuned on")
    if train is None or data is None:
        train, data = digits_folders()
    about = {"gamma": gamma, "trained_on": None if model else train_images, "tuned_on": tune_images}
    of = model.stem if model else f"small-vgg-{train.parent.name}"
    results = Results(name or f"paper-table5-{of}", about, RESULTS)
    for way, options in WAYS.items():
        if results.has({"way": way}):
            continue
        path = model or trained_vgg(require_folder(train), train_images, BUILD / f"{of}.pt")
        words = [path, "--data", require_folder(data), "--max-images", max_images, "--train-data", train]
        words += ["--max-train-images", tune_images, "--recipe", "vgg", "--gamma", gamma, *options]
        side = input_size if model else SIZE
        words += [] if model else ["--trust-pickle"]
        words += ["--input-size", side] if side else []
        with tempfile.TemporaryDirectory() as folder:
            report = run_reported(EXPORT_PROGRAM, *words, "--out", Path(folder) / "out")
        latency = report.latency["CPUExecutionProvider"].ratio
        for row in stage_rows(report, ()):
            del row["killed"]
            tests = {"evaluated_on": report.images.test_images, "latency": latency}
            results.add({"way": way, **row, **tests})
    click.echo(tables.table_5(read_results(results.name)))


if __name__ == "__main__":
    main()
