"""What is shipped to the edge: bytes, time and accuracy in float32 and int8, and whether time follows operations.

    python -m benchmarks.studies.export.edge MODEL DATA --input-size 64

On the command line: `bocompress-export` with ranks that suit the machine and int8 (as `make edge-int8`), and its plan
applied again at a larger input size, where operations and not calls take the time. Latency is ONNX Runtime's on the
CPU, one thread, in interleaved runs with the original's.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.studies.study import APPLY_PROGRAM, EXPORT_PROGRAM, run_reported, write_results
from compressor.cost.records import LatencyRecord
from compressor.report.records import Report
from exporters.providers import CPU


def row_of(report: Report, gamma: float, side: int) -> dict[str, Any]:
    """The row of a report: its figures over the original's."""
    latency = report.latency[CPU]
    macs = report.macs.compressed / report.macs.original
    row: dict[str, Any] = {
        "gamma": gamma,
        "side": side,
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
@click.option("--name", default="edge", show_default=True, help="Name of the results file.")
def main(model: Path, data: Path, input_size: int, large: int, gammas: str, name: str) -> None:
    """Run the study and write benchmarks/results/NAME.json, anew after every run."""
    began, rows = time.perf_counter(), list[dict[str, Any]]()
    for gamma in map(float, gammas.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            searched, applied = Path(folder) / "searched", Path(folder) / "applied"
            typed = (model, "--data", data, "--input-size", input_size, "--gamma", gamma, "--rank-multiple", "auto")
            report = run_reported(EXPORT_PROGRAM, *typed, "--precision", "int8", "--out", searched)
            rows.append(row_of(report, gamma, input_size))
            again = ("apply", model, searched / "plan.json", "--input-size", large, "--no-recalibrate")
            report = run_reported(APPLY_PROGRAM, *again, "--factors", "weight", "--out", applied)
            rows.append(row_of(report, gamma, large))
        write_results(name, {"network": report.arch}, rows, began)


if __name__ == "__main__":
    main()
