"""Recipes: stages in order, as data from TOML (Sec. 4.3 is one of them)."""

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, SerializeAsAny, ValidationError, field_validator

from compressor.errors import InputError
from compressor.files import parse_toml, read_text
from compressor.pipeline.stage import StageSpec
from compressor.pipeline.stages.compress_layers import CompressSpec
from compressor.pipeline.stages.registry import RECIPE_STAGES
from compressor.schema import Record

SUFFIX = ".toml"
FOLDER = "recipes"


class Recipe(Record):
    """Stages in order, of which at least one compresses; each has a name of its own."""

    description: str = ""
    stage: list[SerializeAsAny[StageSpec]] = Field(min_length=1)

    @field_validator("stage", mode="before")
    @classmethod
    def _parse_stages(cls, given: Any) -> Any:
        return [_parse_stage(*entry) for entry in enumerate(given, 1)] if isinstance(given, list) else given

    @property
    def tunes(self) -> bool:
        """Whether any stage needs images to train on."""
        return any(spec.kind == "finetune" for spec in self.stage)

    @property
    def names_every_gamma(self) -> bool:
        """Whether nothing is left for a gamma that holds for all stages."""
        specs = [spec for spec in self.stage if isinstance(spec, CompressSpec)]
        return all(spec.gamma is not None or spec.target_ratio is not None for spec in specs)

    @property
    def folders(self) -> list[str]:
        """Names of the stages' folders: number and name."""
        return [f"{number}-{spec.name or spec.kind}" for number, spec in enumerate(self.stage, 1)]


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("compressor.pipeline") / FOLDER
    return sorted(path.name.removesuffix(SUFFIX) for path in folder.iterdir() if path.name.endswith(SUFFIX))


def recipe_text(name: str) -> str:
    """The text of a recipe that comes with the package.

    Raises:
        InputError: there is none of that name.
    """
    if name not in list_recipes():
        raise InputError(f"there is no recipe {name!r}; those that come along are {', '.join(list_recipes())}")
    return (resources.files("compressor.pipeline") / FOLDER / f"{name}{SUFFIX}").read_text(encoding="utf-8")


def load_recipe(name: str) -> Recipe:
    """A recipe by the name under which it comes along, or from a TOML file.

    Raises:
        InputError: no such recipe or file, no TOML, or not a recipe; the sentence names the first thing at fault.
    """
    if name in list_recipes():
        return parse_recipe(recipe_text(name), name)
    path = Path(name)
    if not path.exists() and path.suffix != SUFFIX:
        recipe_text(name)
    return parse_recipe(read_text(path, "recipe"), str(path))


def parse_recipe(text: str, source: str) -> Recipe:
    """The recipe in `text`; `source` names it in errors.

    Raises:
        InputError: see `load_recipe`.
    """
    try:
        recipe = Recipe.model_validate(parse_toml(text, source, "recipe"))
    except ValidationError as error:
        raise InputError(f"{source} is not a recipe: {_describe(error)}") from error
    _require_consistent(recipe, source)
    return recipe


def _require_consistent(recipe: Recipe, source: str) -> None:
    if not any(isinstance(spec, CompressSpec) for spec in recipe.stage):
        raise InputError(f"{source} is not a recipe: none of its stages compresses")
    for number, spec in enumerate(recipe.stage, 1):
        if not re.fullmatch(r"[\w.-]*", spec.name):
            raise InputError(f"{source}: the name of stage {number} may have letters, digits, '.', '_' and '-' only")
        if isinstance(spec, CompressSpec) and spec.gamma is not None and spec.target_ratio is not None:
            raise InputError(f"{source}: stage {number} has both gamma and target_ratio: give one of them")


def _parse_stage(number: int, entry: Any) -> StageSpec:
    """One stage of a recipe, by its kind.

    Raises:
        ValueError: the sentence names the stage and the first key at fault.
    """
    where, kinds = f"stage {number}", ", ".join(RECIPE_STAGES)
    if isinstance(entry, StageSpec):
        return entry
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: Input should be a table")
    if "kind" not in entry:
        raise ValueError(f"{where}: it has no kind; kinds are {kinds}")
    if entry["kind"] not in list(RECIPE_STAGES):
        raise ValueError(f"{where}: unknown kind {entry['kind']!r}; kinds are {kinds}")
    try:
        return RECIPE_STAGES[entry["kind"]].spec.model_validate(entry)
    except ValidationError as error:
        raise ValueError(f"{where}: {_describe(error)}") from error


def _describe(error: ValidationError) -> str:
    """The first complaint in words: which key, and why."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error":
        reason = str(first["ctx"]["error"])
        return reason if key == "stage" else f"{key}: {reason}"  # of a stage, the reason names it
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}"
    return f"{key}: {first['msg']}" if key else str(first["msg"])


def recipe_content(recipe: Recipe) -> list[dict[str, Any]]:
    """What the recipe does, as JSON has it: comments and description do not count."""
    return [spec.model_dump(mode="json") for spec in recipe.stage]
