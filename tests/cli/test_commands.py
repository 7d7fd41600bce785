"""The commands: help, tables, plug-ins, and every wrong input in one sentence without a traceback."""

import importlib.metadata
import json
import math
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from importlib.metadata import EntryPoints
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from pydantic import TypeAdapter

import compressor
from compressor.cli.commands import export, main
from compressor.network.records import LayerRecord
from compressor.pipeline.plan import Plan
from compressor.report.records import Report
from exporters.providers import CUDA, available_providers

SMALL = ("--input-size", 32, "--max-evaluations", 1, "--samples", 4)
ALL_FILES = {
    "plans",
    "compressed.safetensors",
    "model.onnx",
    "original.onnx",
    "plan.json",
    "report.html",
    "report.json",
    "factors.jsonl",
    "infer.py",
    "search.jsonl",
}


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content; None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def the_sentence(stderr: str) -> str:
    """The one error on stderr, the last line; whatever stands before it is progress."""
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.lower().startswith("error:")]
    assert len(errors) == 1, stderr
    assert stderr.splitlines()[-1] == errors[0]
    return errors[0]


@pytest.fixture
def refuse(invoke, tmp_path, monkeypatch) -> Callable[..., str]:
    """Run a command in an empty folder, where it must end with exit code 2 and leave everything as it was."""
    here = tmp_path / "here"
    here.mkdir()

    def run(command: str, *arguments: object) -> str:
        monkeypatch.chdir(here)
        before = listing(tmp_path)
        result = invoke(command, *arguments)
        assert listing(tmp_path) == before
        assert result.stdout == ""
        assert result.exit_code == 2, result.output
        return the_sentence(result.stderr)

    return run


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory) -> Path:
    """A small torchvision checkpoint with random weights."""
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("squeezenet") / "squeezenet.pt"
    torch.save(squeezenet1_1(num_classes=10).state_dict(), path)
    return path


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
    import subprocess
    import sys

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


# --- Checkpoints that are none -----------------------------------------------------------------------------


