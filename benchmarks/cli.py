"""`bocompress benchmark`, registered as an entry point in pyproject.toml."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor.cli.errors import explain_errors
from compressor.cli.inputs import make_progress, typed_command
from compressor.cli.types import (
    MAX_BATCH,
    MAX_INPUT,
    MAX_SEED,
    MAX_THREADS,
    PATH,
    PROVIDER_NAMES,
    Numbers,
    Words,
)
from exporters.runtimes.registry import ONNX_RUNTIME, RUNTIMES

if TYPE_CHECKING:
    from benchmarks.records import BenchmarkRecord


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=PATH)
@click.option(
    "--runtime",
    "runtimes",
    type=Words(*RUNTIMES),
    default=ONNX_RUNTIME,
    show_default=True,
    help="What runs the files, a list. openvino, on the CPU, needs pip install openvino.",
)
@click.option(
    "--provider",
    "providers",
    type=Words(*PROVIDER_NAMES, "auto"),
    default="auto",
    show_default=True,
    help="Where to run. auto: on all that work here.",
)
@click.option("--threads", type=Numbers(MAX_THREADS), default="1", show_default=True, help="Thread counts, a list.")
@click.option(
    "--batch-size",
    "batch_sizes",
    type=Numbers(MAX_BATCH),
    default="1",
    show_default=True,
    help="Images per run, a list.",
)
@click.option(
    "--input-size",
    type=click.IntRange(1, MAX_INPUT),
    help="Side of the input, if the file leaves it open. Left out, what the file's metadata say.",
)
@click.option("--profile", is_flag=True, help="Add the time by operator and by node.")
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    show_default=True,
    help="Seed of inputs and order.",
)
@click.option("--out", type=PATH, help="Folder for benchmark.json, benchmark.md and benchmark.html.")
@click.option("--json", "as_json", is_flag=True, help="Print benchmark.json on stdout in place of the tables.")
@explain_errors
def benchmark(**options: Any) -> None:
    """Compare size, latency, load time and memory of ONNX files.

    The first FILE is the reference: times are also given as ratios to its own, from interleaved runs. Inputs are
    random, of the shape that the files take. Every combination of --runtime, --provider, --threads and --batch-size is
    measured; ONNX Runtime reads the shapes, and alone gives the time by operator.
    A warning is given when the machine is too busy to distinguish the files.
    """
    from benchmarks.runtime.compare import BenchmarkSettings, benchmark_files
    from benchmarks.runtime.page import OUTPUTS, write_benchmark
    from compressor.files import check_folder, require_writable

    if options["out"]:
        check_folder(options["out"], keep=OUTPUTS)
        require_writable(options["out"])
    names = ("runtimes", "providers", "threads", "batch_sizes", "input_size", "profile", "seed")
    settings = BenchmarkSettings(**{name: options[name] for name in names})
    record = benchmark_files(options["files"], settings, make_progress(), typed_command())
    if options["out"]:
        write_benchmark(record, options["out"])
    if options["as_json"]:
        click.echo(record.model_dump_json(indent=2))
    else:
        _print_benchmark(record, options["out"])


def _print_benchmark(record: "BenchmarkRecord", folder: Path | None) -> None:
    from benchmarks.runtime.page import OUTPUTS
    from benchmarks.runtime.tables import list_lines
    from compressor.report.console import print_cells

    for entry in list_lines(record):
        if isinstance(entry, str):
            click.echo(entry)
        else:
            print_cells(entry.title, entry.header, entry.rows, entry.left)
    if folder:
        click.echo(f"page: {folder / OUTPUTS[-1]}")
