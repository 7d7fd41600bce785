"""Command line: parse, call, print. Everything heavy is imported when a command runs, so help is quick."""

import functools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

import compressor
from compressor.choices import check_tuning, choose_recipe, is_given, tune_settings
from compressor.errors import BocompressError, InputError
from compressor.option_types import (
    LARGEST_BATCH,
    LARGEST_INPUT,
    LARGEST_SEED,
    LARGEST_THREADS,
    PATH,
    PROVIDER_NAMES,
    FiniteRange,
    Numbers,
    Words,
)
from compressor.options import (
    FACTOR_KINDS,
    GroupedCommand,
    factor_options,
    image_options,
    layer_options,
    model_options,
    run_options,
    search_options,
    target_options,
    tune_options,
)

if TYPE_CHECKING:
    from compressor.architectures import Transform
    from compressor.checkpoint import LoadedModel
    from compressor.images import ImageSet
    from compressor.job import Wanted
    from compressor.pipeline import Compressed, Settings, Source
    from compressor.progress import Progress
    from compressor.records import BenchmarkRecord, Cost

INTERRUPTED = 130  # the shell's code for Ctrl-C
SHARED_SETTINGS = ("device", "threads", "batch_size", "calibration", "recalibrate", "formats", "zip", "opset")
NUM_DRAWN_IMAGES = 256
MAX_IMAGES_TO_DECIDE = 10_000
NUM_VERIFY_IMAGES = 64
SMALLEST_STD = 1e-6
LARGEST_IMAGES_GB = 8


Command = Callable[..., Any]


def explain_errors(command: Command) -> Command:
    """Turn our errors, a full output device and Ctrl-C into one sentence on stderr and an exit code."""

    @functools.wraps(command)
    def wrapped(**options: Any) -> Any:
        try:
            return command(**options)
        except BocompressError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
        except BrokenPipeError:
            raise  # the reader of stdout has left; click ends quietly
        except OSError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo(_describe_stop(options), err=True)
            sys.exit(INTERRUPTED)

    return wrapped


def _describe_stop(options: dict[str, Any]) -> str:
    if "resume" in options:
        from compressor.job import CHECKPOINT, JOURNAL, STAGES

        for kept in (_out(options) / name for name in (STAGES, CHECKPOINT, JOURNAL)):
            if kept.exists():
                return f"stopped; {kept} is kept: the same command with --resume goes on from there"
    return "stopped"


@click.group()
@click.version_option(compressor.__version__, prog_name="bocompress")
def main() -> None:
    """Make trained vision networks small and fast enough for the edge."""


@click.command(name="export", cls=GroupedCommand)
@model_options
@image_options
@target_options
@search_options
@layer_options
@factor_options(FACTOR_KINDS, "auto")
@tune_options
@run_options
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    help="Stages in place of one search: vgg, the paper's (convolutions, tune, linear layers, tune, prune), or a TOML "
    "file like it; `bocompress recipes vgg` prints it.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the search, and the fine-tuning, whose journal and checkpoint lie in --out.",
)
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
    from compressor.staged import compress_by_recipe

    progress, out = _progress(), _out(options)
    recipe = choose_recipe(options)
    settings = _settings(options)
    check_folder(out, keep=OUTPUTS if options["resume"] else ())
    loaded, images = _load(options, progress, tuned=recipe is not None and recipe.tunes)
    arguments = {
        "settings": settings,
        "source": _source(loaded, images, options),
        "progress": progress,
        "resume": options["resume"],
        "train_images": _train_images(loaded, options, progress),
    }
    if recipe is not None:
        result = compress_by_recipe(loaded.model, images, out, recipe, **arguments)
    else:
        result = compress(loaded.model, images, out, **arguments)
    _print_result(result, options["as_json"])


main.add_command(export)