class Code:
    """An object whose unpickling would run a command."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self):
        return os.mkdir, (str(self.touched),)


def write_bad_checkpoints(folder: Path, good: Path) -> None:
    state = torch.load(good)
    (folder / "empty.pt").touch()
    (folder / "truncated.pt").write_bytes(good.read_bytes()[:100_000])
    (folder / "text.pt").write_text("not a network\n")
    (folder / "folder.pt").mkdir()
    torch.save({"weights": Code(folder / "touched"), "epoch": 3}, folder / "code.pt")
    (folder / "raw.pt").write_bytes(pickle.dumps(Code(folder / "touched"), protocol=2))
    torch.save({"epoch": 3}, folder / "weightless.pt")
    first = next(iter(state))
    state[first] = state[first].clone()
    state[first][0, 0, 0, 0] = float("nan")
    torch.save(state, folder / "nan.pt")


BAD_CHECKPOINTS = {
    "missing.pt": "does not exist",
    "empty.pt": "is empty",
    "truncated.pt": "cut short",
    "text.pt": "is a text file",
    "folder.pt": "is a folder",
    "code.pt": "pickled code (posix.mkdir), which is not run, and no network weights",
    "raw.pt": "pickled code (posix.mkdir), which is not run, and no network weights",
    "weightless.pt": "no network weights",
    "nan.pt": "NaN or infinite weights in 'features.0.weight'",
}


@pytest.fixture
def bad_checkpoints(tmp_path, squeezenet) -> Path:
    folder = tmp_path / "bad"
    folder.mkdir()
    write_bad_checkpoints(folder, squeezenet)
    return folder


def test_bad_checkpoints_are_refused(refuse, bad_checkpoints, digit_images):
    for name, words in BAD_CHECKPOINTS.items():
        for command in (("bocompress-export",), ("bocompress", "inspect")):
            data = ["--data", digit_images] if len(command) == 1 else []
            sentence = refuse(*command, bad_checkpoints / name, *data)
            assert words in sentence
            assert name in sentence
    assert not (bad_checkpoints / "touched").exists()


def test_a_missing_checkpoint_is_said_before_torch_is_loaded(tmp_path):
    program = (
        "import sys\n"
        "from compressor.cli.commands import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit as ended:\n"
        "    sys.exit('torch was loaded' if 'torch' in sys.modules else ended.code)\n"
    )
    for command in (("inspect",), ("export",), ("apply", "plan.json")):
        arguments = [sys.executable, "-c", program, command[0], str(tmp_path / "missing.pt"), *command[1:]]
        result = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (2, f"error: {tmp_path / 'missing.pt'} does not exist\n")


def test_trusted_code_runs_only_when_asked_for(invoke, bad_checkpoints):
    assert invoke("bocompress", "inspect", bad_checkpoints / "raw.pt").exit_code == 2
    assert not (bad_checkpoints / "touched").exists()
    assert invoke("bocompress", "inspect", bad_checkpoints / "raw.pt", "--trust-pickle").exit_code == 2
    assert (bad_checkpoints / "touched").exists()


def test_a_bad_checkpoint_in_a_process_of_its_own(run_command, bad_checkpoints):
    before = listing(bad_checkpoints)
    done = run_command("bocompress-export", "code.pt", cwd=bad_checkpoints)
    assert (done.returncode, done.stdout) == (2, "")
    assert "posix.mkdir" in the_sentence(done.stderr)
    assert listing(bad_checkpoints) == before


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("squeezenet", ["no classifier named 'squeezenet'", "squeezenet1_1"]),
        ("resnet8", ["resnet18"]),
        ("squeezenet1_0", ["does not fit squeezenet1_0: "]),
    ],
)
def test_an_architecture_that_does_not_fit(refuse, squeezenet, arch, words):
    sentence = refuse("bocompress-export", squeezenet, "--arch", arch)
    assert all(word in sentence for word in words)


def test_of_an_unknown_network_the_nearest_is_named(refuse, squeezenet, tmp_path):
    state = torch.load(squeezenet)
    state["features.0.weight"] = torch.zeros(64, 3, 5, 4)
    torch.save(state, tmp_path / "oblong.pt")
    sentence = refuse("bocompress-export", tmp_path / "oblong.pt")
    assert "the nearest is squeezenet1_1, but 'features.0.weight' has shape 64x3x5x4" in sentence


def test_an_ambiguous_network_asks_for_arch(refuse, squeezenet, registry, monkeypatch):
    twins = {"one": registry["squeezenet1_1"], "two": registry["squeezenet1_1"]}
    monkeypatch.setattr("compressor.network.architectures.registry_fingerprints", lambda: twins)
    sentence = refuse("bocompress-export", squeezenet)
    assert "one and two" in sentence
    assert "--arch" in sentence


# --- Options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--gamma", ["0", "-1", "nan", "inf", "much", ""]),
        ("--delta", ["0", "0%", "-5%", "nan", "inf%", "some", "%"]),
        ("--epsilon", ["0", "1", "2", "x"]),
        ("--certificate", ["none", "both"]),
        ("--acquisition", ["lcb", ""]),
        ("--prune", ["1", "-0.1", "nan", "all"]),
        ("--std", ["0,1,1", "1,-1,1", "1,1", "a,b,c", "nan,1,1"]),
        ("--mean", ["1", "1,2,3,4", "inf,0,0"]),
        ("--input-size", ["0", "-32", "7", "1.5", "large"]),
        ("--samples", ["0", "1"]),
        ("--max-images", ["3", "-1"]),
        ("--max-evaluations", ["0"]),
        ("--max-seconds", ["0", "-1"]),
        ("--seed", ["-1", "x"]),
        ("--threads", ["0"]),
        ("--batch-size", ["0"]),
        ("--form", ["product"]),
        ("--method", ["svd", ""]),
        ("--factors", ["plan", "truncated"]),
        ("--calibration", ["-1", "many"]),
        ("--rank-multiple", ["0", "-8", "1.5", "257", "some"]),
    ],
)
def test_values_out_of_range(refuse, squeezenet, option, values):
    # A value that slips through meets the layers that do not exist, long before a search.
    for value in values:
        sentence = refuse("bocompress-export", squeezenet, *SMALL, "--layers=none", f"{option}={value}")
        assert option in sentence, f"{option}={value}"


@pytest.mark.parametrize("option", ["--delta=5%%", "--epsilon=nan", "--max-seconds=nan"])
def test_values_that_are_no_numbers(refuse, squeezenet, option):
    assert option.split("=")[0] in refuse(
        "bocompress-export", squeezenet, *SMALL, "--max-images=4", "--layers=none", option
    )


def test_layers_that_do_not_exist(refuse, squeezenet, digit_images):
    sentence = refuse("bocompress-export", squeezenet, "--data", digit_images, *SMALL, "--layers", "layer9*")
    assert "'layer9*' matches no layer" in sentence
    assert "'nothing' matches no layer" in refuse("bocompress", "inspect", squeezenet, "--skip", "nothing")
    sentence = refuse("bocompress-export", squeezenet, "--data", digit_images, *SMALL, "--skip", "*")
    assert "no layer is left to compress" in sentence


@pytest.mark.parametrize("device", ["no such", "cuda:99"])
def test_a_device_that_is_not_there(refuse, squeezenet, digit_images, device):
    sentence = refuse("bocompress-export", squeezenet, "--data", digit_images, *SMALL, "--device", device)
    assert repr(device) in sentence


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu(refuse, squeezenet, digit_images):
    assert "'cuda'" in refuse("bocompress-export", squeezenet, "--data", digit_images, *SMALL, "--device", "cuda")


# --- Options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--precision", "int8", "--opset", 11), "--precision int8 needs --opset 13 or above"),
        (("--static-batch", 4, "--batch-size", 2), "--static-batch and --batch-size contradict each other"),
        (("--factors", "refit", "--calibration", 0), "--calibration must be above 0"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_loaded(refuse, tmp_path, options, words):
    (model := tmp_path / "text.pt").write_text("not a network\n")
    for command in (("bocompress-export", model), ("bocompress", "apply", model, tmp_path / "missing.json")):
        assert words in refuse(*command, *options)


def test_a_risk_without_images_is_refused_at_once(refuse, tmp_path):
    (model := tmp_path / "text.pt").write_text("not a network\n")
    assert "--fidelity risk needs labels" in refuse("bocompress-export", model, "--fidelity", "risk")


# --- Images ------------------------------------------------------------------------------------------------


def test_image_folders_that_are_none(refuse, squeezenet, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for index in range(6):
        (tmp_path / "broken" / f"{index}.png").write_bytes(b"not an image")
    (tmp_path / "file").touch()
    cases = {
        "missing": "does not exist",
        "empty": "no image files",
        "broken": "none of the 6 image files",
        "file": "is not a folder",
    }
    for name, words in cases.items():
        sentence = refuse("bocompress-export", squeezenet, "--data", tmp_path / name, *SMALL)
        assert words in sentence
        assert str(tmp_path / name) in sentence


def test_too_few_images(refuse, squeezenet, digit_images, tmp_path):
    (tmp_path / "three").mkdir()
    for file in sorted(digit_images.rglob("*.png"))[:3]:
        shutil.copy(file, tmp_path / "three")
    sentence = refuse("bocompress-export", squeezenet, "--data", tmp_path / "three", *SMALL)
    assert "at least 4 images" in sentence


@pytest.fixture(scope="module")
def finished(tiny_checkpoint, digit_images, tmp_path_factory, invoke) -> Path:
    """A whole small run, one of its images broken."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(digit_images, folder / "images")
    next((folder / "images").rglob("*.png")).write_bytes(b"not an image")
    out = folder / "out"
    result = invoke(
        "bocompress-export", tiny_checkpoint, "--trust-pickle", "--data", folder / "images", *SMALL, "--out", out
    )
    assert result.exit_code == 0, result.output
    assert "1 image could not be read" in result.output
    return out


