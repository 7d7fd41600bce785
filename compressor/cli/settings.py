"""From options to settings: which options go together, and what they make."""

from typing import TYPE_CHECKING, Any, cast

import click

from compressor.cli.config import PRESET, is_given, own_default
from compressor.errors import InputError

if TYPE_CHECKING:
    from compressor.cost.records import Cost
    from compressor.pipeline.recipe import Recipe
    from compressor.pipeline.settings import Settings, Target
    from compressor.recovery.settings import TuneSettings
    from compressor.search.settings import SearchSettings

SHARED_SETTINGS = (
    *("device", "threads", "batch_size", "calibration", "recalibrate"),
    *("formats", "zip", "opset", "static_batch", "normalize", "output_weights", "keep_aux"),
)
SEARCH_SETTINGS = (
    *("epsilon", "certificate", "acquisition", "samples", "candidates", "start", "refine", "surrogate"),
    *("noise", "refit", "excess_noise", "remeasure"),
    *("prior_mean", "coordinates", "max_evaluations", "max_seconds", "seed"),
)
TUNE_OPTIONS = ("train_data", "max_train_images", "finetune_by", "schedule", "learning_rate", "autocast")
# What the stages of a recipe set for themselves.
STAGE_OPTIONS = (
    *("finetune", "finetune_by", "schedule", "learning_rate", "prune", "method", "layers", "skip"),
    *("target_ratio", "target_bytes", "target_macs", "target_latency_ms", "max_drop"),
)


def leave_to_stages(options: dict[str, Any]) -> dict[str, Any]:
    """The options without what a preset says of a recipe's stages, which name layers and methods themselves."""
    ctx = click.get_current_context()
    if options["recipe"] is None:
        return options
    preset = ctx.meta.get(PRESET, {})
    taken = [name for name in STAGE_OPTIONS if name in preset and not is_given(name)]
    return options | {
        str(option.name): own_default(ctx, option) for option in ctx.command.params if option.name in taken
    }


def choose_recipe(options: dict[str, Any]) -> "Recipe | None":
    """The recipe of --recipe, None without one.

    Raises:
        InputError: there is no such recipe, or an option is given that only its stages may set.
    """
    if options["recipe"] is None:
        return None
    from compressor.pipeline.recipe import load_recipe

    recipe = load_recipe(options["recipe"])
    for name in STAGE_OPTIONS:
        if is_given(name):
            raise InputError(f"--recipe and {_option(name)} contradict each other: the stages set it")
    if is_given("gamma") and recipe.names_every_gamma:
        raise InputError("--recipe and --gamma contradict each other: every stage that compresses has its own gamma")
    return recipe


def check_tuning(options: dict[str, Any], tuned: bool) -> None:
    """Check the options of fine-tuning before anything is loaded.

    Args:
        options: the command's.
        tuned: whether the run fine-tunes, by --finetune or by its recipe.

    Raises:
        InputError: options of fine-tuning without fine-tuning, fine-tuning without images, or a folder without images.
    """
    from compressor.data.folders import list_images

    given = [name for name in TUNE_OPTIONS if is_given(name)]
    if not tuned and given:
        raise InputError(f"{_option(given[0])} is for fine-tuning: give --finetune EPOCHS as well")
    if tuned and options["data"] is None and options["train_data"] is None:
        what = "--finetune" if options["finetune"] else "a recipe with fine-tuning"
        raise InputError(f"{what} needs images of the task: give --data or --train-data")
    if options["train_data"] is not None:
        list_images(options["train_data"])


def tune_settings(options: dict[str, Any]) -> "TuneSettings":
    """The settings of fine-tuning that the options give."""
    from compressor.recovery.settings import TuneSettings

    return TuneSettings(
        epochs=options["finetune"],
        by=options["finetune_by"],
        schedule=options["schedule"],
        learning_rate=options["learning_rate"],
        autocast=options["autocast"],
    )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def split_patterns(values: tuple[str, ...]) -> list[str]:
    """Patterns of an option that may be repeated and may hold several, separated by commas."""
    return [pattern for value in values for pattern in value.split(",") if pattern]