@main.command()
@model_options
@layer_options
@click.option("--input-size", type=click.IntRange(8, LARGEST_INPUT), help="Side of the input in pixels (for MACs).")
@click.option("--json", "as_json", is_flag=True, help="Print the layers as JSON in place of the table.")
@explain_errors
def inspect(**options: Any) -> None:
    """List the layers of MODEL: shape, method, cap, costs, and why a layer is skipped. Writes nothing."""
    import torch
    from pydantic import TypeAdapter

    from compressor.attention import open_attention
    from compressor.checkpoint import load_model
    from compressor.layers import find_layers
    from compressor.records import LayerRecord
    from compressor.tables import print_layers

    loaded = load_model(options["model"], options["arch"], options["trust_pickle"])
    transform = _transform(loaded, options)
    example = torch.zeros(1, len(transform.mean), transform.input_size, transform.input_size)
    found = find_layers(
        open_attention(loaded.model, example),
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


@main.command()
@click.argument("name", required=False)
@explain_errors
def recipes(name: str | None) -> None:
    """Print the recipe NAME, to be copied and changed; without NAME, list the recipes."""
    from compressor.recipe import list_recipes, load_recipe, recipe_text

    if name is not None:
        click.echo(recipe_text(name), nl=False)
        return
    for known in list_recipes():
        click.echo(f"{known}: {load_recipe(known).description}")


@main.command(name="apply", cls=GroupedCommand)
@model_options
@click.argument("plan", type=PATH)
@image_options
@factor_options(("plan", *FACTOR_KINDS), "plan", "plan: as the plan says. ")
@tune_options
@run_options
@click.option("--resume", is_flag=True, help="Go on with the fine-tuning whose checkpoint lies in --out.")
@explain_errors
def apply_command(**options: Any) -> None:
    """Apply PLAN (a plan.json, searched or edited by hand) to MODEL without a search; writes what export does."""
    from compressor.files import check_folder
    from compressor.pipeline import OUTPUTS, apply_plan
    from compressor.plan import read_plan

    progress, out = _progress(), _out(options)
    check_folder(out, keep=OUTPUTS if options["resume"] else ())
    plan = read_plan(options["plan"])
    loaded, images = _load(options, progress)
    if plan.arch != loaded.arch:
        raise InputError(f"the plan is for {plan.arch}, the checkpoint is {loaded.arch}")
    result = apply_plan(
        loaded.model,
        images,
        plan,
        out,
        _settings(options),
        _source(loaded, images, options),
        progress,
        options["resume"],
        _train_images(loaded, options, progress),
    )
    _print_result(result, options["as_json"])


@main.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=PATH)
@click.option(
    "--provider",
    "providers",
    type=Words(*PROVIDER_NAMES, "auto"),
    default="auto",
    show_default=True,
    help="Where to run; auto: all that work here.",
)
@click.option("--threads", type=Numbers(LARGEST_THREADS), default="1", show_default=True, help="Threads, a list.")
@click.option(
    "--batch-size",
    "batch_sizes",
    type=Numbers(LARGEST_BATCH),
    default="1",
    show_default=True,
    help="Images in one run, a list.",
)
@click.option(
    "--input-size", type=click.IntRange(1, LARGEST_INPUT), help="Side of the input if the file leaves it open."
)
@click.option("--profile", is_flag=True, help="Say where the time goes, by operator and by node.")
@click.option(
    "--seed", type=click.IntRange(0, LARGEST_SEED), default=0, show_default=True, help="Seed of inputs and orders."
)
@click.option("--out", type=PATH, help="Folder for benchmark.json, benchmark.md and benchmark.html.")
@click.option("--json", "as_json", is_flag=True, help="Print benchmark.json on stdout in place of the tables.")
@explain_errors
def benchmark(**options: Any) -> None:
    """Size, latency, load time and memory of ONNX files, side by side.

    The first FILE is the reference: the others' times are given as ratios to its own, measured in interleaved runs.
    Inputs are random, of the shape that the files want. Every combination of --provider, --threads and --batch-size is
    measured. It says when the machine is too busy to tell files apart.
    """
    from benchmarks.bench_page import OUTPUTS, write_benchmark
    from benchmarks.compare import Settings, benchmark_files
    from compressor.files import check_folder

    if options["out"]:
        check_folder(options["out"], keep=OUTPUTS)
    names = ("providers", "threads", "batch_sizes", "input_size", "profile", "seed")
    settings = Settings(**{name: options[name] for name in names})
    record = benchmark_files(options["files"], settings, _progress(), _command())
    if options["out"]:
        write_benchmark(record, options["out"])
    if options["as_json"]:
        click.echo(record.model_dump_json(indent=2))
    else:
        _print_benchmark(record, options["out"])


