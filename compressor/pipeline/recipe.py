"""Recipes: stages of compressing, tuning and pruning as data, from TOML (Sec. 4.3 is one of them)."""

import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from compressor.cost.records import Cost
from compressor.errors import InputError
from compressor.factorization.records import FactorChoice
from compressor.recovery.records import Schedule, TuneTarget
from compressor.schema import Record
from compressor.search.records import Certificate, Form

SUFFIX = ".toml"
FOLDER = "recipes"
KINDS = ("compress", "finetune", "prune")
Gamma = Annotated[float, Field(ge=1e-12, le=1e12)]


class CompressStage(Record):
    """A search over the layers that kind and patterns name, as they are after the stages before. What is not said is
    taken from the run's settings. `target_ratio`, in place of gamma: parameters left, over those of the network that
    the stage is given."""

    kind: Literal["compress"]
    name: str = ""
    of: Literal["all", "conv", "linear"] = "all"
    layers: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    method: Literal["auto", "auto+cp", "svd", "spatial", "tucker", "cp", "interpolative"] = "auto"
    gamma: Gamma | None = None
    target_ratio: float | None = Field(default=None, gt=0, lt=1)
    form: Form | None = None
    cost: Cost | None = None
    factors: FactorChoice | None = None
    recalibrate: bool | None = None
    rank_multiple: int | None = Field(default=None, ge=1, le=256)
    samples: int | None = Field(default=None, ge=2)
    certificate: Certificate | None = None
    epsilon: float | None = Field(default=None, gt=0, lt=1)
    max_evaluations: int | None = Field(default=None, ge=1)
    max_seconds: float | None = Field(default=None, gt=0)


class FinetuneStage(Record):
    """A fine-tuning of the network as it is, towards the original's outputs or the labels."""

    kind: Literal["finetune"]
    name: str = ""
    epochs: int = Field(ge=1)
    by: TuneTarget = "teacher"
    schedule: Schedule = "cosine"
    learning_rate: float | None = Field(default=None, gt=0, le=10)
    batch_size: int = Field(default=32, ge=1)
    patience: int = Field(default=3, ge=1)


class PruneStage(Record):
    """The smallest `fraction` of all weights set to zero."""

    kind: Literal["prune"]
    name: str = ""
    fraction: float = Field(gt=0, lt=1)


Stage = Annotated[CompressStage | FinetuneStage | PruneStage, Field(discriminator="kind")]


class Recipe(Record):
    """Stages in order, of which at least one compresses; each has a name of its own."""

    description: str = ""
    stage: list[Stage] = Field(min_length=1)

    @property
    def tunes(self) -> bool:
        """Whether any stage needs images to train on."""
        return any(stage.kind == "finetune" for stage in self.stage)

    @property
    def names_every_gamma(self) -> bool:
        """Whether nothing is left for a gamma that holds for all stages."""
        stages = [stage for stage in self.stage if isinstance(stage, CompressStage)]
        return all(stage.gamma is not None or stage.target_ratio is not None for stage in stages)

    @property
    def folders(self) -> list[str]:
        """Names of the stages' folders: number and name."""
        return [f"{number}-{stage.name or stage.kind}" for number, stage in enumerate(self.stage, 1)]


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
    try:
        return parse_recipe(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InputError(f"cannot read the recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a recipe: not a text in UTF-8") from error


def parse_recipe(text: str, source: str) -> Recipe:
    """The recipe in `text`; `source` names it in errors.

    Raises:
        InputError: see `load_recipe`.
    """
    try:
        recipe = Recipe.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source} is not a recipe: no TOML ({error})") from error
    except ValidationError as error:
        raise InputError(f"{source} is not a recipe: {_describe(error)}") from error
    if not any(stage.kind == "compress" for stage in recipe.stage):
        raise InputError(f"{source} is not a recipe: none of its stages compresses")
    for number, stage in enumerate(recipe.stage, 1):
        if not re.fullmatch(r"[\w.-]*", stage.name):
            raise InputError(f"{source}: the name of stage {number} may have letters, digits, '.', '_' and '-' only")
        if isinstance(stage, CompressStage) and stage.gamma is not None and stage.target_ratio is not None:
            raise InputError(f"{source}: stage {number} has both gamma and target_ratio: give one of them")
    return recipe


def _describe(error: ValidationError) -> str:
    """The first complaint in words: which stage, which key."""
    first = error.errors()[0]
    # The place of an entry of a stage: ("stage", number, kind, key).
    place: list[Any] = list(first["loc"])
    if place[:1] == ["stage"] and len(place) > 1:
        where, place = f"stage {int(place[1]) + 1}: ", place[3:]
    else:
        where = ""
    key = ".".join(str(part) for part in place)
    if first["type"] == "union_tag_invalid":
        given = first["ctx"]["tag"]
        return f"{where}unknown kind {given!r}; kinds are {', '.join(KINDS)}"
    if first["type"] == "union_tag_not_found":
        return f"{where}it has no kind; kinds are {', '.join(KINDS)}"
    if first["type"] == "extra_forbidden":
        return f"{where}unknown key {key!r}"
    return f"{where}{key}: {first['msg']}" if key else f"{where}{first['msg']}"


def recipe_content(recipe: Recipe) -> list[dict[str, Any]]:
    """What the recipe does, as JSON has it: comments and description do not count."""
    return list(TypeAdapter(list[Stage]).dump_python(recipe.stage, mode="json"))
