"""Passes that begin behind a cut give what whole passes give, in networks of every kind."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.files.tensors_on_disk import TensorsOnDisk
from compressor.network import replay
from compressor.network.hooks import count_calls, inputs_of, watching
from compressor.network.replay import Cuts, Replay

CPU = torch.device("cpu")
ARCHS = {
    "resnet18": (32, ["layer1.1.conv1", "layer3.0.conv2", "fc"], {"layer1.0", "layer2", "avgpool"}),
    "mobilenet_v2": (32, ["features.3.conv.2", "classifier.1"], {"features.2", "classifier.0"}),
    "densenet121": (32, ["features.denseblock2.denselayer3.conv2"], {"features.transition1"}),
    "vit_b_16": (32, ["encoder.layers.encoder_layer_3.mlp.0"], {"encoder.layers.encoder_layer_2"}),
    "swin_t": (64, ["features.3.1.mlp.0"], {"features.3.0"}),
}


def make(arch: str, side: int) -> tuple[nn.Module, ImageSet]:
    torch.manual_seed(0)
    options = {"image_size": side} if arch.startswith("vit") else {}
    network = torchvision.models.get_model(arch, weights=None, num_classes=5, **options).eval().requires_grad_(False)
    return network, ImageSet(torch.randn(7, 3, side, side), "random")


def hard(arch: str) -> Any:
    """One more of a kind, in `make test-hard`."""
    return pytest.param(arch, marks=pytest.mark.hard)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "densenet121", hard("vit_b_16"), "swin_t"])
def test_inputs_and_outputs_are_those_of_whole_passes(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    side, layers, _ = ARCHS[arch]
    network, images = make(arch, side)
    monkeypatch.setattr(ImageSet, "fitting", lambda *_: 3)
    whole = network(images.data)
    runs = Replay(Cuts(network, layers, images.batch([0])), images, CPU)
    for layer in layers:
        runs.advance(network, layer)
        given = torch.cat([value for values in runs.inputs(network, layer) for value in values])
        torch.testing.assert_close(given, inputs_of(network, network.get_submodule(layer), images.data)[0])
        torch.testing.assert_close(runs.outputs(network), whole)
    assert all("forward" not in vars(module) for module in network.modules())


@pytest.mark.parametrize("arch", ["resnet18", hard("mobilenet_v2"), hard("densenet121"), "vit_b_16", hard("swin_t")])
def test_nothing_before_the_cut_runs(arch: str) -> None:
    side, layers, expected = ARCHS[arch]
    network, images = make(arch, side)
    runs = Replay(Cuts(network, layers, images.batch([0])), images, CPU)
    leaves = [name for name, module in network.named_modules() if not list(module.children())]
    order = list(count_calls(network, leaves, images.batch([0])))
    for layer in layers:
        runs.advance(network, layer)
        assert runs._cut is not None
        assert runs._cut.name in expected
        ran = computed(network, leaves, runs)
        first = next(place for place, name in enumerate(order) if name in ran)
        assert set(order[first:]) == ran
        assert first <= order.index(layer)


def computed(network: nn.Module, names: Sequence[str], runs: Replay) -> set[str]:
    """The modules that compute something."""
    found = set()

    def note(index: int, _given: Tensor, _output: Tensor) -> None:
        if "forward" not in vars(network.get_submodule(names[index])):
            found.add(names[index])

    with watching([network.get_submodule(name) for name in names], note):
        runs.outputs(network)
    return found


def test_a_layer_that_changes_behind_the_cut_is_seen() -> None:
    network, images = make("resnet18", 32)
    runs = Replay(Cuts(network, ["layer4.1.conv2"], images.batch([0])), images, CPU)
    runs.advance(network, "layer4.1.conv2")
    network.get_submodule("layer4.1.conv2").weight.mul_(2.0)
    torch.testing.assert_close(runs.outputs(network), network(images.data))


def test_passes_go_back_for_a_layer_before_the_cut_and_begin_before_the_first_of_several() -> None:
    network, images = make("resnet18", 32)
    names = ["layer4.1.conv2", "layer2.0.conv1", "layer3.0.conv1"]
    runs = Replay(Cuts(network, names, images.batch([0])), images, CPU)
    cuts = []
    for layers in (names[:1], names[1:2], names[2:], names):
        runs.advance(network, *layers)
        cuts.append(runs._cut.name if runs._cut else None)
        for layer in layers:
            given = torch.cat([value for values in runs.inputs(network, layer) for value in values])
            torch.testing.assert_close(given, inputs_of(network, network.get_submodule(layer), images.data)[0])
    assert cuts[1] == cuts[3] == "layer1"
    assert cuts[2] == "layer2"


def test_outputs_that_take_too_much_room_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = make("resnet18", 32)
    cuts = Cuts(network, ["fc"], images.batch([0]))
    monkeypatch.setattr(replay, "MAX_BYTES_ON_DISK", 4 * len(images) * 511)
    runs = Replay(cuts, images, CPU)
    runs.advance(network, "fc")
    assert runs._cut is None
    torch.testing.assert_close(runs.outputs(network), network(images.data))


def test_a_full_disk_costs_time_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = make("resnet18", 32)
    monkeypatch.setattr(ImageSet, "fitting", lambda *_: 3)
    runs = Replay(Cuts(network, ["layer3.0.conv1", "fc"], images.batch([0])), images, CPU)
    runs.advance(network, "layer3.0.conv1")
    assert runs._cut is not None
    append = TensorsOnDisk.append

    def append_some(self: TensorsOnDisk, tensor: Tensor) -> None:
        if len(self) == 1 and tensor[0].numel() > 1000:
            raise OSError(28, "No space left on device")
        append(self, tensor)

    monkeypatch.setattr(TensorsOnDisk, "append", append_some)
    runs = Replay(Cuts(network, ["layer3.0.conv1", "fc"], images.batch([0])), images, CPU)
    for layer, expected in (("layer3.0.conv1", None), ("layer3.0.conv1", None), ("fc", "avgpool")):
        runs.advance(network, layer)
        assert (runs._cut.name if runs._cut else None) == expected
        torch.testing.assert_close(runs.outputs(network), network(images.data))


class Awkward(nn.Module):
    """A skip connection round everything, and a layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, value: Tensor) -> Tensor:
        skipped = self.first(value)
        return self.last(self.twice(self.twice(skipped).relu_())) + skipped


def test_what_is_needed_later_is_no_cut() -> None:
    torch.manual_seed(0)
    network, images = Awkward().eval().requires_grad_(False), ImageSet(torch.randn(5, 6), "random")
    cuts = Cuts(network, ["twice", "last"], images.batch([0]))
    for layer in ("last", "twice"):
        cut = cuts.before([layer], 10**9)
        assert cut is not None
        assert cut.name == "first"
    assert Cuts(nn.Linear(6, 6), [""], images.batch([0])).before([""], 10**9) is None
