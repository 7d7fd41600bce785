"""measure.py: files are timed in turn, with nothing but ONNX Runtime and numpy."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from exporters.feeding import TIMING_SCRIPT
from exporters.onnx import export_onnx


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A large network and a small one, with the script beside them."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("files")
    for name, width, fixed in (("original", 256, False), ("model", 4, True)):
        network = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.Conv2d(width, 4, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        example = torch.zeros(2, 3, 64, 64)
        export_onnx(network.eval(), example, place / f"{name}.onnx", {}, static_batch=2 if fixed else None)
    shutil.copy(TIMING_SCRIPT, place)
    return place


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False, timeout=60)


def test_files_beside_it_are_timed_against_the_original(folder: Path) -> None:
    done = run("-I", folder / TIMING_SCRIPT.name, "--seconds", 0.5)
    assert done.returncode == 0, done.stderr
    first, second = (line.split("\t") for line in done.stdout.splitlines())
    assert (first[0], second[0], first[3]) == ("original.onnx", "model.onnx", "1.00x")
    assert first[4] == second[4]
    assert float(second[3].rstrip("x")) > 1
    assert float(second[1].removesuffix(" ms")) < float(first[1].removesuffix(" ms"))


def test_one_file_runs_a_few_times_however_short_the_time(folder: Path) -> None:
    done = run(TIMING_SCRIPT, folder / "model.onnx", "--seconds", 0)
    assert done.stdout.split("\t")[4] == "5\n"


def test_sides_that_are_free_are_those_asked_for(tmp_path: Path) -> None:
    """A network of maps takes images of any size, and a file without a transform does not say of which."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    export_onnx(network, torch.zeros(2, 3, 64, 64), tmp_path / "maps.onnx", {})
    refused = run(TIMING_SCRIPT, tmp_path / "maps.onnx", "--seconds", 0)
    assert "takes any height: say which by --side, in pixels" in refused.stderr
    assert run(TIMING_SCRIPT, tmp_path / "maps.onnx", "--seconds", 0, "--side", 64).returncode == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere.onnx"], "nowhere.onnx"),
        (["--provider", "MoonProvider"], "MoonProvider is not among"),
        ([], "there is no file to time"),
    ],
)
def test_what_cannot_be_timed_is_one_sentence(words: list[str], sentence: str) -> None:
    done = run(TIMING_SCRIPT, *words)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
