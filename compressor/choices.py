"""Options on fine-tuning and recipes: which go together, and what they make."""

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from compressor.errors import InputError

if TYPE_CHECKING:
    from compressor.finetune import TuneSettings
    from compressor.recipe import Recipe

OF_TUNING = ("train_data", "max_train_images", "finetune_by", "schedule", "learning_rate", "autocast")
# What the stages of a recipe say for themselves.
OF_STAGES = (
    *("finetune", "finetune_by", "schedule", "learning_rate", "prune", "method", "layers", "skip"),
    *("target_ratio", "target_bytes", "target_macs", "target_latency_ms", "max_drop"),
)


def choose_recipe(options: dict[str, Any]) -> "Recipe | None":
    """The recipe asked for.

    Raises:
        InputError: there is no such recipe, or an option says what only its stages may say.
    """
    from compressor.recipe import load_recipe

    if options["recipe"] is None:
        return None
    recipe = load_recipe(options["recipe"])
    for name in OF_STAGES:
        if is_given(name):
            raise InputError(f"--recipe and {_option(name)} contradict each other: the stages say that")
    if is_given("gamma") and recipe.names_every_gamma:
        raise InputError("--recipe and --gamma contradict each other: every stage that compresses names its own gamma")
    return recipe


def check_tuning(options: dict[str, Any], tuned: bool) -> None:
    """Refuse options of a fine-tuning that is not asked for, or has nothing to learn from, before anything is loaded.

    Raises:
        InputError: see above, or the folder of images holds none.
    """
    from compressor.images import list_images

    given = [name for name in OF_TUNING if is_given(name)]
    if not tuned and given:
        raise InputError(f"{_option(given[0])} is for fine-tuning: give --finetune EPOCHS, too")
    if tuned and options["data"] is None and options["train_data"] is None:
        what = "--finetune" if options["finetune"] else "a recipe that tunes"
        raise InputError(f"{what} needs images of the task: give --data or --train-data")
    if options["train_data"] is not None:
        list_images(options["train_data"])


def tune_settings(options: dict[str, Any]) -> "TuneSettings":
    """How the compressed network is fine-tuned, as the options say."""
    from compressor.finetune import TuneSettings

    return TuneSettings(
        epochs=options["finetune"],
        by=options["finetune_by"],
        schedule=options["schedule"],
        learning_rate=options["learning_rate"],
        autocast=options["autocast"],
    )


def is_given(name: str) -> bool:
    """Whether an option was typed."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
