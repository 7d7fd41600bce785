"""`bocompress sweep`: models x targets x seeds, each as `bocompress-export` would do it alone."""

import os
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor.cli.config import ALTERNATIVES, config_text, is_given, typed_options, without_replaced
from compressor.cli.errors import NO_SUCCESS, explain_errors, output_folder
from compressor.cli.help import Command
from compressor.cli.inputs import make_progress, typed_command
from compressor.cli.settings import check_tuning, choose_recipe, make_settings
from compressor.cli.sweep.options import sweep_options
from compressor.cli.sweep.types import MAX_JOBS
from compressor.errors import InputError
from compressor.files import require_writable

if TYPE_CHECKING:
    from compressor.sweep.jobs import Job
    from compressor.sweep.records import SweepRecord

PROGRAM = "compressor.cli.sweep.job"
OWN = ("models", "gammas", "seeds", *ALTERNATIVES, "workers", "backend", "cluster")
OF_THE_WHOLE = ("out", "overwrite", "resume", "quiet", "as_json", "config", "print_config")
FAILED = 1
MAX_PRINTED = 40  # rows; sweep.csv has all
EXAMPLES = (
    (
        "Every network at two gammas and five seeds, two jobs at once.",
        "bocompress sweep models/*.pt --data photos/ --gammas 0.01,0.03 --seeds 0:5 --workers 2 --out sweep/",
    ),
    ("What one point of top-1 is worth, and two.", "bocompress sweep models/*.pt --data photos/ --max-drop 1,2"),
    (
        "The same on a cluster of Ray that runs already.",
        "bocompress sweep models/*.pt --data /shared/photos --backend ray --cluster auto --out /shared/sweep",
    ),
)
COMMON = (
    *("--data", "--gammas", "--max-drop", "--target-ratio", "--seeds", "--precision", "--workers", "--backend"),
    *("--cluster", "--out", "--resume", "--overwrite", "--config"),
)


@click.command(cls=Command, common=COMMON, examples=EXAMPLES)
@sweep_options
@explain_errors
def sweep(**options: Any) -> None:
    """Compress every MODEL, at every gamma or target, with every seed.

    Each job gives what `bocompress-export` gives alone, in a folder of its own below --out, with its log in logs/.
    Writes sweep.csv, sweep.json and sweep.html: the front of all models in size, time and accuracy.
    Exits with 1 if a job failed, with 3 if all finished and one is no success; the others are done either way.
    """
    options = without_replaced(options)
    if options["print_config"]:
        click.echo(config_text(options))
        return
    out = output_folder(options)
    require_writable(out)
    models = _models(options["models"])
    from compressor.sweep.driver import SweepSettings, run_sweep
    from compressor.sweep.jobs import label_models
    from compressor.sweep.outputs import read_models

    known = {path: model.label for path, model in read_models(out).items()} if options["resume"] else {}
    labels = label_models(models, known)
    jobs = list(_jobs(labels, options))
    settings = SweepSettings(
        program=PROGRAM,
        command=typed_command(),
        **{name: options[name] for name in ("workers", "backend", "cluster", "resume", "overwrite")},
    )
    record = run_sweep(jobs, labels, out, settings, make_progress(options["quiet"]))
    _print(record, out, options)


def _models(given: tuple[Path, ...]) -> list[Path]:
    """The models, each once.

    Raises:
        InputError: one is not there, or a folder.
    """
    models = list({os.path.realpath(path): path for path in reversed(given)}.values())[::-1]
    for path in models:
        if path.is_dir():
            raise InputError(f"{path} is a folder: name its checkpoints, such as {path}/*.pt")
        if not path.exists():
            raise InputError(f"{path} does not exist")
    return models


def _jobs(labels: dict[Path, str], options: dict[str, Any]) -> Iterator["Job"]:
    """A job for every model, target and seed.

    Raises:
        InputError: there are too many, or options contradict each other.
    """
    from compressor.sweep.jobs import Job, name_job

    targets, seeds = _targets(options), options["seeds"]
    count = len(labels) * len(targets) * len(seeds)
    if count > MAX_JOBS:
        raise InputError(f"{count:,} jobs are more than {MAX_JOBS:,}: give fewer seeds")
    shared = typed_options(leave_out=(*OWN, *OF_THE_WHOLE))
    for name, value in targets:
        _check(options, name, value)
    for (model, label), (name, value), seed in product(labels.items(), targets, seeds):
        asked = "" if name is None else f"{name.replace('_', '-')} {_spell(value)}"
        typed = [] if name is None else [f"--{name.replace('_', '-')}", _spell(value)]
        path = f"./{model}" if str(model).startswith("-") else str(model)  # no option of the job's command
        yield Job(name_job(label, asked, seed), path, (*shared, *typed, "--seed", str(seed)), asked, seed)


def _targets(options: dict[str, Any]) -> list[tuple[str | None, Any]]:
    """What is asked for: values of the one option that is given; the default where none is."""
    given = [name for name in ALTERNATIVES if name != "gammas" and options.get(name) is not None]
    if is_given("gammas") and options["gammas"] is not None:  # else a target that is typed replaced a file's
        given.insert(0, "gammas")
    if len(given) > 1:
        raise InputError(f"{' and '.join(_option(name) for name in given)} contradict each other: give one of them")
    if not given:
        return [(None, None)]
    (name,) = given
    return [("gamma" if name == "gammas" else name, value) for value in options[name]]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _spell(value: Any) -> str:
    return "auto" if value is None else f"{value:.12g}"


def _check(options: dict[str, Any], name: str | None, value: Any) -> None:
    """Raise InputError where options do not go together, as the export command would for every job."""
    one = options | dict.fromkeys(ALTERNATIVES) | {"seed": options["seeds"][0], "workers": 1, "cluster": None}
    if name is not None:
        one[name] = value
    recipe = choose_recipe(one)
    if recipe is not None and is_given("gammas") and recipe.names_every_gamma:
        raise InputError("--recipe and --gammas contradict each other: every stage that compresses has its own gamma")
    make_settings(one)
    check_tuning(one, options["finetune"] > 0 or (recipe is not None and recipe.tunes))
    if options["data"] is not None:
        from compressor.data.folders import list_images

        list_images(options["data"])


def _print(record: "SweepRecord", out: Path, options: dict[str, Any]) -> None:
    """Print the table, failures and the page; exits with an error code where a job failed or is no success."""
    from compressor.sweep.outputs import PAGE, TABLE
    from compressor.sweep.printing import print_table

    if options["as_json"]:
        click.echo(record.model_dump_json(indent=2))
    elif not options["quiet"]:
        print_table(record, MAX_PRINTED)
    for row in record.rows:
        if row.state == "failed":
            click.echo(f"error: {row.job}: {row.reason}", err=True)
    if not options["as_json"]:
        click.echo(f"table: {out / TABLE}")
        click.echo(f"page: {out / PAGE}")
    states = {row.state for row in record.rows}
    if "failed" in states:
        sys.exit(FAILED)
    if "no success" in states:
        sys.exit(NO_SUCCESS)
