"""--preset: what it sets, what wins over it, and what the report says of it."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from compressor.cli.commands import export
from compressor.cli.config import preset_words
from compressor.cli.presets import preset_files
from compressor.cli.settings import choose_recipe, leave_to_stages, make_settings
from compressor.cli.sweep.command import sweep
from compressor.pipeline.settings import Settings
from compressor.search.settings import SearchSettings

PAPER = Settings(
    layers=["paper"],
    skip=[],
    method="spatial",
    factors="weight",
    recalibrate=False,
    search=SearchSettings(
        delta=0.05,
        delta_is_relative=False,
        epsilon=0.005,
        certificate="pointwise",
        acquisition="pac",
        samples=50,
        noise="sample",
        refit="stopping",
        coordinates="linear",
        start="random",
        surrogate="objective",
        prior_mean="none",
        refine=False,
    ),
)


def made(*arguments: str) -> Settings:
    context = export.make_context("bocompress-export", ["model.pt", *arguments])
    with context:
        return make_settings(leave_to_stages(context.params))


def test_the_papers_preset_is_the_papers_system() -> None:
    assert made("--preset", "paper") == PAPER


@pytest.mark.parametrize("arguments", [["--preset", "paper", "--samples", "30"], ["--samples", "30", "--preset=paper"]])
def test_what_is_typed_wins_over_a_preset(arguments: list[str]) -> None:
    settings = made(*arguments)
    assert settings.search.samples == 30
    assert settings.search.coordinates == "linear"


def test_a_file_wins_over_a_preset_even_where_it_names_a_default(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('coordinates = "log"\nsamples = 60\n')
    config = ["--config", str(tmp_path / "run.toml")]
    for order in (["--preset", "paper", *config], [*config, "--preset", "paper"]):
        search = made(*order).search
        assert (search.coordinates, search.samples, search.start) == ("log", 60, "random")


def test_a_file_can_name_a_preset(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('preset = "paper"\nrefine = true\n')
    search = made("--config", str(tmp_path / "run.toml")).search
    assert (search.refine, search.coordinates) == (True, "linear")


def test_the_stages_of_a_recipe_name_layers_and_methods_themselves() -> None:
    settings = made("--preset", "paper", "--recipe", "vgg")
    assert (settings.layers, settings.method) == ([], "auto")
    assert settings.search == PAPER.search
    context = export.make_context("x", ["model.pt", "--preset", "paper", "--recipe", "vgg"])
    with context:
        assert choose_recipe(context.params) is not None


def test_the_report_names_what_a_preset_stood_for() -> None:
    words = words_of("--preset", "paper", "--samples", "30")
    assert "--samples" not in words
    assert "--coordinates linear" in words
    assert "--no-recalibrate" in words
    assert made(*shlex.split(words)).search == PAPER.search
    assert words_of("--samples", "30") == ""


def words_of(*arguments: str) -> str:
    context = export.make_context("bocompress-export", ["model.pt", *arguments])
    with context:
        return preset_words(leave_to_stages(context.params))


@pytest.mark.parametrize("command", [export, sweep])
def test_help_says_what_the_paper_preset_sets(command: click.Command) -> None:
    (option,) = (row for row in command.params if row.name == "preset")
    assert isinstance(option, click.Option)
    assert option.help is not None
    assert set(without_defaults(shlex.split(words_of("--preset", "paper")))) <= set(re.split("[, ]+|[.] ", option.help))


def without_defaults(words: list[str]) -> list[str]:
    """The words without options that the preset leaves at their default, to say so."""
    for default in (["--form", "ratio"], ["--excess-noise"], ["--remeasure"]):
        start = words.index(default[0])
        words = words[:start] + words[start + len(default) :]
    return words


def test_there_is_no_other_preset_than_those_in_files() -> None:
    assert list(preset_files()) == ["paper"]
    result: Any = CliRunner().invoke(export, ["model.pt", "--preset", "papers"])
    assert result.exit_code == 2
    assert "'papers' is not 'paper'" in result.stderr
