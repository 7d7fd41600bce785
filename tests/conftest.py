"""What the tests share: a cache of their own, a small trained network, and the two commands as people call them."""

import functools
import os

# Before numpy and torch are loaded: threads of small products spin, and two test processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from benchmarks.demo.digits import as_inputs, load_digits_images, save_checkpoint, train_resnet18, write_image_folder
from compressor.cli.commands import export, main
from compressor.cost import latency
from compressor.errors import BocompressError
from compressor.network import architectures
from exporters import strangers

NUM_IMAGES = 120
ABOUT_LATENCY = {"test_latency", "test_compare", "test_sessions"}
ABOUT_STRANGERS = {"test_strangers", "test_onnx"}
COMMANDS = {"bocompress": main, "bocompress-export": export}


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder of this session that all of its processes have."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache directory of the tests' own, and one thread of torch, here and in every process started.

    Fingerprints of all architectures take seconds, and are there for every test process.

    With one thread the sums of two processes agree to the last bit, and tests on a busy machine do not spin.
    """
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_folder(tmp_path_factory) / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def brief_latency(request: pytest.FixtureRequest) -> Iterator[None]:
    """Latency from fewer runs in this process, but where it is what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__.rpartition(".")[2] not in ABOUT_LATENCY:
            patch.setattr(latency, "EXTRA_SECONDS", 0.1)
            patch.setattr(latency, "SESSIONS", 2)
        yield


@pytest.fixture(scope="session", autouse=True)
def operators_read_once() -> Iterator[None]:
    """torch.onnx parses the sources of its 500 operators anew for every export, and torch.export asks for all names of
    its own once per namespace: half of a small run's time."""
    registry = pytest.importorskip("torch.onnx._internal.exporter._registration").ONNXRegistry
    names = pytest.importorskip("torch._export.utils")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names, "_materialize_cpp_cia_ops", functools.cache(names._materialize_cpp_cia_ops))
        patch.setattr(registry, "from_torchlib", staticmethod(functools.cache(registry.from_torchlib)))
        yield


def run_within(path: Path, side: int) -> "subprocess.CompletedProcess[str]":
    """What `exporters.strangers` does in a process of its own, in this one: another loads ONNX Runtime for seconds."""
    try:
        strangers._run_once(path, side)
    except BocompressError as error:
        return subprocess.CompletedProcess([], 1, "", str(error))
    return subprocess.CompletedProcess([], 0, "", "")


@pytest.fixture(scope="module", autouse=True)
def strangers_within(request: pytest.FixtureRequest) -> Iterator[None]:
    """Files are checked in this process, but where that is what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__.rpartition(".")[2] not in ABOUT_STRANGERS:
            patch.setattr(strangers, "_run_apart", run_within)
        yield


@pytest.fixture(scope="session")
def registry(surroundings: None) -> dict[str, architectures.Fingerprint]:
    """Fingerprints of all architectures, kept in the session's cache from then on."""
    return architectures.registry_fingerprints()


class Digits(NamedTuple):
    """A trained ResNet-18, its checkpoint, and labelled images that it was not trained on."""

    model: nn.Module
    checkpoint: Path
    images: Path


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """torchvision's resnet18 after two epochs on scikit-learn's handwritten digits, about 90 % right."""
    folder = tmp_path_factory.mktemp("digits")
    model = train_resnet18(epochs=2)
    save_checkpoint(model, folder / "digits.pt")
    write_image_folder(folder / "images", NUM_IMAGES)
    return Digits(model, folder / "digits.pt", folder / "images")


@pytest.fixture(scope="session")
def digit_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image folder alone, for tests that need no trained network."""
    folder = tmp_path_factory.mktemp("digit-images") / "images"
    write_image_folder(folder, NUM_IMAGES)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pickled network of five layers, which --trust-pickle loads: a whole run takes seconds."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    path = tmp_path_factory.mktemp("tiny") / "tiny.pt"
    torch.save(network, path)
    return path


def command_line(command: str, arguments: Sequence[object]) -> list[str]:
    """A command as installed beside this Python."""
    program = shutil.which(command, path=str(Path(sys.executable).parent))
    assert program, f"{command} is not installed beside {sys.executable}"
    return [program, *map(str, arguments)]


@pytest.fixture(scope="session")
def fitted_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network with its last layer fitted to the digits: labels of which it knows nothing are not used."""
    network = torch.load(tiny_checkpoint, weights_only=False)
    images, labels = load_digits_images()
    with torch.no_grad():
        features = torch.cat([network[:-1](as_inputs(images)), torch.ones(len(images), 1)], dim=1)
        wanted = 2 * nn.functional.one_hot(torch.from_numpy(labels), 10) - 0.2
        fitted = torch.linalg.lstsq(features, wanted, driver="gelsd").solution
        network[-1].weight.copy_(fitted[:-1].T)
        network[-1].bias.copy_(fitted[-1])
    path = tmp_path_factory.mktemp("fitted") / "fitted.pt"
    torch.save(network, path)
    return path


@pytest.fixture(scope="session")
def run_command(surroundings: None) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in a process of its own, to its end."""

    def run(command: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command_line(command, arguments), capture_output=True, text=True, timeout=600, check=False, **options
        )

    return run


@pytest.fixture(scope="session")
def start_command(surroundings: None) -> Callable[..., subprocess.Popen[str]]:
    """Start a command in a process group of its own, and go on."""

    def start(command: str, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command_line(command, arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
            start_new_session=True,
        )

    return start


@pytest.fixture(scope="session")
def invoke(surroundings: None) -> Callable[..., Result]:
    """Run a command in this process, which spares the seconds of loading torch; a crash stays a crash."""

    def run(command: str, *arguments: object) -> Result:
        result = CliRunner().invoke(COMMANDS[command], [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
