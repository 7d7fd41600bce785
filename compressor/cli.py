"""Command line: parse, call, print. Everything heavy is imported when a command runs, so help is quick."""

import functools
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import compressor
from compressor.errors import BocompressError, InputError

if TYPE_CHECKING:
    from compressor.architectures import Transform
    from compressor.checkpoint import LoadedModel
    from compressor.images import ImageSet
    from compressor.pipeline import Compressed, Settings, Source
    from compressor.progress import Progress

PATH = click.Path(path_type=Path)
INTERRUPTED = 130  # the shell's code for Ctrl-C
NUM_DRAWN_IMAGES = 256


class Gamma(click.ParamType[float | None]):
    """A positive number, or "auto"."""

    name = "number|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        if value == "auto":
            return None
        number = _parse_float(value)
        if number is None or not (math.isfinite(number) and number > 0):
            self.fail(f"{value!r} is neither a positive number nor 'auto'", param, ctx)
        return number


class Delta(click.ParamType[tuple[float, bool]]):
    """A positive number, or a percentage of the best objective."""

    name = "number|percent%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, bool]:
        if isinstance(value, tuple):
            return value
        relative = str(value).endswith("%")
        number = _parse_float(str(value).rstrip("%"))
        if number is None or not (math.isfinite(number) and number > 0):
            self.fail(f"{value!r} is neither a positive number nor a percentage", param, ctx)
        return (number / 100 if relative else number), relative


class Fraction(click.ParamType[float]):
    """A share from 0 to below 1, or "none"."""

    name = "none|fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = 0.0 if value == "none" else _parse_float(value)
        if number is None or not 0 <= number < 1:
            self.fail(f"{value!r} is neither 'none' nor a fraction from 0 to below 1", param, ctx)
        return number


class Channels(click.ParamType[tuple[float, ...]]):
    """One finite number per colour channel, separated by commas."""

    name = "r,g,b"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        numbers = [_parse_float(part) for part in str(value).split(",")]
        known = [number for number in numbers if number is not None and math.isfinite(number)]
        if len(known) != 3 or len(numbers) != 3:
            self.fail(f"{value!r} is not three numbers such as 0.485,0.456,0.406", param, ctx)
        return tuple(known)


def _parse_float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


# Options shared by commands, in the order help shows them

Command = Callable[..., Any]


def _options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        return functools.reduce(lambda wrapped, option: option(wrapped), reversed(decorators), command)

    return decorate


model_options = _options(
    click.argument("model", type=PATH),
    click.option("--arch", help="torchvision name of the architecture; recognised from the weights if left out."),
    click.option(
        "--trust-pickle",
        is_flag=True,
        help="Load a whole pickled module. Such a file can run any code: only for files you trust.",
    ),
)
image_options = _options(
    click.option(
        "--data",
        type=PATH,
        help="Folder of images, with class subfolders if labelled. Left out: images are drawn procedurally.",
    ),
    click.option(
        "--input-size",
        type=click.IntRange(min=8),
        help="Side of the network's square input in pixels; the short side of an image is resized to it. "
        "Left out: the architecture's published transform (for most: resize to 256, crop 224).",
    ),
    click.option("--mean", type=Channels(), help="Mean per channel of [0, 1] pixels. Left out: as published."),
    click.option("--std", type=Channels(), help="Deviation per channel. Left out: as published."),
    click.option(
        "--max-images",
        type=click.IntRange(min=4),
        default=1500,
        show_default=True,
        help="Use at most this many images: up to a half, and at most 500, search; the others judge.",
    ),
)
layer_options = _options(
    click.option(
        "--layers",
        "layers",
        multiple=True,
        help="Name pattern of layers to compress (repeat, or separate by commas); 'paper' is the paper's set.",
    ),
    click.option("--skip", multiple=True, help="Name pattern of layers to leave alone; likewise."),
    click.option(
        "--method",
        type=click.Choice(["auto", "spatial", "tucker"]),
        default="auto",
        show_default=True,
        help="Factors of k x k convolutions: spatial split (auto) or Tucker-2. Linear and 1 x 1: SVD.",
    ),
)
search_options = _options(
    click.option(
        "--gamma",
        type=Gamma(),
        default="auto",
        show_default=True,
        help="Weight of the function norm against the size: larger keeps more. auto: 1 / E||f*||^2, so that "
        "losing the whole output costs as much as the whole size.",
    ),
    click.option(
        "--form",
        type=click.Choice(["ratio", "rate"]),
        default="ratio",
        show_default=True,
        help="Objective: -gamma L - R (bounded, Eq. 3) or -gamma L + 1/R (Eq. 2).",
    ),
    click.option(
        "--delta",
        type=Delta(),
        default="5%",
        show_default=True,
        help="The certificate's delta: how much better, in the objective, a plan must be to matter. A "
        "percentage is taken of the best objective; the paper's delta is 0.05 itself.",
    ),
    click.option(
        "--epsilon",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.005,
        show_default=True,
        help="The certificate's epsilon: the probability at which the search may stop.",
    ),
    click.option(
        "--samples",
        type=click.IntRange(min=2),
        default=50,
        show_default=True,
        help="Images per look at a candidate.",
    ),
    click.option(
        "--start",
        type=click.Choice(["sensitivity", "random"]),
        default="sensitivity",
        show_default=True,
        help="First plans: from one-layer-at-a-time sensitivities, or random as in the paper.",
    ),
    click.option(
        "--surrogate",
        type=click.Choice(["log", "plain"]),
        default="log",
        show_default=True,
        help="What the Gaussian process models: log L over the layers' sensitivities, or -gamma L as in the paper.",
    ),
    click.option(
        "--coordinates",
        type=click.Choice(["log", "linear"]),
        default="log",
        show_default=True,
        help="Scale of the ranks in the search space; the paper's is linear.",
    ),
    click.option(
        "--max-evaluations",
        type=click.IntRange(min=1),
        default=200,
        show_default=True,
        help="Stop after this many looks at whole plans.",
    ),
    click.option(
        "--max-seconds", type=click.FloatRange(min=0, min_open=True), help="Stop the search after this time."
    ),
    click.option(
        "--prune",
        type=Fraction(),
        default="none",
        show_default=True,
        help="Final pass: set this share of all weights, the smallest, to zero.",
    ),
)
run_options = _options(
    click.option("--device", default="cpu", show_default=True, help="Where candidates run: cpu, cuda, cuda:1."),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything."),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Threads of ONNX Runtime while latency is measured.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Batch size while latency is measured.",
    ),
    click.option("--out", type=PATH, help="Folder to write, new or empty. Left out: MODEL's name with -compressed."),
    click.option("--json", "as_json", is_flag=True, help="Print report.json on stdout in place of the table."),
)


