"""What the whole job costs, in passes of the original over the images that it was given, and the memory it takes.

    python -m benchmarks.studies.network.job --small MODEL IMAGES --photos IMAGES [--mobilenet MODEL]

Networks without a checkpoint have random weights: their results mean nothing, their times and memory do. Each job is a
process of its own with the defaults; the pass is timed in the same process (`seconds_per_image` of the report).
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.studies.export.coverage import initialize
from benchmarks.studies.study import EXPORT_PROGRAM, earlier_rows, run_reported, write_results
from compressor.data.synthetic import synthetic_images
from compressor.network.architectures import import_torchvision, published_transform
from compressor.report.records import Report

# What a process holds that has read its modules and does nothing yet.
IDLE_PROGRAM = (
    "import torchvision, compressor.cli.commands, compressor.pipeline.compress; "
    "from compressor.process.memory import own_peak_bytes; print(own_peak_bytes())"
)
DELIVERY = ("evaluate", "export", "measure latency", "quantize", "write formats", "write report")


@dataclass(frozen=True)
class Case:
    """One job: the architecture, what `--model` gives its weights (None: random), its images, their size and number."""

    arch: str
    model: Path | None
    images: Path
    side: int
    count: int


def run_case(case: Case, options: tuple[str, ...]) -> dict[str, Any]:
    """The row of one job."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = case.model or write_random(case.arch, case.side, folder / f"{case.arch}.pth")
        words = [model, "--arch", case.arch, "--data", case.images, "--input-size", case.side]
        words += ["--max-images", case.count, "--seed", 0, *options, "--out", folder / "out"]
        report = run_reported(EXPORT_PROGRAM, *words)
    return {"case": f"{case.arch} at {case.side} px", "images": case.count, "random": case.model is None} | cost_of(
        report, case.count
    )


def write_random(arch: str, side: int, path: Path) -> Path:
    """A checkpoint with random weights, none of them next to zero, and batch norms that fit them."""
    torch.manual_seed(0)
    model = import_torchvision().models.get_model(arch, weights=None)
    images = synthetic_images(4, published_transform(arch, side), seed=0).batch(slice(None))
    torch.save(initialize(model, images), path)
    return path


def cost_of(report: Report, count: int) -> dict[str, Any]:
    """Seconds, units and memory of a run on `count` images; a unit is one pass of the original over these."""
    assert report.seconds_per_image is not None
    unit = report.seconds_per_image * count
    stages = {cost.stage: cost.seconds for cost in report.stage_costs}
    delivery = sum(seconds for stage, seconds in stages.items() if stage in DELIVERY)
    peaks = {cost.stage: cost.peak_memory_bytes for cost in report.stage_costs if cost.peak_memory_bytes}
    return {
        "seconds": round(report.seconds, 1),
        "unit_seconds": round(unit, 2),
        "units": round((report.seconds - delivery) / unit, 1),
        "delivery_units": round(delivery / unit, 1),
        "units_by_stage": {stage: round(seconds / unit, 2) for stage, seconds in stages.items()},
        "peak_bytes": max(peaks.values(), default=None),
        "peak_bytes_up_to_stage": peaks,
        "weight_bytes": 4 * report.params.original,
        "ratio": report.ratio,
        "function_norm": report.fidelity.function_norm,
        "relative_norm": report.fidelity.relative,
    }


def idle_bytes() -> int:
    """Memory of a process before it has read any network."""
    done = subprocess.run([sys.executable, "-c", IDLE_PROGRAM], capture_output=True, text=True, check=True)
    return int(done.stdout)


@click.command()
@click.option(
    "--small", "small", type=(click.Path(path_type=Path), click.Path(path_type=Path)), help="ResNet-18, images."
)
@click.option("--photos", type=click.Path(path_type=Path), required=True, help="Photographs, for networks at 224 px.")
@click.option("--mobilenet", type=click.Path(path_type=Path), help="MobileNetV2's checkpoint; without, random weights.")
@click.option("--only", help="One architecture.")
@click.option("--add", is_flag=True, help="Keep earlier rows of other cases.")
@click.argument("options", nargs=-1)
def main(
    small: tuple[Path, Path] | None,
    photos: Path,
    mobilenet: Path | None,
    only: str | None,
    add: bool,
    options: tuple[str, ...],
) -> None:
    """Run the jobs and write benchmarks/results/job.json after each; OPTIONS go to bocompress-export."""
    began = time.perf_counter()
    rows, began = earlier_rows("job", add, began)
    count = min(500, sum(1 for path in photos.rglob("*") if path.is_file()))
    cases = [Case("resnet18", small[0], small[1], 64, 1500)] if small else []
    cases += [Case("mobilenet_v2", mobilenet, photos, 224, count)]
    cases += [Case(arch, None, photos, 224, count) for arch in ("resnet50", "vgg16", "vit_b_16")]
    for case in cases:
        if only in (None, case.arch):
            row = run_case(case, options)
            click.echo(json.dumps(row), err=True)
            rows = [other for other in rows if other["case"] != row["case"]] + [row]
            write_results("job", {"idle_bytes": idle_bytes(), "options": list(options)}, rows, began)


if __name__ == "__main__":
    main()
