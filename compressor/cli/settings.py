"""Options on fine-tuning and recipes: which go together, and what they make."""

from typing import TYPE_CHECKING, Any, cast

import click
from click.core import ParameterSource

from compressor.errors import InputError

if TYPE_CHECKING:
    from compressor.cost.records import Cost
    from compressor.pipeline.settings import Settings, Target

if TYPE_CHECKING:
    from compressor.pipeline.recipe import Recipe
    from compressor.recovery.schedules import TuneSettings

SHARED_SETTINGS = ("device", "threads", "batch_size", "calibration", "recalibrate", "formats", "zip", "opset")

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
    from compressor.pipeline.recipe import load_recipe

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
    from compressor.data.images import list_images

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
    from compressor.recovery.schedules import TuneSettings

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


def split_patterns(values: tuple[str, ...]) -> list[str]:
    return [pattern for value in values for pattern in value.split(",") if pattern]


def make_settings(options: dict[str, Any]) -> "Settings":
    from compressor.pipeline.settings import Settings
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
    target = _make_target(options)
    return Settings(
        gamma=options["gamma"],
        target=target,
        form=options["form"],
        fidelity=options["fidelity"],
        cost=_cost(options, target),
        provider=options["provider"],
        method=options["method"],
        rank_multiple=options["rank_multiple"],
        layers=split_patterns(options["layers"]),
        skip=split_patterns(options["skip"]),
        prune_fraction=options["prune"],
        workers=options["workers"],
        backend=options["backend"],
        search=search,
        **shared,
    )


def _make_target(options: dict[str, Any]) -> "Target | None":
    """The one target given.

    Raises:
        InputError: there are several, or one beside what it stands for.
    """
    from compressor.pipeline.settings import Target
    from compressor.search.records import TARGET_OPTIONS

    values = {kind: options[name.strip("-").replace("-", "_")] for kind, name in TARGET_OPTIONS.items()}
    given = {kind: name for kind, name in TARGET_OPTIONS.items() if values[kind] is not None}
    if not given:
        return None
    if len(given) > 1:
        raise InputError(f"{' and '.join(given.values())} contradict each other: each says what to stop at; give one")
    ((kind, name),) = given.items()
    if options["gamma"] is not None:
        raise InputError(f"{name} and --gamma contradict each other: the target finds gamma; give one of them")
    if options["form"] != "ratio":
        raise InputError(f"{name} needs --form ratio: the dual is that of Eq. (3)")
    return Target(kind, values[kind])


def _cost(options: dict[str, Any], target: "Target | None") -> "Cost":
    """What size means: as given, or what the target is about.

    Raises:
        InputError: they are not the same.
    """
    from compressor.search.records import TARGET_OPTIONS

    kind = target.kind if target else "ratio"
    implied: Cost | None = None if kind in ("ratio", "drop") else cast("Cost", kind)
    if implied and is_given("cost") and options["cost"] != implied:
        raise InputError(f"{TARGET_OPTIONS[kind]} and --cost {options['cost']} contradict each other")
    return implied or options["cost"]
