"""Shell completion, and the names that it offers without loading torch."""

import re
from collections.abc import Iterator
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import click
from click.shell_completion import CompletionItem

PROGRAMS = {"bocompress": "_BOCOMPRESS_COMPLETE", "bocompress-export": "_BOCOMPRESS_EXPORT_COMPLETE"}
# How torchvision's sources announce a network; importing them would take seconds.
REGISTERED = re.compile(r"^@register_model\(\)\n(?:[@ )].*\n)*def (\w+)\(", re.MULTILINE)


def registered_architectures() -> list[str]:
    """torchvision's networks that can be compressed, read from its sources; empty where it is not installed."""
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return []
    models = Path(spec.origin).parent / "models"
    tasks = ("", "segmentation", "video", "detection", "optical_flow")
    sources = [file for task in tasks for file in (models / task).glob("*.py")]
    return sorted(name for source in sources for name in REGISTERED.findall(source.read_text(encoding="utf-8")))


def complete_architecture(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """torchvision's names that begin with `incomplete`; the others are click's, and not needed."""
    return [CompletionItem(name) for name in registered_architectures() if name.startswith(incomplete.lower())]


def complete_recipe(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Recipes that come along, and TOML files, that begin with `incomplete`; the others are click's, and not needed."""
    names = [*_recipe_names(), *_toml_files(incomplete)]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _recipe_names() -> list[str]:
    folder = resources.files("compressor.pipeline") / "recipes"
    return sorted(Path(file.name).stem for file in folder.iterdir() if file.name.endswith(".toml"))


def _toml_files(incomplete: str) -> Iterator[str]:
    folder = incomplete[: incomplete.rfind("/") + 1]
    try:
        entries = sorted(Path(folder or ".").iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.suffix == ".toml":
            yield folder + entry.name


def completion_script(shell: str, commands: dict[str, click.Command]) -> str:
    """What a shell has to evaluate so that it completes these commands.

    Args:
        shell: bash, zsh or fish.
        commands: those of PROGRAMS by their names.
    """
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None
    scripts = [complete(command, {}, name, PROGRAMS[name]).source() for name, command in commands.items()]
    return "\n".join(scripts)
