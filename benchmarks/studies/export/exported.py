"""FC3 from the command line by function norm, risk and error: what users get, and how long it takes.

    python -m benchmarks.studies.export.exported

All options but fidelity, gamma, seed and number of images are left at their defaults: factors are fitted, layers
reconstructed, and the file is written, verified and measured. gamma is each fidelity's default times a factor.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.datasets import fashion
from benchmarks.studies.study import EXPORT_PROGRAM, run_reported, write_results
from compressor.fidelity.records import Fidelity

MAX_IMAGES = 10_000
FACTORS = (1.0, 2.0)  # times the default gamma
FIDELITIES: tuple[Fidelity, ...] = ("norm", "risk", "error")


def run(data: Path, fidelity: Fidelity, gamma: float | None, seed: int, out: Path) -> dict[str, Any]:
    """Run one export in a process of its own, and return the row of its report."""
    options = {
        "--data": data / "images",
        "--input-size": fashion.SIDE,
        "--mean": "0,0,0",
        "--std": "1,1,1",
        "--max-images": MAX_IMAGES,
        "--fidelity": fidelity,
        "--gamma": gamma or "auto",
        "--seed": seed,
        "--out": out,
    }
    typed = [word for pair in options.items() for word in pair]
    began = time.perf_counter()
    report = run_reported(EXPORT_PROGRAM, data / "fc3-fashion.pt", "--trust-pickle", *typed)
    assert report.search is not None
    assert report.top1 is not None
    return {
        "fidelity": fidelity,
        "seed": seed,
        "gamma": report.gamma,
        "ratio": report.params.compressed / report.params.original,
        "top1_original": report.top1.original,
        "top1": report.top1.compressed,
        "evaluated_on": report.images.test_images,
        "evaluations": report.search.evaluations,
        "image_passes": report.search.image_passes,
        "search_seconds": report.search.seconds,
        "seconds": time.perf_counter() - began,
        "certified": report.search.certificate.met,
    }


@click.command()
@click.option("--seeds", default=3, show_default=True)
@click.option("--name", default="exported", show_default=True, help="Name of the results file.")
def main(seeds: int, name: str) -> None:
    """Run the study and write benchmarks/results/NAME.json, anew after every run."""
    began, rows = time.perf_counter(), list[dict[str, Any]]()
    about = {"network": "FC3 (784-1000-1000-10) on Fashion-MNIST", "seeds": seeds}
    with tempfile.TemporaryDirectory() as folder:
        fashion.main(Path(folder))
        for fidelity in FIDELITIES:
            default: float | None = None
            for factor in FACTORS:
                for seed in range(seeds):
                    gamma = None if default is None else factor * default
                    out = Path(folder) / f"{fidelity}-{factor:g}-{seed}"
                    rows.append({"factor": factor} | run(Path(folder), fidelity, gamma, seed, out))
                    click.echo(rows[-1], err=True)
                    write_results(name, about, rows, began)
                default = default or rows[-1]["gamma"]


if __name__ == "__main__":
    main()
