"""The commands: help, the version, plug-ins, and the layers that `inspect` lists."""

import importlib.metadata
import math
import re
import subprocess
import sys
from importlib.metadata import EntryPoints

import click
import pytest
import torch
from click.testing import CliRunner
from pydantic import TypeAdapter

import compressor
from compressor.cli.commands import export, main
from compressor.network.records import LayerRecord

# --- Help and version --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (main, ["apply", "benchmark", "export", "inspect", "report"]),
        (export, ["MODEL", "--data", "--gamma", "--max-drop", "--precision", "--resume", "--out", "--help-all"]),
        *[(row, ["--help"]) for row in main.commands.values()],
    ],
)
def test_help(command, words):
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    assert result.output.startswith("Usage:")
    assert all(word in result.output for word in words)


def test_every_option_explains_itself():
    undocumented = [
        (command.name, parameter.name)
        for command in (export, *main.commands.values())
        for parameter in command.params
        if parameter.param_type_name == "option" and not parameter.help
    ]
    assert undocumented == []


@pytest.mark.parametrize("command", ["bocompress", "bocompress-export"])
def test_version_in_a_process_of_its_own(run_command, command):
    done = run_command(command, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{command}, version {compressor.__version__}\n"


@pytest.mark.parametrize("command", [export, main.commands["apply"]])
def test_help_shows_every_option_once_in_its_group(command):
    text = CliRunner().invoke(command, ["--help-all"]).stdout
    groups = re.split(r"^([A-Z][\w -]+):$", text, flags=re.MULTILINE)
    shown = dict(zip(groups[1::2], groups[2::2], strict=True))
    assert list(shown)[:2] == ["Examples", "Model"]
    assert "--input-size" in shown["Images"]
    assert "--finetune " in shown["Fine-tuning"]
    for option in (parameter for parameter in command.params if isinstance(parameter, click.Option)):
        assert sum(bool(re.search(rf"^  {option.opts[0]}\b(?!-)", part, re.MULTILINE)) for part in groups) == 1, option


def test_help_loads_no_torch():
    """Help is quick only as long as nothing heavy is imported for it."""

    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom compressor.cli.commands import main\n"
        "print(CliRunner().invoke(main, ['export', '--help']).exit_code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 False\n"


@pytest.mark.parametrize(
    ("command", "arguments", "word"),
    [
        ("bocompress-export", [], "MODEL"),
        ("bocompress", ["apply", "model.pt"], "PLAN"),
        ("bocompress", ["exprot", "model.pt"], "exprot"),
        ("bocompress-export", ["model.pt", "--gamme", "1"], "--gamme"),
        ("bocompress-export", ["model.pt", "images"], "images"),
    ],
)
def test_wrong_usage_is_explained_in_a_sentence(refuse, command, arguments, word):
    assert word in refuse(command, *arguments)


# --- Commands of other packages ----------------------------------------------------------------------------


def test_other_packages_add_commands_by_entry_points(monkeypatch):
    """As `benchmark` does; the command is loaded when it is used, not when commands are listed."""
    loaded = []

    @click.command()
    def hello() -> None:
        """Greet."""
        click.echo("hello")

    class Plugin:
        name = "hello"

        def load(self):
            loaded.append(self.name)
            return hello

    def entry_points(group: str, name: str | None = None) -> EntryPoints:
        assert group == "bocompress.commands"
        found = installed(group=group) if name is None else installed(group=group, name=name)
        return EntryPoints([*found, *([Plugin()] if name in (None, "hello") else [])])

    installed = importlib.metadata.entry_points
    monkeypatch.setattr("compressor.cli.commands.entry_points", entry_points)
    monkeypatch.setattr(main, "commands", dict(main.commands))
    assert {"hello", "benchmark"} <= set(main.list_commands(click.Context(main)))
    assert loaded == []
    assert CliRunner().invoke(main, ["hello"]).output == "hello\n"
    assert loaded == ["hello"]
    assert "Greet." in CliRunner().invoke(main, ["--help"]).output


def test_benchmark_is_registered_as_an_entry_point():
    (plugin,) = importlib.metadata.entry_points(group="bocompress.commands", name="benchmark")
    assert plugin.load() is main.get_command(click.Context(main), "benchmark")


# --- inspect -----------------------------------------------------------------------------------------------


def test_inspect_lists_layers_as_a_table_and_as_json(invoke, squeezenet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["inspect", squeezenet, "--input-size", 64, "--skip", "features.12*"]
    table, as_json = invoke("bocompress", *arguments), invoke("bocompress", *arguments, "--json")
    assert (table.exit_code, as_json.exit_code) == (0, 0)
    layers = TypeAdapter(list[LayerRecord]).validate_json(as_json.stdout)
    weights = {
        name.removesuffix(".weight"): list(tensor.shape)
        for name, tensor in torch.load(squeezenet).items()
        if name.endswith(".weight")
    }
    assert {layer.name: layer.shape for layer in layers} == weights
    assert "squeezenet1_1, 10 classes, 64 px" in table.stdout
    for layer in layers:
        (row,) = [line for line in table.stdout.splitlines() if f" {layer.name} " in line]
        assert f"{layer.params:,}" in row
        assert f"{layer.macs:,}" in row
        assert (layer.skipped is not None) == ("--skip" in row)
        assert layer.params == math.prod(layer.shape)
    assert {layer.name for layer in layers if layer.skipped} == {
        name for name in weights if name.startswith("features.12")
    }
    # conv1 of 64 px: 3 x 3, stride 2, no padding, 31 x 31 output positions.
    assert layers[0].macs == 31 * 31 * 64 * 3 * 9
    assert layers[0].break_even_rank == 64 * 3 * 9 // (3 * 3 + 64 * 3)
    assert list(tmp_path.iterdir()) == []
