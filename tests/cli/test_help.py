"""Help at the terminal's width, the common options first; completion without torch; wrong usage in one sentence."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from compressor.cli.commands import COMMON, export, main
from compressor.cli.completion import registered_architectures
from compressor.network.architectures import list_architectures
from compressor.pipeline.recipe import list_recipes

COMMANDS = [export, *(main.commands[name] for name in ("apply", "verify"))]


def help_of(command: click.Command, *arguments: str) -> str:
    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_takes_the_terminals_width(command: click.Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (60, 90, 140):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = command.make_context("bocompress", [], resilient_parsing=True).get_help()
        longest = max(map(len, text.split("ptions:\n")[1].splitlines()))
        assert columns * 0.9 < longest <= columns


def test_the_short_form_of_help_is_the_same() -> None:
    assert help_of(export, "-h") == help_of(export, "--help")
    assert help_of(main, "verify", "-h") == help_of(main, "verify", "--help")


def test_help_shows_three_examples_and_the_common_options_only() -> None:
    text = help_of(export, "--help")
    examples = re.findall(r"^  (bocompress-export .*)$", text, re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        export.make_context("bocompress-export", example.split()[1:])
    shown = re.findall(r"^  (?:-h, )?(--[\w-]+)", text, re.MULTILINE)
    assert shown == [*COMMON, "--help", "--help-all", "--version"]
    assert len(COMMON) == 12


def test_help_all_shows_more_than_help() -> None:
    assert "--acquisition" not in help_of(export, "--help")
    assert "--acquisition" in help_of(export, "--help-all")


# --- Completion --------------------------------------------------------------------------------------------


def completions(command: click.Command, *words: str) -> list[str]:
    *before, incomplete = words
    return [item.value for item in ShellComplete(command, {}, "x", "_X").get_completions(before, incomplete)]


def test_architectures_are_those_of_torchvision() -> None:
    assert registered_architectures() == sorted(list_architectures())


def test_arch_and_recipe_are_completed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").touch()
    (tmp_path / "notes.txt").touch()
    assert completions(export, "--arch", "resnet1") == ["resnet101", "resnet152", "resnet18"]
    assert completions(export, "--recipe", "") == [*list_recipes(), "mine.toml"]
    assert completions(export, "--recipe", str(tmp_path / "m")) == [str(tmp_path / "mine.toml")]
    assert completions(export, "--recipe", "missing/") == []
    assert completions(main, "recipes", "v") == ["vgg"]
    assert completions(main, "ins") == ["inspect"]


def test_model_is_completed_by_the_shells_files() -> None:
    (item,) = ShellComplete(export, {}, "x", "_X").get_completions([], "mod")
    assert (item.type, item.value) == ("file", "mod")


def test_completion_loads_no_torch() -> None:
    code = (
        "import sys\nfrom click.shell_completion import ShellComplete\nfrom compressor.cli.commands import export\n"
        "complete = ShellComplete(export, {}, 'x', '_X').get_completions\n"
        "found = [complete([name], '') for name in ('--arch', '--recipe')]\n"
        "print(min(map(len, found)) > 0, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell_names_both_programs(shell: str) -> None:
    script = help_of(main, "completion", shell)
    assert "_BOCOMPRESS_COMPLETE" in script
    assert "_BOCOMPRESS_EXPORT_COMPLETE" in script


def test_bash_completes_architectures(run_command) -> None:
    script = run_command("bocompress", "completion", "bash").stdout
    typed = 'COMP_WORDS=(bocompress-export --arch swin_v2_) COMP_CWORD=2; _bocompress_export_completion "$0"'
    found = subprocess.run(
        ["bash", "-c", f'{script}\n{typed}; echo "${{COMPREPLY[@]}}"', f"{sys.exec_prefix}/bin/bocompress-export"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["swin_v2_b", "swin_v2_s", "swin_v2_t"]


# --- Wrong usage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (export, [], "missing argument 'MODEL'"),
        (export, ["model.pt", "--gamme", "1"], "--gamme"),
        (export, ["model.pt", "--gamma", "much"], "'--gamma': 'much' is neither a positive number nor 'auto'"),
        (export, ["model.pt", "--max-drop", "0"], "'--max-drop': 0.0 is not in the range"),
        (export, ["model.pt", "--precision", "int4"], "'--precision': 'int4' is not one or more of"),
        (export, ["model.pt", "--target-bytes", "small"], "'--target-bytes': 'small' is not a positive number"),
        (export, ["model.pt", "--input-size", "large"], "'--input-size': 'large' is not a valid integer"),
        (export, ["model.pt", "photos"], "photos"),
        (export, ["model.pt", "--data"], "'--data' requires an argument"),
        (export, ["model.pt", "--form", "product"], "'--form': 'product' is not one of"),
        (export, ["model.pt", "--quiet=yes"], "'--quiet' does not take a value"),
        (main, ["exprot", "model.pt"], "no such command 'exprot'"),
        (main, ["verify", "a.onnx"], "missing argument 'SECOND'"),
        (main, ["apply", "model.pt"], "missing argument 'PLAN'"),
        (main, ["benchmark"], "missing argument 'FILE...'"),
        (main, ["completion", "tcsh"], "'tcsh' is not one of"),
        (main, ["completion"], "missing argument 'SHELL'. Choose from: bash, zsh, fish"),
    ],
)
def test_wrong_usage_is_one_sentence(command: click.Command, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(command, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert words in result.stderr


def test_a_command_alone_shows_its_help() -> None:
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 2
    assert "Commands:" in result.output


def test_the_package_runs_as_a_module_whatever_files_are_there(tmp_path: Path) -> None:
    for name in ("json", "random", "click", "exporters"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the folder ran')\n")
    command = [sys.executable, "-m", "compressor", "recipes"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("vgg: ")
    done = subprocess.run([*command[:-1], "-h"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: bocompress ")