def explain_errors(command: Command) -> Command:
    """Turn our errors into one sentence on stderr and their exit code."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except BocompressError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("stopped; what was measured is kept, --resume goes on from there", err=True)
            sys.exit(INTERRUPTED)

    return wrapped


@click.group()
@click.version_option(compressor.__version__, prog_name="bocompress")
def main() -> None:
    """Make trained vision networks small and fast enough for the edge."""


@click.command(name="export")
@model_options
@image_options
@search_options
@layer_options
@run_options
@click.option("--resume", is_flag=True, help="Go on with the search whose journal lies in --out.")
@click.version_option(compressor.__version__, prog_name="bocompress-export")
@explain_errors
def export(**options: Any) -> None:
    """Compress the torchvision checkpoint MODEL into a verified ONNX file.

    Finds a rank for every layer by Bayesian optimisation, prunes, exports, checks the file against torch,
    measures size and latency, and writes a report: plan.json, compressed.safetensors, original.onnx,
    model.onnx, report.json and report.html.
    """
    from compressor.files import check_folder
    from compressor.pipeline import OUTPUTS, compress

    progress, out = _progress(), _out(options)
    check_folder(out, keep=OUTPUTS if options["resume"] else ())
    loaded, images = _load(options, progress)
    result = compress(
        loaded.model,
        images,
        out,
        _settings(options),
        _source(loaded, images, options),
        progress,
        resume=options["resume"],
    )
    _print_result(result, options["as_json"])


main.add_command(export)


@main.command()
@model_options
@layer_options
@click.option("--input-size", type=click.IntRange(min=8), help="Side of the network's input in pixels (MACs).")
@click.option("--json", "as_json", is_flag=True, help="Print the layers as JSON in place of the table.")
@explain_errors
def inspect(**options: Any) -> None:
    """List the layers of MODEL: shape, method, cap, costs, and why a layer is skipped. Writes nothing."""
    import torch
    from pydantic import TypeAdapter

    from compressor.checkpoint import load_model
    from compressor.layers import find_layers
    from compressor.records import LayerRecord
    from compressor.tables import print_layers

    loaded = load_model(options["model"], options["arch"], options["trust_pickle"])
    transform = _transform(loaded, options)
    example = torch.zeros(1, len(transform.mean), transform.input_size, transform.input_size)
    found = find_layers(
        loaded.model,
        example,
        options["method"],
        _patterns(options["layers"]),
        _patterns(options["skip"]),
        loaded.arch,
    )
    records = [layer.record() for layer in found]
    if options["as_json"]:
        click.echo(TypeAdapter(list[LayerRecord]).dump_json(records, indent=2))
    else:
        print_layers(loaded.arch, loaded.num_classes, transform.input_size, records)


@main.command(name="apply")
@model_options
@click.argument("plan", type=PATH)
@image_options
@click.option(
    "--method",
    type=click.Choice(["auto", "spatial", "tucker"]),
    default="auto",
    show_default=True,
    help="The method the plan was made with.",
)
@run_options
@explain_errors
def apply_command(**options: Any) -> None:
    """Apply PLAN (a plan.json, searched or edited by hand) to MODEL without a search; writes what export does."""
    from compressor.files import check_folder
    from compressor.pipeline import apply_plan
    from compressor.plan import read_plan

    progress, out = _progress(), _out(options)
    check_folder(out)
    plan = read_plan(options["plan"])
    loaded, images = _load(options, progress)
    if plan.arch != loaded.arch:
        raise InputError(f"the plan is for {plan.arch}, the checkpoint is {loaded.arch}")
    result = apply_plan(
        loaded.model, images, plan, out, _settings(options), _source(loaded, images, options), progress
    )
    _print_result(result, options["as_json"])


@main.command()
@click.argument("original", type=PATH)
@click.argument("compressed", type=PATH, required=False)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads.")
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Batch size.")
@click.option("--input-size", type=click.IntRange(min=1), help="Side of the input where the file leaves it open.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the order.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of the table.")
@explain_errors
def benchmark(**options: Any) -> None:
    """Size and latency of an ONNX file, or of two compared by interleaved runs."""
    from benchmarks.compare import compare_files
    from compressor.tables import print_comparison

    comparison = compare_files(
        options["original"],
        options["compressed"] or options["original"],
        threads=options["threads"],
        batch_size=options["batch_size"],
        input_size=options["input_size"],
        seed=options["seed"],
    )
    if options["as_json"]:
        click.echo(comparison.model_dump_json(indent=2))
    else:
        print_comparison(options["original"], options["compressed"], comparison)


@main.command()
@click.argument("folder", type=PATH)
@explain_errors
def report(folder: Path) -> None:
    """Write FOLDER/report.html anew from FOLDER/report.json."""
    from benchmarks.report import read_report, write_report

    page = folder / "report.html"
    write_report(read_report(folder / "report.json"), page)
    click.echo(page)


# From options to arguments


def _progress() -> "Progress":
    from compressor.progress import progress_for_stderr

    return progress_for_stderr()


def _out(options: dict[str, Any]) -> Path:
    return options["out"] or Path(f"{options['model'].stem}-compressed")


def _patterns(values: tuple[str, ...]) -> list[str]:
    return [pattern for value in values for pattern in value.split(",") if pattern]


def _transform(loaded: "LoadedModel", options: dict[str, Any]) -> "Transform":
    from dataclasses import replace

    transform = loaded.transform
    if options.get("input_size"):
        transform = replace(transform, input_size=options["input_size"], resize_size=options["input_size"])
    if options.get("mean"):
        transform = replace(transform, mean=options["mean"])
    if options.get("std"):
        transform = replace(transform, std=options["std"])
    if any(value <= 0 for value in transform.std):
        raise InputError("--std must be positive in every channel")
    return transform


def _load(options: dict[str, Any], progress: "Progress") -> "tuple[LoadedModel, ImageSet]":
    from compressor.checkpoint import load_model
    from compressor.images import load_folder, procedural_images

    with progress.stage("loading the network"):
        loaded = load_model(options["model"], options["arch"], options["trust_pickle"])
    progress.say(f"{options['model']}: {loaded.arch} with {loaded.num_classes} classes")
    for note in loaded.notes:
        progress.say(f"note: {note}")
    transform, seed = _transform(loaded, options), options["seed"]
    if options["data"] is None:
        progress.say(f"note: {DRAWN}")
        count = min(NUM_DRAWN_IMAGES, options["max_images"])
        with progress.stage("drawing images", count) as stage:
            return loaded, procedural_images(count, transform, seed, lambda done, _: stage.update(done))
    with progress.stage("reading images", options["max_images"]) as stage:
        images = load_folder(
            options["data"], transform, options["max_images"], seed, lambda done, _: stage.update(done)
        )
    progress.say(images.source)
    return loaded, images


DRAWN = (
    "no --data given: images are drawn procedurally (seeded); real images of your task give a better plan and "
    "a truer report"
)


def _settings(options: dict[str, Any]) -> "Settings":
    from compressor.pipeline import Settings
    from compressor.search.loop import SearchSettings

    shared = {key: options[key] for key in ("device", "threads", "batch_size", "method")}
    if "gamma" not in options:  # apply: no search
        return Settings(search=SearchSettings(seed=options["seed"]), **shared)
    delta, relative = options["delta"]
    search = SearchSettings(
        delta=delta,
        delta_is_relative=relative,
        **{
            key: options[key]
            for key in (
                "epsilon",
                "samples",
                "start",
                "surrogate",
                "coordinates",
                "max_evaluations",
                "max_seconds",
                "seed",
            )
        },
    )
    return Settings(
        gamma=options["gamma"],
        form=options["form"],
        layers=_patterns(options["layers"]),
        skip=_patterns(options["skip"]),
        prune_fraction=options["prune"],
        search=search,
        **shared,
    )


def _source(loaded: "LoadedModel", images: "ImageSet", options: dict[str, Any]) -> "Source":
    from compressor.pipeline import Source

    notes = [*loaded.notes, *([DRAWN] if options["data"] is None else [])]
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return Source(loaded.arch, notes, command)


def _print_result(result: "Compressed", as_json: bool) -> None:
    from compressor.tables import print_report

    if as_json:
        click.echo(result.report.model_dump_json(indent=2))
    else:
        print_report(result.report, result.folder)
