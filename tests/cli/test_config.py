"""--config and --print-config: every option goes into a file and back, and mistakes are one sentence."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from compressor.cli.commands import export, main
from compressor.cli.config import NOT_IN_FILES, config_text, is_given, without_replaced

COMMANDS = {"export": export, "apply": main.commands["apply"]}
# What each type is tried with; of choices the last is taken.
TRIED = {
    "data": "photos",
    "train_data": "more photos",
    "out": 'out "of" Größe',
    "arch": "resnet18",
    "recipe": "vgg",
    "backend": "threading",
    "device": "cuda:1",
    "mean": "0.5,0.25,0.125",
    "std": "0.5,0.25,0.125",
    "gamma": "0.03",
    "delta": "0.1%",
    "prune": "auto",
    "output_weights": "out=1,aux=0.5",
    "rank_multiple": "auto",
    "target_bytes": "4MB",
    "target_macs": "300M",
    "max_drop": "1.5",
    "max_memory": "2GB",
    "precisions": "int8",
    "layers": "layer1*,layer2*",
    "skip": "fc",
}


def parsed(command: click.Command, *arguments: str) -> dict[str, Any]:
    return command.make_context("bocompress", [*arguments]).params


def typed(parameter: click.Option) -> list[str]:
    """An option with a value that is not its default."""
    name = parameter.opts[0]
    if parameter.is_flag:
        return [parameter.secondary_opts[0] if parameter.default is True else name]
    if parameter.name in TRIED:
        return [name, TRIED[parameter.name]]
    if isinstance(parameter.type, click.Choice):
        other = [choice for choice in parameter.type.choices if choice != parameter.default]
        return [name, other[-1]]
    if isinstance(parameter.type, click.IntRange):
        return [name, str((parameter.type.min or 0) + 9)]
    if isinstance(parameter.type, click.FloatRange):
        return [name, "0.25"]
    return [name, "any"]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("all_typed", [False, True], ids=["defaults", "typed"])
def test_every_option_goes_into_a_file_and_back(name: str, all_typed: bool, tmp_path: Path) -> None:
    command = COMMANDS[name]
    options = [row for row in command.params if isinstance(row, click.Option) and row.name not in NOT_IN_FILES]
    values = [word for row in options for word in typed(row)] if all_typed else []
    printed = CliRunner().invoke(command, ["--print-config", *values])
    assert printed.exit_code == 0, printed.output
    (tmp_path / "run.toml").write_text(printed.stdout)
    before = parsed(command, "model.pt", *(["plan.json"] if name == "apply" else []), *values)
    after = parsed(
        command, "model.pt", *(["plan.json"] if name == "apply" else []), "--config", str(tmp_path / "run.toml")
    )
    for row in options:
        assert after[row.name] == before[row.name], row.name
        if all_typed:
            assert row.opts[0].strip("-") in tomllib.loads(printed.stdout), row.name


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], list[str]]:
    """Arguments that read a file with this text."""

    def write(text: str) -> list[str]:
        (tmp_path / "run.toml").write_text(text)
        return ["--config", str(tmp_path / "run.toml")]

    return write


def test_values_are_written_as_people_write_them(config) -> None:
    text = """
        model = "net.pt"
        max_drop = 1
        mean = [0.5, 0.5, 0.5]
        layers = "layer1*"
        precision = ["fp32", "int8"]
        recalibrate = false
        "--samples" = 40
    """
    params = parsed(export, *config(text))
    assert params["model"] == Path("net.pt")
    assert params["max_drop"] == 1.0
    assert params["mean"] == (0.5, 0.5, 0.5)
    assert params["layers"] == ("layer1*",)
    assert params["precisions"] == (("fp32",), ("int8",))
    assert params["recalibrate"] is False
    assert params["samples"] == 40


def test_what_is_typed_wins_wherever_it_stands(config) -> None:
    arguments = config("samples = 40\nseed = 1\n")
    for order in (["--samples", "30", *arguments], [*arguments, "--samples", "30"]):
        params = parsed(export, "model.pt", *order)
        assert (params["samples"], params["seed"]) == (30, 1)


def test_a_typed_target_replaces_the_files(config) -> None:
    context = export.make_context("x", ["model.pt", "--target-bytes", "4MB", *config("gamma = 0.01\nmax-drop = 1\n")])
    with context:
        options = without_replaced(context.params)
        assert (options["gamma"], options["max_drop"], options["target_bytes"]) == (None, None, 4e6)


@pytest.mark.parametrize("names", [("resume", "overwrite"), ("overwrite", "resume")])
def test_resume_and_overwrite_replace_each_other_like_targets(config, names: tuple[str, str]) -> None:
    typed_one, of_file = names
    context = export.make_context("x", ["model.pt", f"--{typed_one}", *config(f"{of_file} = true\n")])
    with context:
        options = without_replaced(context.params)
        assert (options[typed_one], options[of_file]) == (True, False)


def test_defaults_in_a_file_do_not_count_as_given(config) -> None:
    context = export.make_context("x", ["model.pt", *config('cost = "params"\nfinetune-by = "labels"\n')])
    with context:
        assert not is_given("cost")
        assert is_given("finetune_by")


def test_options_that_are_left_out_stand_there_as_comments() -> None:
    context = export.make_context("bocompress-export", ["model.pt", "--gamma", "0.01"])
    with context:
        text = config_text(context.params)
    assert "\n# max-drop =\n" in text
    assert "\n# Objective\ngamma = 0.01\n" in text
    assert '\nmodel = "model.pt"\n' in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gama = 1", ["no option 'gama'", "'gamma'"]),
        ("[search]\nsamples = 4", ["no option 'search'"]),
        ("gamma = 'much'", ["gamma: 'much' is neither a positive number nor 'auto'"]),
        ("samples = 1.5", ["samples: '1.5' is not a valid integer"]),
        ("samples = true", ["samples: True is neither a text nor a number"]),
        ("resume = 1", ["resume: 1 is neither true nor false"]),
        ("max-drop = 1\nmax_drop = 2", ["'max-drop' twice"]),
        ("data = {a = 1}", ["data: {'a': 1} is neither"]),
        ("form = 'product'", ["form: 'product' is not one of"]),
        ("no toml", ["no TOML"]),
        (f"samples = {'9' * 5000}", ["no TOML"]),
        ("config = 'other.toml'", ["no option 'config'"]),
    ],
)
def test_mistakes_in_a_file_are_one_sentence(config, text: str, words: list[str]) -> None:
    result = CliRunner().invoke(export, ["model.pt", *config(text)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert all(word in result.stderr for word in ["run.toml", *words]), result.stderr


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.toml"
    if content:
        path.write_bytes(content)
    result = CliRunner().invoke(export, ["model.pt", "--config", str(path)])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "run.toml" in result.stderr