def make_settings(options: dict[str, Any]) -> "Settings":
    """The settings of a run: of a search where the command has its options, else of `apply`.

    Raises:
        InputError: options that contradict each other, or that need another one.
    """
    from compressor.pipeline.settings import require_compatible

    if options.get("fidelity", "norm") != "norm" and options["data"] is None:
        raise InputError(f"--fidelity {options['fidelity']} needs labels: give --data, with a subfolder per class")
    settings = _as_settings(options)
    require_compatible(settings)
    return settings


def _as_settings(options: dict[str, Any]) -> "Settings":
    from compressor.pipeline.settings import Settings

    shared = {key: options[key] for key in SHARED_SETTINGS}
    shared["precisions"] = tuple(dict.fromkeys(name for names in options["precisions"] for name in names))
    shared["factors"] = None if options["factors"] == "plan" else options["factors"]
    shared["max_memory_bytes"] = options["max_memory"]
    shared["output_weights"] = options["output_weights"] or ()
    shared["tune"] = tune_settings(options)
    shared["search"] = search_settings(options)
    if "gamma" not in options:
        return Settings(**shared)
    target = _make_target(options)
    return Settings(
        gamma=options["gamma"],
        target=target,
        form=options["form"],
        fidelity=options["fidelity"],
        cost=_choose_cost(options, target),
        provider=options["provider"],
        method=options["method"],
        rank_multiple=options["rank_multiple"],
        layers=split_patterns(options["layers"]),
        skip=split_patterns(options["skip"]),
        prune_fraction=options["prune"],
        workers=options["workers"],
        backend=options["backend"],
        cluster=options["cluster"],
        **shared,
    )


def search_settings(options: dict[str, Any]) -> "SearchSettings":
    """The settings of the search that the options give; of those of `apply`, which has none, only the seed."""
    from compressor.search.settings import SearchSettings

    if "gamma" not in options:
        return SearchSettings(seed=options["seed"])
    delta, is_relative = options["delta"]
    return SearchSettings(
        delta=delta, delta_is_relative=is_relative, **{name: options[name] for name in SEARCH_SETTINGS}
    )


def _make_target(options: dict[str, Any]) -> "Target | None":
    """The target that was given, None without one.

    Raises:
        InputError: there are several, or an option that contradicts it.
    """
    from compressor.pipeline.settings import Target
    from compressor.search.records import TARGET_OPTIONS

    values = {kind: options[name.strip("-").replace("-", "_")] for kind, name in TARGET_OPTIONS.items()}
    given = {kind: name for kind, name in TARGET_OPTIONS.items() if values[kind] is not None}
    if not given:
        return None
    if len(given) > 1:
        raise InputError(f"{' and '.join(given.values())} contradict each other: give one target")
    ((kind, name),) = given.items()
    if options["gamma"] is not None:
        raise InputError(f"{name} and --gamma contradict each other: a target takes gamma's place; give one of them")
    if options["form"] != "ratio":
        raise InputError(f"{name} needs --form ratio: gamma is the multiplier of Eq. (3)")
    return Target(kind, values[kind])


def _choose_cost(options: dict[str, Any], target: "Target | None") -> "Cost":
    """What R counts: --cost, or what the target is in.

    Raises:
        InputError: both are given and differ.
    """
    from compressor.search.records import TARGET_OPTIONS

    kind = target.kind if target else "ratio"
    implied: Cost | None = None if kind in ("ratio", "drop") else cast("Cost", kind)
    if implied and is_given("cost") and options["cost"] != implied:
        raise InputError(f"{TARGET_OPTIONS[kind]} and --cost {options['cost']} contradict each other")
    return implied or options["cost"]
