"""Optical flow: RAFT as a network of clips of two frames, its layers one layer each, however often they are called."""

from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.data.images import ImageSet
from compressor.data.transforms import Transform
from compressor.errors import InputError
from compressor.network import architectures
from compressor.network.architectures import architecture_fingerprint, known_architecture
from compressor.network.calibration.gradients import OutputGradients
from compressor.network.checkpoint import load_model
from compressor.network.clips.flow import FlowNetwork, flow_network
from compressor.network.hooks import count_calls
from compressor.network.layers import find_layers
from compressor.outputs.structure import find_outputs
from tests.network.raft import tiny_raft, two_updates

RECURRENT = "update_block.recurrent_block.convgru1.convq"
FLOW = "update_block.motion_encoder.convflow1.0"


def clips(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 2, 128, 136, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_flow_is_the_last_of_torchvisions() -> None:
    raft, pairs = tiny_raft(), clips()
    network = flow_network(raft)
    assert isinstance(network, FlowNetwork)
    assert flow_network(network) is network
    assert flow_network(nn.Linear(2, 2)) is None
    assert network.state_dict().keys() == raft.state_dict().keys()
    with torch.inference_mode():
        expected = raft(pairs[:, :, 0], pairs[:, :, 1])
        assert torch.equal(network(pairs)["flow"], expected[11])
        assert torch.equal(FlowNetwork(raft, num_updates=3)(pairs)["flow"], expected[2])


def test_a_layer_that_is_called_in_every_update_is_one_layer() -> None:
    network, pairs = two_updates(), clips()
    assert count_calls(network, [RECURRENT, FLOW, "feature_encoder.conv"], pairs) == {
        "feature_encoder.conv": 1,
        FLOW: 2,
        RECURRENT: 2,
    }
    once, twice = (
        {layer.name: layer.macs for layer in find_layers(each, pairs)}
        for each in (FlowNetwork(tiny_raft(), 1), network)
    )
    assert twice[RECURRENT] == 2 * once[RECURRENT]
    assert twice["feature_encoder.conv"] == once["feature_encoder.conv"]


def test_gradients_are_found_at_all_calls_also_where_the_input_is_constant() -> None:
    network, pairs = two_updates(), clips(4)
    flat = nn.Sequential(network)
    flat.register_forward_hook(lambda _module, _inputs, outputs: outputs["flow"][:, :, ::16, ::16].flatten(1))
    found = OutputGradients(flat, ImageSet(pairs, "noise"), torch.device("cpu"), 0)._find(
        [f"0.{FLOW}", f"0.{RECURRENT}"]
    )
    for sums in found.values():
        assert sums._positions == 4 * 4 * 2 * 16 * 17  # images, combinations, calls, positions
        assert float(sums.by_position().diagonal(dim1=1, dim2=2).min()) > 0


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 3, 128, 128), "flow is between 2 frames, not 3"),
        ((1, 3, 2, 130, 128), "multiples of 8 from 128 on, not 130 x 128"),
        ((1, 3, 2, 128, 64), "multiples of 8 from 128 on, not 128 x 64"),
    ],
)
def test_other_clips_are_refused(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        find_outputs(two_updates(), torch.zeros(shape))


def test_torchvisions_are_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models.optical_flow import raft_small

    some = {arch: architecture_fingerprint(arch) for arch in ("raft_small", "resnet18")}
    monkeypatch.setattr(architectures, "registry_fingerprints", lambda: some)
    assert known_architecture("RAFT_small") == "raft_small"
    original = raft_small()
    torch.save({"model": original.state_dict()}, tmp_path / "model.pt")
    loaded = load_model(tmp_path / "model.pt")
    assert (loaded.arch, loaded.transform) == (
        "raft_small",
        Transform(256, 256, (0.5,) * 3, (0.5,) * 3, frames=2, adjacent=True),
    )
    assert isinstance(loaded.model, FlowNetwork)
    weights = loaded.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in original.state_dict().items())


def test_ones_own(tmp_path: Path) -> None:
    torch.save(tiny_raft().state_dict(), tmp_path / "model.pt")
    for function, updates in (("tiny_raft", 12), ("two_updates", 2)):
        loaded = load_model(tmp_path / "model.pt", arch=f"tests.network.raft:{function}")
        assert isinstance(loaded.model, FlowNetwork)
        assert (loaded.model.num_updates, loaded.transform.shape) == (updates, (3, 2, 256, 256))