@main.command()
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@image_options
@click.option(
    "--tolerance",
    type=FiniteRange(min=0),
    default=1e-4,
    show_default=True,
    help="Largest difference of two outputs that passes, as a share of the first file's largest output.",
)
@click.option("--seed", type=click.IntRange(0, LARGEST_SEED), default=0, show_default=True, help="Seed of the images.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of the table.")
@explain_errors
def verify(**options: Any) -> None:
    """Compare two ONNX (or ORT) files on real images: error, agreement, worst image, and where they part first.

    Exits with 1 if they differ by more than --tolerance.
    """
    from compressor.tables import print_difference
    from exporters.verify import verify_files

    images = _images_for_file(options, _progress())
    batch = images.batch(slice(0, len(images)))
    difference = verify_files(options["first"], options["second"], batch, options["tolerance"])
    if options["as_json"]:
        click.echo(difference.model_dump_json(indent=2))
    else:
        print_difference(options["first"], options["second"], difference)
    sys.exit(0 if difference.same else 1)


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


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _out(options: dict[str, Any]) -> Path:
    return options["out"] or Path(f"{options['model'].stem}-compressed")


def _patterns(values: tuple[str, ...]) -> list[str]:
    return [pattern for value in values for pattern in value.split(",") if pattern]


def _transform(loaded: "LoadedModel", options: dict[str, Any]) -> "Transform":
    return _adapt(loaded.transform, options)


def _adapt(transform: "Transform", options: dict[str, Any]) -> "Transform":
    """The published transform with what the options say otherwise."""
    from dataclasses import replace

    if options.get("input_size"):
        transform = replace(transform, input_size=options["input_size"], resize_size=options["input_size"])
    if options.get("mean"):
        transform = replace(transform, mean=options["mean"])
    if options.get("std"):
        transform = replace(transform, std=options["std"])
    if any(value < SMALLEST_STD for value in transform.std):
        raise InputError(f"--std must be at least {SMALLEST_STD:g} in every channel")
    return transform


def _images_for_file(options: dict[str, Any], progress: "Progress") -> "ImageSet":
    """Images as the first file wants them: its own input size, the transform published for its architecture."""
    from compressor.architectures import Transform, list_architectures, published_transform
    from compressor.images import load_folder, procedural_images
    from exporters.runtime import describe_input

    options = {**options, "max_images": _max_images(options)}
    architecture, side = describe_input(options["first"])
    known = architecture in list_architectures()
    transform = published_transform(architecture) if known else Transform()
    size = options["input_size"] or side
    transform = _adapt(transform, {**options, "input_size": size})
    _require_memory(4 * options["max_images"], transform.input_size)  # all at once, as float32
    if options["data"] is None:
        progress.say(f"note: {DRAWN}")
        return procedural_images(min(NUM_VERIFY_IMAGES, options["max_images"]), transform, options["seed"])
    return load_folder(options["data"], transform, options["max_images"], options["seed"])


def _load(options: dict[str, Any], progress: "Progress", tuned: bool = False) -> "tuple[LoadedModel, ImageSet]":
    check_tuning(options, tuned or options["finetune"] > 0)
    from compressor.checkpoint import load_model
    from compressor.images import list_images, load_folder, procedural_images

    options = {**options, "max_images": _max_images(options)}
    num_images = options["max_images"] if options["data"] is not None else min(NUM_DRAWN_IMAGES, options["max_images"])
    if options["data"] is not None:
        # A wrong folder is said at once, not after the network is loaded.
        num_images = min(num_images, len(list_images(options["data"]).files))
    with progress.stage("loading the network"):
        loaded = load_model(options["model"], options["arch"], options["trust_pickle"])
    progress.say(f"{options['model']}: {loaded.arch} with {loaded.num_classes} classes")
    for note in loaded.notes:
        progress.say(f"note: {note}")
    transform, seed = _transform(loaded, options), options["seed"]
    _require_memory(num_images, transform.input_size)
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


def _max_images(options: dict[str, Any]) -> int:
    """As asked for; by default more where a drop is to be bounded."""
    from compressor.images import MAX_IMAGES

    return int(options["max_images"] or (MAX_IMAGES_TO_DECIDE if options.get("max_drop") else MAX_IMAGES))


def _train_images(loaded: "LoadedModel", options: dict[str, Any], progress: "Progress") -> "ImageSet | None":
    """The images of --train-data, as the network wants them."""
    from compressor.images import list_images, load_folder

    if options["train_data"] is None:
        return None
    transform, count = _transform(loaded, options), options["max_train_images"]
    count = min(count, len(list_images(options["train_data"]).files))
    _require_memory(count, transform.input_size)
    with progress.stage("reading images to train on", count) as stage:
        images = load_folder(
            options["train_data"], transform, count, options["seed"], lambda done, _: stage.update(done)
        )
    progress.say(f"to train on: {images.source}")
    return images


