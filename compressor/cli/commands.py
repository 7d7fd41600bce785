"""Command line: parse, call, print. Everything heavy is imported when a command runs, so help is quick."""

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from compressor.cli.completion import PROGRAMS, complete_recipe, completion_script
from compressor.cli.config import config_options, config_text, require_unless_printing, without_replaced
from compressor.cli.errors import NO_SUCCESS, explain_errors, output_folder
from compressor.cli.help import Command, Group
from compressor.cli.inputs import (
    check_output,
    load_network,
    load_network_and_images,
    load_train_images,
    make_progress,
    make_source,
    name_outputs,
)
from compressor.cli.options import (
    FACTOR_KINDS,
    factor_options,
    image_options,
    layer_options,
    model_options,
    output_options,
    recipe_option,
    run_options,
    tune_options,
)
from compressor.cli.presets import preset_option
from compressor.cli.search_options import search_options
from compressor.cli.settings import choose_recipe, leave_to_stages, make_settings, split_patterns
from compressor.cli.sweep.command import sweep
from compressor.cli.types import MAX_FRAMES, MAX_INPUT, MAX_SEED, PATH, FiniteRange
from compressor.errors import InputError, VerificationError
from compressor.files import read_head
from compressor.version import VERSION

if TYPE_CHECKING:
    from compressor.pipeline.compress import CompressedModel


PLUGINS = "bocompress.commands"  # the entry points by which other packages add commands
MAX_EXPLAINED_ERROR = 0.01  # of the largest output; files that differ by more may be fed wrongly
EXAMPLES = (
    ("As small as loses little, by your images.", "bocompress-export model.pt --data photos/"),
    ("The smallest that loses at most one point of top-1.", "bocompress-export model.pt --data photos/ --max-drop 1"),
    (
        "A quarter of the parameters, with an int8 file beside the float32 one.",
        "bocompress-export model.pt --data photos/ --target-ratio 0.25 --precision int8",
    ),
)
APPLY_EXAMPLES = (
    ("The plan of an earlier run, perhaps edited.", "bocompress apply model.pt plan.json --data photos/"),
    ("Another point of its Pareto front.", "bocompress apply model.pt out/plans/03-ratio-0.2000.json --data photos/"),
)
COMMON = (
    *("--data", "--max-drop", "--target-ratio", "--gamma", "--precision", "--finetune", "--arch", "--input-size"),
    *("--out", "--overwrite", "--resume", "--config"),
)


