"""--arch with a function of one's own, or a name of timm's."""

import subprocess
import sys

import cloudpickle
import pytest
import torch
from torch import nn

from compressor.network.checkpoint import load_model
from compressor.network.checkpoints.custom import make_network
from tests.network.saved import refusal, save

SOURCE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.stem(x).mean((2, 3)))

class nested:
    build = staticmethod(lambda: Net(6))

def needs(width):
    return Net(width)

def fails():
    raise OSError("no such data")

def ends():
    raise SystemExit(2)

number = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's in the current folder, and a checkpoint of its network under two prefixes."""
    (tmp_path / "mynets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    state = {"stem.weight": torch.ones(4, 1, 3, 3), "stem.bias": torch.ones(4)}
    state |= {"head.weight": torch.ones(3, 4), "head.bias": torch.zeros(3)}
    content = {"state_dict": {f"model.module.{name}": tensor for name, tensor in state.items()}}
    return save(content, tmp_path / "m.ckpt")


@pytest.mark.parametrize("arch", ["mynets:Net", "mynets.py:Net"])
def test_own_network(mine, arch):
    loaded = load_model(mine, arch)
    assert (loaded.arch, loaded.num_classes, loaded.transform.channels) == (arch, 3, 1)
    assert loaded.model(torch.ones(1, 1, 8, 8)).shape == (1, 3)
    assert not loaded.model.training


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("mynets:Missing", "has no 'Missing'"),
        ("nowhere.nets:Net", "No module named 'nowhere'"),
        ("nowhere.py:Net", "No such file"),
        ("mynets:needs", "cannot be called without arguments"),
        ("mynets:fails", "mynets:fails raises OSError: no such data"),
        ("mynets:ends", "raises SystemExit: 2"),
        ("mynets:number", "cannot be called"),
        ("mynets:nested.build", "'stem.weight' has shape 4x1x3x3 instead of 6x1x3x3"),
        ("mynets:", "package.module:function"),
        ("torch.nn:ReLU", "does not fit the network of --arch"),
    ],
)
def test_own_network_that_does_not_fit(mine, arch, words):
    assert words in refusal(mine, arch=arch)


def test_masks_of_a_network_with_masks(mine, tmp_path):
    (tmp_path / "masked.py").write_text(
        "from torch import nn\nfrom torch.nn.utils import parametrizations\n"
        "def build():\n    last = parametrizations.weight_norm(nn.Linear(4, 2))\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), last)\n"
    )
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    loaded = load_model(save(network.state_dict(), tmp_path / "w.pt"), "masked:build")
    x = torch.randn(2, 3, 3, 3)
    assert torch.allclose(loaded.model(x), network(x))


def test_timm(tmp_path):
    timm = pytest.importorskip("timm")
    original = timm.create_model("test_resnet", num_classes=7, in_chans=1).eval()
    path = save({"state_dict_ema": original.state_dict()}, tmp_path / "m.pth")
    loaded = load_model(path, "timm:test_resnet")
    assert (loaded.arch, loaded.num_classes, loaded.transform.channels) == ("timm:test_resnet", 7, 1)
    assert loaded.transform.input_size == original.default_cfg["input_size"][-1]
    x = torch.randn(2, 1, 96, 96)
    assert torch.equal(loaded.model(x), original(x))
    assert "test_resnet" in refusal(path, arch="timm:tset_resnet")
    assert "does not fit" in refusal(path, arch="timm:test_vit")


def test_without_timm(mine, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    assert "pip install timm" in refusal(mine, arch="timm:resnet18")


def test_files_beside_the_users_module_stand_for_no_library(tmp_path, monkeypatch):
    """`wave` is the user's, since --arch names it; `colorsys` and `json` are the standard library's."""
    for name in ("colorsys.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('the folder ran')\n")
    (tmp_path / "wave.py").write_text(f"import beside\n{SOURCE}")
    (tmp_path / "beside.py").write_text("import colorsys\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("wave", "beside", "colorsys"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    network = make_network("wave:Net", {})
    assert type(network).__module__ == "wave"
    assert not sys.modules["colorsys"].__file__.startswith(str(tmp_path))
    again = subprocess.run(
        [sys.executable, "-P", "-c", "import pickle, sys; print(type(pickle.load(sys.stdin.buffer)).__name__)"],
        input=cloudpickle.dumps(network),
        capture_output=True,
        check=True,
    )
    assert again.stdout.strip() == b"Net"  # a worker elsewhere has no such file
    sys.modules.pop("beside", None)
