"""--preset: named sets of options, a TOML file each in `presets/`, read as files for --config are."""

from functools import cache
from importlib import resources
from pathlib import Path

import click
import cloup

from compressor.cli.config import PRESET, read_options, set_defaults


@cache
def preset_files() -> dict[str, Path]:
    """The files that come along, by the names that --preset takes."""
    folder = resources.files("compressor.cli") / "presets"
    paths = [Path(str(file)) for file in folder.iterdir()]
    return {path.stem: path for path in sorted(paths) if path.suffix == ".toml"}


def _read_preset(ctx: click.Context, param: click.Parameter, name: str | None) -> str | None:
    """Make the preset's values defaults, beneath those of --config."""
    if name is not None and not ctx.resilient_parsing:
        set_defaults(ctx, PRESET, read_options(ctx, preset_files()[name]))
    return name


preset_option = cloup.option(
    "--preset",
    type=click.Choice(list(preset_files())),
    is_eager=True,
    callback=_read_preset,
    help="A named set of options. paper: the paper's system, --layers paper --method spatial --factors weight "
    "--no-recalibrate --surrogate objective --prior-mean none --coordinates linear --start random --no-refine "
    "--acquisition pac --certificate pointwise --delta 0.05 --epsilon 0.005 --samples 50 --noise sample "
    "--refit stopping. What is typed, or stands in --config, wins over it; stages of a recipe set what they name. "
    "--print-config shows all of it.",
)