class _Main(Group):
    """Our own commands, and those that other packages register as entry points, loaded when they are used."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({*super().list_commands(context), *entry_points(group=PLUGINS).names})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        for plugin in entry_points(group=PLUGINS, name=name):
            self.add_command(plugin.load(), name)
        return super().get_command(context, name)


@click.group(cls=_Main)
@click.version_option(VERSION, prog_name="bocompress")
def main() -> None:
    """Make trained vision networks small and fast enough for the edge."""


@cloup.command(name="export", cls=Command, common=COMMON, examples=EXAMPLES)
@model_options
@image_options
@output_options
@search_options
@layer_options
@factor_options(FACTOR_KINDS, "auto")
@tune_options
@run_options
@config_options
@preset_option
@recipe_option
@cloup.option(
    "--resume",
    is_flag=True,
    help="Continue the search, or the fine-tuning, from the journal and checkpoint in --out.",
)
@click.version_option(VERSION, prog_name="bocompress-export")
@explain_errors
def export(**options: Any) -> None:
    """Compress the torchvision checkpoint MODEL into a verified ONNX file.

    Finds by Bayesian optimization how much rank, or how many hidden channels, each layer can lose, exports, checks
    the file against torch and measures size and latency. Writes original.onnx, model.onnx, infer.py, measure.py,
    plan.json, plans/, compressed.safetensors, report.json and report.html.
    """
    options = leave_to_stages(without_replaced(options))
    if options["print_config"]:
        click.echo(config_text(options))
        return
    read_head(options["model"])  # a missing file is said before torch is loaded, which takes seconds
    recipe, settings = choose_recipe(options), make_settings(options)
    from compressor.pipeline.compress import compress

    progress, out = make_progress(options["quiet"]), output_folder(options)
    check_output(out, options, progress)
    loaded, images = load_network_and_images(options, progress, tuned=recipe is not None and recipe.tunes)
    result = compress(
        loaded.model,
        images,
        out,
        settings,
        recipe,
        source=make_source(loaded, options),
        progress=progress,
        resume=options["resume"],
        overwrite=options["overwrite"],
        train_images=load_train_images(loaded, options, progress),
    )
    _print_result(result, options)


main.add_command(export)
main.add_command(sweep)


@main.command(cls=Command)
@model_options
@layer_options
@click.option("--input-size", type=click.IntRange(8, MAX_INPUT), help="Side of the input in pixels (for MACs).")
@click.option("--num-frames", type=click.IntRange(1, MAX_FRAMES), help="Frames of a clip (for MACs).")
@click.option("--json", "as_json", is_flag=True, help="Print the layers as JSON in place of the table.")
@explain_errors
def inspect(**options: Any) -> None:
    """List the layers of MODEL: shape, method, break-even rank, costs, and why a layer is skipped. Writes nothing."""
    read_head(options["model"])
    import torch
    from pydantic import TypeAdapter

    from compressor.network.attention import open_attention
    from compressor.network.layers import find_layers
    from compressor.network.records import LayerRecord
    from compressor.outputs.auxiliary import drop_auxiliary
    from compressor.outputs.structure import describe_outputs, find_outputs
    from compressor.pipeline.channels.found import list_layers
    from compressor.report.console import print_layers

    loaded = load_network(options)
    for note in loaded.notes:
        click.echo(f"note: {note}", err=options["as_json"])
    example = torch.zeros(1, *loaded.transform.shape)
    if not options["keep_aux"]:
        drop_auxiliary(loaded.model)
    outputs = find_outputs(loaded.model, example)
    model = open_attention(loaded.model, example)
    found = find_layers(
        model,
        example,
        options["method"],
        split_patterns(options["layers"]),
        split_patterns(options["skip"]),
        loaded.arch,
    )
    records = list_layers(model, example, found, options["method"])
    if len(outputs) > 1 or len(outputs[0].shape) > 1:
        click.echo(f"outputs: {describe_outputs(outputs)}", err=options["as_json"])
    if options["as_json"]:
        click.echo(TypeAdapter(list[LayerRecord]).dump_json(records, indent=2))
    else:
        print_layers(loaded.arch, name_outputs(loaded), loaded.transform.described, records)


@main.command(cls=Command)
@click.argument("name", required=False, shell_complete=complete_recipe)
@explain_errors
def recipes(name: str | None) -> None:
    """Print the recipe NAME, to copy and change; without NAME, list the recipes."""
    from compressor.pipeline.recipe import list_recipes, load_recipe, recipe_text

    if name is not None:
        click.echo(recipe_text(name), nl=False)
        return
    for known in list_recipes():
        click.echo(f"{known}: {load_recipe(known).description}")


@main.command(cls=Command)
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
@explain_errors
def completion(shell: str) -> None:
    """Print what SHELL has to evaluate to complete commands, options and architectures.

    For bash, put `eval "$(bocompress completion bash)"` into ~/.bashrc; for zsh likewise; for fish,
    `bocompress completion fish | source` into config.fish.
    """
    click.echo(completion_script(shell, dict(zip(PROGRAMS, (main, export), strict=True))))


@main.command(name="apply", cls=Command, common=COMMON, examples=APPLY_EXAMPLES)
@model_options
@click.argument("plan", metavar="PLAN", type=PATH, required=False, callback=require_unless_printing)
@image_options
@output_options
@factor_options(("plan", *FACTOR_KINDS), "plan", "plan: as in the plan. ")
@tune_options
@run_options
@config_options
@cloup.option("--resume", is_flag=True, help="Continue the fine-tuning from the checkpoint in --out.")
@explain_errors
def apply_command(**options: Any) -> None:
    """Apply PLAN (a plan.json, searched or edited by hand) to MODEL without a search. Writes what export does."""
    options = without_replaced(options)
    if options["print_config"]:
        click.echo(config_text(options))
        return
    read_head(options["model"])
    settings = make_settings(options)
    from compressor.pipeline.compress import apply_plan
    from compressor.pipeline.plan import read_plan

    progress, out = make_progress(options["quiet"]), output_folder(options)
    check_output(out, options, progress)
    plan = read_plan(options["plan"])
    loaded, images = load_network_and_images(options, progress)
    if plan.arch != loaded.arch:
        raise InputError(f"the plan is for {plan.arch}, the checkpoint is {loaded.arch}")
    result = apply_plan(
        loaded.model,
        images,
        plan,
        out,
        settings,
        source=make_source(loaded, options),
        progress=progress,
        resume=options["resume"],
        overwrite=options["overwrite"],
        train_images=load_train_images(loaded, options, progress),
    )
    _print_result(result, options)


@main.command(cls=Command)
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@image_options
@click.option(
    "--tolerance",
    type=FiniteRange(min=0),
    default=1e-4,
    show_default=True,
    help="Largest difference of outputs that passes, as a share of the first file's largest output.",
)
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, show_default=True, help="Seed of the images.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of the table.")
@explain_errors
def verify(**options: Any) -> None:
    """Compare two ONNX (or ORT) files on images: error, agreement, worst image and first divergence.

    Exits with 1 if they differ by more than --tolerance, and with 2 if they cannot be compared.
    """
    from compressor.cli.comparison import load_images_for_files
    from compressor.report.console import print_difference
    from exporters.verify import verify_files

    first, second, progress = options["first"], options["second"], make_progress()
    inputs = load_images_for_files(options, progress)
    try:
        difference = verify_files(
            first,
            second,
            inputs.first,
            options["tolerance"],
            second_images=inputs.second,
            labels=inputs.labels,
        )
    except VerificationError as error:  # exit code 1 is for files that differ
        raise InputError(str(error)) from error
    if inputs.hint and difference.max_rel_error > MAX_EXPLAINED_ERROR:
        progress.log(f"note: {inputs.hint}")
    if inputs.images.files:
        difference = difference.model_copy(update={"worst_file": str(inputs.images.files[difference.worst_image])})
    if options["as_json"]:
        click.echo(difference.model_dump_json(indent=2))
    else:
        print_difference(first, second, difference)
    sys.exit(0 if difference.same else 1)


@main.command(cls=Command)
@click.argument("folder", type=PATH)
@explain_errors
def report(folder: Path) -> None:
    """Write FOLDER/report.html anew from FOLDER/report.json."""
    from compressor.pipeline.outputs import PAGE, REPORT
    from compressor.report.page import read_report, write_report

    page = folder / PAGE
    write_report(read_report(folder / REPORT), page)
    click.echo(page)


def _print_result(result: "CompressedModel", options: dict[str, Any]) -> None:
    """Print the result; exits with NO_SUCCESS where it is none."""
    from compressor.pipeline.outputs import MODEL
    from compressor.report.console import print_report
    from compressor.report.verdict import describe_failure

    if options["as_json"]:
        click.echo(result.report.model_dump_json(indent=2))
    else:
        print_report(result.report, result.folder, options["quiet"])
        click.echo(result.folder / MODEL)  # the last line, for scripts
    verdict = result.report.verdict
    if verdict is not None and not verdict.success:
        if options["as_json"]:
            click.echo(describe_failure(verdict), err=True)
        sys.exit(NO_SUCCESS)