def _require_memory(num_images: int, input_size: int) -> None:
    needed_gb = 3 * num_images * input_size**2 / 1e9
    if needed_gb > LARGEST_IMAGES_GB:
        raise InputError(
            f"{num_images} images of {input_size} px would take {needed_gb:.0f} GB of memory: "
            "lower --max-images or --input-size"
        )


DRAWN = (
    "no --data given: images are drawn procedurally (seeded); real images of your task give a better plan and "
    "a truer report"
)


def _settings(options: dict[str, Any]) -> "Settings":
    from compressor.pipeline import Settings
    from compressor.search.settings import SearchSettings

    shared = {key: options[key] for key in SHARED_SETTINGS}
    shared["precisions"] = tuple(dict.fromkeys(name for names in options["precisions"] for name in names))
    shared["factors"] = None if options["factors"] == "plan" else options["factors"]
    shared["tune"] = tune_settings(options)
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
                "certificate",
                "acquisition",
                "samples",
                "candidates",
                "start",
                "refine",
                "surrogate",
                "prior_mean",
                "coordinates",
                "max_evaluations",
                "max_seconds",
                "seed",
            )
        },
    )
    target = _wanted(options)
    return Settings(
        gamma=options["gamma"],
        target=target,
        form=options["form"],
        fidelity=options["fidelity"],
        cost=_cost(options, target),
        provider=options["provider"],
        method=options["method"],
        rank_multiple=options["rank_multiple"],
        layers=_patterns(options["layers"]),
        skip=_patterns(options["skip"]),
        prune_fraction=options["prune"],
        workers=options["workers"],
        backend=options["backend"],
        search=search,
        **shared,
    )


def _wanted(options: dict[str, Any]) -> "Wanted | None":
    """The one target given.

    Raises:
        InputError: there are several, or one beside what it stands for.
    """
    from compressor.job import Wanted
    from compressor.records import WISH_OPTIONS

    values = {wish: options[name.strip("-").replace("-", "_")] for wish, name in WISH_OPTIONS.items()}
    given = {wish: name for wish, name in WISH_OPTIONS.items() if values[wish] is not None}
    if not given:
        return None
    if len(given) > 1:
        raise InputError(f"{' and '.join(given.values())} contradict each other: each says what to stop at; give one")
    ((wish, name),) = given.items()
    if options["gamma"] is not None:
        raise InputError(f"{name} and --gamma contradict each other: the target finds gamma; give one of them")
    if options["form"] != "ratio":
        raise InputError(f"{name} needs --form ratio: the dual is that of Eq. (3)")
    return Wanted(wish, values[wish])


def _cost(options: dict[str, Any], target: "Wanted | None") -> "Cost":
    """What size means: as given, or what the target is about.

    Raises:
        InputError: they are not the same.
    """
    from compressor.records import WISH_OPTIONS

    wish = target.wish if target else "ratio"
    implied: Cost | None = None if wish in ("ratio", "drop") else cast("Cost", wish)
    if implied and is_given("cost") and options["cost"] != implied:
        raise InputError(f"{WISH_OPTIONS[wish]} and --cost {options['cost']} contradict each other")
    return implied or options["cost"]


def _source(loaded: "LoadedModel", images: "ImageSet", options: dict[str, Any]) -> "Source":
    from compressor.pipeline import Source

    notes = [*loaded.notes, *([DRAWN] if options["data"] is None else [])]
    return Source(loaded.arch, notes, _command())


def _print_result(result: "Compressed", as_json: bool) -> None:
    from compressor.tables import print_report

    if as_json:
        click.echo(result.report.model_dump_json(indent=2))
    else:
        print_report(result.report, result.folder)


def _print_benchmark(record: "BenchmarkRecord", folder: Path | None) -> None:
    from benchmarks.bench_page import OUTPUTS
    from benchmarks.bench_tables import list_lines
    from compressor.tables import print_cells

    for entry in list_lines(record):
        if isinstance(entry, str):
            click.echo(entry)
        else:
            print_cells(entry.title, entry.header, entry.rows, entry.left)
    if folder:
        click.echo(f"page: {folder / OUTPUTS[-1]}")
