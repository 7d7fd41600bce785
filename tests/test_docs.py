"""Help texts, docs and options say the same."""

import re
from pathlib import Path

import click
import pytest

from compressor.cli.commands import export, main
from docs.generate import options_page, results_page

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "docs/method.md"]


def test_the_options_page_is_what_the_commands_say() -> None:
    assert (ROOT / "docs/options.md").read_text() == options_page()


def test_the_results_page_is_what_the_studies_measured() -> None:
    assert (ROOT / "docs/results.md").read_text() == results_page()


def all_options() -> set[str]:
    context = click.Context(main)
    commands = [export, *(main.get_command(context, name) for name in main.list_commands(context))]
    names = {
        name
        for command in commands
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    return names | {"--help"}


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_only_options_that_exist(page: str) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / page).read_text()))
    assert named <= all_options()


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_only_files_and_targets_that_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    for link in links:
        assert ((ROOT / page).parent / link).exists(), link
    for source in re.findall(
        r"`((?:compressor|exporters|benchmarks|tests|docs)/[\w/.]*)`", text.replace("NAME.json", "")
    ):
        assert (ROOT / source).exists(), source
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|    )make ([a-z0-9-]+)", text)) <= targets


def test_every_option_has_help_and_every_command_says_what_it_does() -> None:
    for command in [export, *main.commands.values()]:
        assert command.help
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (command.name, parameter.name)