def test_one_broken_image_is_skipped_and_counted(finished):
    report = Report.model_validate_json((finished / "report.json").read_text())
    assert report.images.unreadable == 1
    assert (report.images.calibration, report.images.search, report.images.test_images) == (35, 42, 42)
    assert any("1 image could not be read" in warning for warning in report.warnings)
    assert {path.name for path in finished.iterdir()} == ALL_FILES


# --- Where to write ----------------------------------------------------------------------------------------


def test_a_folder_that_holds_other_files_is_left_alone(refuse, squeezenet, finished, tmp_path):
    folder = tmp_path / "holiday"
    shutil.copytree(finished, folder)
    (folder / "photo.jpg").touch()
    for command in (
        ("bocompress-export", squeezenet),
        ("bocompress-export", squeezenet, "--resume"),
        ("bocompress", "apply", squeezenet, finished / "plan.json"),
    ):
        sentence = refuse(*command, *SMALL[:2], "--out", folder)
        assert "already holds other files" in sentence
        assert str(folder) in sentence
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refuse("bocompress-export", squeezenet, "--out", tmp_path / "file")


def test_a_folder_that_cannot_be_made(refuse, squeezenet, digit_images, tmp_path):
    (tmp_path / "file").write_text("in the way")
    sentence = refuse("bocompress-export", squeezenet, "--data", digit_images, *SMALL, "--out", tmp_path / "file/out")
    assert str(tmp_path / "file") in sentence


