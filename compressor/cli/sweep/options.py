"""The options of a sweep: those of the export command, of which targets and seeds are lists."""

from collections.abc import Callable
from typing import Any

import click
import cloup

from compressor.cli.config import ALTERNATIVES, config_options, require_unless_printing
from compressor.cli.options import (
    FACTOR_KINDS,
    factor_options,
    image_options,
    layer_options,
    model_group,
    output_options,
    recipe_option,
    run_options,
    tune_options,
)
from compressor.cli.presets import preset_option
from compressor.cli.search_options import search_options
from compressor.cli.sweep.types import Seeds, Several
from compressor.cli.types import PATH

Command = Callable[..., Any]
# What differs from the export command's option of the same name.
CHANGES: dict[str, dict[str, Any]] = {
    "gamma": {"name": "gammas", "opts": ["--gammas"]},
    "seed": {"name": "seeds", "opts": ["--seeds"], "type": Seeds()},
    "workers": {
        "default": None,
        "help": "Jobs at once, each with a network and images in its memory. Left out: 1, or with --cluster as many as "
        "the cluster has room for. The same job gives the same plan however many run beside it.",
    },
    "backend": {
        "help": "What runs the jobs: loky or threading on this machine, ray or dask (pip install 'ray[default]' "
        "or 'dask[distributed]') here or on a cluster, or another backend that is registered with joblib.",
    },
    "out": {"help": "Folder to write, new or empty; each job has a folder in it. Left out: sweep."},
    "overwrite": {
        "help": "Remove an earlier sweep in --out, once the options are checked: it is gone even if this one then "
        "fails. Other files there are refused.",
    },
    "quiet": {"help": "No progress and no table, only the last line, and errors."},
    "as_json": {"help": "Print sweep.json on stdout in place of the table."},
}
LIST = " A list, separated by commas."
SEEDS = " A list of numbers and ranges: 0:5 is 0, 1, 2, 3 and 4."


def sweep_options(command: Command) -> Command:
    """Everything of the export command, for many jobs."""
    models = click.argument("models", metavar="MODEL...", nargs=-1, type=PATH, callback=_require_models)
    resume = cloup.option(
        "--resume", is_flag=True, help="Go on with the sweep in --out: finished jobs are not repeated, others go on."
    )
    weighing = (layer_options, search_options, output_options)
    groups = (run_options, tune_options, factor_options(FACTOR_KINDS, "auto"), *weighing)
    for decorate in (resume, recipe_option, preset_option, config_options, *groups, image_options, model_group, models):
        command = decorate(command)
    for param in command.__click_params__:  # type: ignore[attr-defined]
        _change(param)
    return command


def _require_models(ctx: click.Context, param: click.Parameter, value: tuple[Any, ...]) -> Any:
    return require_unless_printing(ctx, param, value or None)


def _change(param: click.Parameter) -> None:
    name = str(param.name)
    if name in (*ALTERNATIVES, "seed") and isinstance(param, click.Option):
        param.type = Several(param.type)
        param.help = f"{(param.help or '').replace('--gamma', '--gammas')}{SEEDS if name == 'seed' else LIST}"
    for field, value in CHANGES.get(name, {}).items():
        setattr(param, field, value)
