"""Checkpoints and folders of images that are none: one sentence each, without a traceback."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cli.outcomes import SMALL, listing, the_sentence

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


@pytest.mark.slow
def test_a_bad_checkpoint_in_a_process_of_its_own(run_command, bad_checkpoints):
    before = listing(bad_checkpoints)
    done = run_command("bocompress-export", "code.pt", cwd=bad_checkpoints)
    assert (done.returncode, done.stdout) == (2, "")
    assert "posix.mkdir" in the_sentence(done.stderr)
    assert listing(bad_checkpoints) == before


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("squeezenet", ["no network named 'squeezenet'", "squeezenet1_1"]),
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