@contextmanager
def files_of_at_most(size_bytes: int):
    """No file may grow beyond a size, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def write_plan(path: Path, rank: int | None = 3, **changes: object) -> Path:
    """A plan for the third convolution of the tiny network, whose cap is 48."""
    layer = {"name": "4", "method": "spatial", "rank": rank, "break_even_rank": 48} | changes
    path.write_text(json.dumps({"version": 1, "arch": "sequential", "layers": [layer]}))
    return path


@pytest.mark.skipif(CUDA in available_providers(), reason="ONNX Runtime has a GPU here")
def test_a_provider_that_is_not_there_is_refused_before_the_search(refuse, tiny_checkpoint, digit_images, tmp_path):
    arguments = [tiny_checkpoint, "--trust-pickle", "--data", digit_images, *SMALL, "--out", tmp_path / "out"]
    assert "--provider cuda: this ONNX Runtime" in refuse("bocompress-export", *arguments, "--provider", "cuda")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("limit_bytes", "culprit", "whole"),
    [
        (100, "plan.json", set()),
        (5_000, "compressed.safetensors", {"plan.json"}),
        (60_000, "original.onnx", {"plan.json", "compressed.safetensors"}),
    ],
)
def test_a_disk_that_is_full(invoke, tiny_checkpoint, digit_images, tmp_path, limit_bytes, culprit, whole):
    plan, out = write_plan(tmp_path / "plan.json"), tmp_path / "out"
    arguments = ["apply", tiny_checkpoint, plan, "--trust-pickle", "--data", digit_images, "--input-size", 32]
    with files_of_at_most(limit_bytes):
        result = invoke("bocompress", *arguments, "--out", out)
    assert result.exit_code == 2
    assert culprit in the_sentence(result.stderr)
    assert {path.name for path in out.glob("*")} == whole


def test_a_disk_that_is_full_during_the_search(invoke, tiny_checkpoint, digit_images, tmp_path):
    # Without trials of factors their journal is the shorter one.
    chosen = ["--factors", "weight", "--method", "spatial", "--out", tmp_path / "out"]
    arguments = [tiny_checkpoint, "--trust-pickle", "--data", digit_images, *SMALL, *chosen]
    with files_of_at_most(1500):
        result = invoke("bocompress-export", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "search.jsonl" in the_sentence(result.stderr)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"factors.jsonl", "search.jsonl"}
    # The journal ends in a line that was cut off, and the search goes on from it.
    assert not (tmp_path / "out" / "search.jsonl").read_text().endswith("\n")
    result = invoke("bocompress-export", *arguments, "--resume")
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == ALL_FILES


# --- apply -------------------------------------------------------------------------------------------------


def test_plans_that_do_not_fit(refuse, tiny_checkpoint, digit_images, tmp_path):
    plan = tmp_path / "plan.json"
    layer = {"name": "4", "method": "spatial", "rank": 3, "break_even_rank": 48}
    good = {"version": 1, "arch": "sequential", "layers": [layer]}
    cases = [
        ("not JSON", "not valid JSON"),
        (json.dumps([good]), "is not a plan"),
        (json.dumps(good | {"layers": [layer | {"name": "conv9"}]}), "'conv9'"),
        (json.dumps(good | {"layers": [layer | {"name": "1"}]}), "'1'"),
        (json.dumps(good | {"layers": [layer | {"rank": 49}]}), "rank 49, above its cap of 48"),
        (json.dumps(good | {"layers": [layer | {"rank": 0}]}), "layers.0.rank"),
        (json.dumps(good | {"layers": [layer | {"method": "svd"}]}), "wants svd for 4, to which it does not apply"),
        (json.dumps(good | {"layers": [layer | {"factors": "best"}]}), "layers.0.factors"),
        (json.dumps(good | {"layers": [layer, layer]}), "more than once"),
        (json.dumps(good | {"arch": "resnet18"}), "the plan is for resnet18, the checkpoint is sequential"),
        (json.dumps(good | {"speed": 9}), "speed"),
        (json.dumps(good | {"prune_fraction": 1.5}), "prune_fraction"),
    ]
    for text, words in cases:
        plan.write_text(text)
        sentence = refuse(
            "bocompress", "apply", tiny_checkpoint, plan, "--trust-pickle", "--data", digit_images, *SMALL[:2]
        )
        assert words in sentence
    assert "cannot read the plan" in refuse("bocompress", "apply", tiny_checkpoint, tmp_path / "none.json")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b""])
def test_a_plan_that_is_no_text(refuse, tiny_checkpoint, tmp_path, content):
    (tmp_path / "plan.json").write_bytes(content)
    assert "is not a plan" in refuse("bocompress", "apply", tiny_checkpoint, tmp_path / "plan.json")


# --- report and benchmark ----------------------------------------------------------------------------------


def test_report_without_figures(refuse, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "report.json").write_text('{"arch": "resnet18"}')
    assert "report.json" in refuse("bocompress", "report", tmp_path / "empty")
    assert "report.json" in refuse("bocompress", "report", tmp_path / "wrong")
    assert "missing" in refuse("bocompress", "report", tmp_path / "missing")


def test_benchmark_of_what_is_no_network(refuse, tmp_path, finished):
    (tmp_path / "text.onnx").write_text("not a network")
    (tmp_path / "empty.onnx").touch()
    for name in ("missing.onnx", "text.onnx", "empty.onnx", "here"):
        assert name in refuse("bocompress", "benchmark", tmp_path / name)
        assert name in refuse("bocompress", "benchmark", finished / "model.onnx", tmp_path / name)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--threads", "1,0", "not a list of whole numbers from 1"),
        ("--threads", "two", "not a list of whole numbers from 1"),
        ("--batch-size", "1,,2", "not a list of whole numbers from 1"),
        ("--batch-size", "4096", "not a list of whole numbers from 1"),
        ("--provider", "cpu,gpu", "not a list of these: cpu, cuda, tensorrt, auto"),
        ("--provider", "tensorrt", "cannot run on tensorrt"),
    ],
)
def test_benchmark_of_settings_that_cannot_be(refuse, finished, option, value, words):
    if value == "tensorrt":
        from exporters.providers import TENSORRT, available_providers

        if TENSORRT in available_providers():
            pytest.skip("TensorRT is here")
    assert words in refuse("bocompress", "benchmark", finished / "model.onnx", option, value)


def test_benchmark_into_a_folder_of_something_else(refuse, finished, tmp_path):
    (tmp_path / "here" / "note.txt").write_text("mine")
    assert "already holds other files" in refuse(
        "bocompress", "benchmark", finished / "model.onnx", "--out", tmp_path / "here"
    )


def test_benchmark_writes_its_pages_and_again(invoke, finished, tmp_path):
    from benchmarks.records import BenchmarkRecord

    files = [finished / "original.onnx", finished / "model.onnx"]
    for batch_sizes in ("1", "1,2,1"):
        arguments = [*files, "--provider", "cpu", "--batch-size", batch_sizes, "--out", tmp_path / "out"]
        result = invoke("bocompress", "benchmark", *arguments)
        assert result.exit_code == 0, result.output
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            "benchmark.json",
            "benchmark.md",
            "benchmark.html",
        }
    record = BenchmarkRecord.model_validate_json((tmp_path / "out" / "benchmark.json").read_text())
    assert [setting.batch_size for setting in record.settings] == [1, 2]
    for words in ("original.onnx", "model.onnx", "interval", "against itself", str(tmp_path / "out")):
        assert words in result.stdout


# --- --resume ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["--seed", 1], "images, search settings"),
        (["--gamma", 2], "gamma"),
        (["--form", "rate"], "form"),
        (["--layers", "4"], "layers"),
        (["--samples", 5], "search settings"),
    ],
)
def test_resuming_with_other_settings_is_refused(refuse, finished, tiny_checkpoint, tmp_path, changes, reason):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(finished / "search.jsonl", out)
    data = finished.parent / "images"
    arguments = [tiny_checkpoint, "--trust-pickle", "--data", data, *SMALL, "--resume", "--out", out]
    sentence = refuse("bocompress-export", *arguments, *changes)
    assert str(out / "search.jsonl") in sentence
    assert reason in sentence


@pytest.mark.parametrize("content", [b"no journal\n", b"{}\n", b"[]\n", b"\xff\n"])
def test_resuming_from_what_is_no_journal(refuse, finished, tiny_checkpoint, tmp_path, content):
    out = tmp_path / "out"
    out.mkdir()
    (out / "search.jsonl").write_bytes(content)
    data = finished.parent / "images"
    arguments = [tiny_checkpoint, "--trust-pickle", "--data", data, *SMALL, "--resume", "--out", out]
    assert "search.jsonl" in refuse("bocompress-export", *arguments)


def test_resuming_after_a_stop_behind_the_search(invoke, finished, tiny_checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("factors.jsonl", "search.jsonl", "plan.json", "compressed.safetensors", "original.onnx"):
        shutil.copy(finished / name, out)
    (out / ".model.onnx.1.tmp").write_bytes(b"half written")
    data = finished.parent / "images"
    arguments = [tiny_checkpoint, "--trust-pickle", "--data", data, *SMALL, "--resume", "--out", out]
    result = invoke("bocompress-export", *arguments)
    assert result.exit_code == 0, result.output
    assert (out / "plan.json").read_text() == (finished / "plan.json").read_text()
    assert {path.name for path in out.iterdir()} == ALL_FILES


# --- Output that others read -------------------------------------------------------------------------------


def test_json_on_stdout_is_the_report_and_nothing_else(invoke, tiny_checkpoint, digit_images, tmp_path):
    plan = write_plan(tmp_path / "plan.json", rank=5)
    result = invoke(
        "bocompress",
        *("apply", tiny_checkpoint, plan, "--trust-pickle", "--data", digit_images),
        *(*SMALL[:2], "--json", "--out", tmp_path / "Zwölf Größen ☃"),
    )
    assert result.exit_code == 0, result.output
    report = Report.model_validate_json(result.stdout)
    assert result.stdout == (tmp_path / "Zwölf Größen ☃" / "report.json").read_text()
    assert report.search is None
    assert {layer.name: layer.rank for layer in report.layers if layer.rank} == {"4": 5}
    # 32 channels through 3 x 1 to rank 5, and through 1 x 3 to 32.
    (row,) = [layer for layer in report.layers if layer.name == "4"]
    assert row.params_compressed == 5 * 32 * 3 + 5 * 32 * 3
    assert Plan.model_validate_json((tmp_path / "Zwölf Größen ☃" / "plan.json").read_text()).layers[0].rank == 5
