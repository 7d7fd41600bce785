"""What is shipped to the edge: bytes, time and accuracy in float32 and int8, and whether time follows operations.

    python -m benchmarks.studies.export.edge MODEL DATA --input-size 64

On the command line: `bocompress-export` with ranks that suit the machine and int8 (as `make edge-int8`), and its plan
applied again at a larger input size, where operations and not calls take the time. With --operations, targets in place
of gammas, for networks that lose hidden channels; where the images are few, --seeds draws other ones to evaluate on.
Latency is ONNX Runtime's on the CPU, one thread, in interleaved runs with the original's.
"""

import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import click

from benchmarks.studies.study import APPLY_PROGRAM, EXPORT_PROGRAM, earlier_rows, run_reported, write_results
from compressor.cli.sweep.types import Seeds
from compressor.cost.records import LatencyRecord
from compressor.report.records import Report
from exporters.providers import CPU

FEW = 200  # images, where only times are of interest
MULTIPLE = 8  # of the channels left, with --operations
Run = tuple[dict[str, float], int, Report]  # what was asked for, the input's side in pixels, what came out


def row_of(report: Report, asked: dict[str, float], side: int) -> dict[str, Any]:
    """The row of a report: what was asked for, and its figures over the original's."""
    latency = report.latency[CPU]
    macs = report.macs.compressed / report.macs.original
    row: dict[str, Any] = {
        **asked,
        "side": side,
        "relative_norm": report.fidelity.relative,
        "bytes": report.onnx_bytes.compressed / report.onnx_bytes.original,
        "macs": macs,
        **_times("latency", latency),
        "latency_over_macs": latency.ratio / macs,
        "seconds": report.seconds,
    }
    if report.top1 is not None and report.precisions:
        (int8,) = report.precisions
        row |= {
            "evaluated_on": report.fidelity.images,
            "top1_original": report.top1.original,
            "top1": report.top1.compressed,
            "int8_bytes": int8.onnx_bytes / report.onnx_bytes.original,
            "int8_top1": int8.top1,
            **_times("int8_latency", int8.latency[CPU]),
            **_times("int8_to_float32", int8.latency_to_float32[CPU]),
        }
    return row


def _times(name: str, record: LatencyRecord) -> dict[str, float]:
    return {name: record.ratio, f"{name}_low": record.ratio_low, f"{name}_high": record.ratio_high}


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--input-size", type=int, required=True)
@click.option("--large", default=224, show_default=True, help="The larger input size.")
@click.option("--gammas", default="0.03,0.5,5", show_default=True, help="Separated by commas.")
@click.option("--operations", help="Shares of the multiply-accumulates, separated by commas, in place of gammas.")
@click.option("--seeds", type=Seeds(), default="0", show_default=True, help="Of the runs at --operations.")
@click.option("--name", default="edge", show_default=True, help="Name of the results file.")
@click.option("--add", is_flag=True, help="Keep the rows of an earlier run.")
def main(
    model: Path,
    data: Path,
    input_size: int,
    large: int,
    gammas: str,
    operations: str | None,
    seeds: tuple[int, ...],
    name: str,
    add: bool,
) -> None:
    """Run the study and write benchmarks/results/NAME.json, anew after every run."""
    rows, began = earlier_rows(name, add, time.perf_counter())
    typed = (model, "--data", data, "--input-size", input_size, "--precision", "int8")
    with tempfile.TemporaryDirectory() as folder:
        if operations:
            runs = _at_operations(typed, operations, seeds, input_size, Path(folder))
        else:
            runs = _at_gammas(typed, gammas, (input_size, large), Path(folder))
        for asked, side, report in runs:
            rows.append(row_of(report, asked, side))
            write_results(name, {"network": report.arch}, rows, began)


def _at_operations(
    typed: tuple[Any, ...], operations: str, seeds: tuple[int, ...], side: int, folder: Path
) -> Iterator[Run]:
    for share, seed in product(map(float, operations.split(",")), seeds):
        words = ("--cost", "macs", "--target-ratio", share, "--rank-multiple", MULTIPLE, "--seed", seed)
        out = ("--out", folder / f"{share} {seed}")
        yield {"operations": share, "seed": seed}, side, run_reported(EXPORT_PROGRAM, *typed, *words, *out)


def _at_gammas(typed: tuple[Any, ...], gammas: str, sides: tuple[int, int], folder: Path) -> Iterator[Run]:
    model, data = typed[0], ("--data", typed[2], "--max-images", FEW)  # where hidden channels go, readers are refitted
    for gamma in map(float, gammas.split(",")):
        searched, applied = folder / f"searched {gamma}", folder / f"applied {gamma}"
        words = ("--gamma", gamma, "--rank-multiple", "auto", "--out", searched)
        yield {"gamma": gamma}, sides[0], run_reported(EXPORT_PROGRAM, *typed, *words)
        again = ("apply", model, searched / "plan.json", *data, "--input-size", sides[1], "--no-recalibrate")
        report = run_reported(APPLY_PROGRAM, *again, "--factors", "weight", "--out", applied)
        yield {"gamma": gamma}, sides[1], report


if __name__ == "__main__":
    main()
