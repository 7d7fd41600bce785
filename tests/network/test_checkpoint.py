"""Loading networks: strict, in float32, with notes on what was guessed."""

import pytest
import torch
from torch import nn

from compressor.data.transforms import Transform
from compressor.network import architectures
from compressor.network.checkpoint import load_model
from tests.network.saved import random_state, refusal, save


@pytest.fixture(scope="module")
def squeezenet():
    return random_state("squeezenet1_1", 5)


@pytest.mark.parametrize(
    ("arch", "num_classes", "side"),
    [
        ("resnet18", 10, 64),
        ("regnet_y_400mf", 3, 64),
        ("squeezenet1_1", 12, 64),
        ("mobilenet_v2", 37, 64),
        ("mnasnet0_5", 2, 64),
        ("shufflenet_v2_x0_5", 6, 64),
        ("efficientnet_b0", 1, 64),
        ("densenet121", 8, 64),
        ("swin_t", 9, 64),
    ],
)
def test_loads_strictly_and_computes(tmp_path, arch, num_classes, side):
    state = random_state(arch, num_classes)
    loaded = load_model(save(state, tmp_path / "model.pt"))
    assert (loaded.arch, loaded.num_classes, loaded.notes) == (arch, num_classes, [])
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in loaded.model.state_dict().items())
    with torch.inference_mode():
        assert loaded.model(torch.zeros(2, 3, side, side)).shape == (2, num_classes)


def test_network_computes_what_the_original_does(tmp_path):
    from torchvision.models import mobilenet_v3_small

    original = mobilenet_v3_small(num_classes=11).eval()
    loaded = load_model(save(original.state_dict(), tmp_path / "model.pth"))
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.model(x), original(x))


@pytest.mark.parametrize(("num_classes", "expected"), [(1000, True), (10, False)])
def test_googlenet_drops_auxiliary_heads_and_notes_its_guess(tmp_path, num_classes, expected):
    from torchvision.models import googlenet

    state = random_state("googlenet", num_classes)
    with architectures.SkipParameterData():
        whole = googlenet(num_classes=num_classes, aux_logits=True, init_weights=False).state_dict()
    heads = {name: torch.ones(t.shape) for name, t in whole.items() if name.startswith("aux")}
    assert heads
    for content in (state | heads,) if expected else (state, state | heads):
        loaded = load_model(save(content, tmp_path / "model.pt"))
        assert (loaded.arch, loaded.num_classes) == ("googlenet", num_classes)
        assert loaded.model.transform_input is expected
        assert "transform_input" in loaded.notes[0]
        assert "guess" in loaded.notes[0]


def test_vision_transformer_gives_its_own_image_size(tmp_path):
    state = random_state("vit_b_32", 3, image_size=96)
    loaded = load_model(save(state, tmp_path / "model.pt"))
    assert (loaded.arch, loaded.transform.input_size) == ("vit_b_32", 96)
    assert loaded.model(torch.zeros(1, 3, 96, 96)).shape == (1, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_with_a_note(tmp_path, squeezenet, dtype):
    content = {name: tensor.to(dtype) for name, tensor in squeezenet.items()}
    loaded = load_model(save(content, tmp_path / "model.pt"))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.notes == [f"weights stored as {str(dtype)[6:]} were cast to float32"]


def test_old_checkpoints_lack_counters_and_spell_names_otherwise(tmp_path):
    state = random_state("densenet121", 3)
    old = {}
    for name, tensor in state.items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            if ".denselayer" in name:
                name = name.replace(f".{part}.", f".{part[:4]}.{part[4]}.")
        if not name.endswith("num_batches_tracked"):
            old[name] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    loaded = load_model(save(old, tmp_path / "model.pth"))
    assert (loaded.arch, loaded.num_classes) == ("densenet121", 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path, squeezenet, value):
    broken = dict(squeezenet)
    broken["features.0.weight"] = squeezenet["features.0.weight"].clone()
    broken["features.0.weight"][0, 0, 0, 0] = value
    assert "NaN or infinite weights in 'features.0.weight'" in refusal(save(broken, tmp_path / "m.pt"))


def test_float64_weights_too_large_for_float32(tmp_path, squeezenet):
    broken = {name: tensor.double() for name, tensor in squeezenet.items()}
    broken["features.0.bias"] = broken["features.0.bias"] + 1e300
    assert "infinite weights in 'features.0.bias'" in refusal(save(broken, tmp_path / "m.pt"))


def test_integer_weights(tmp_path, squeezenet):
    broken = squeezenet | {"features.0.weight": torch.ones(64, 3, 3, 3, dtype=torch.int8)}
    assert "a quantized state_dict (features.0.weight)" in refusal(save(broken, tmp_path / "m.pt"))


@pytest.mark.parametrize("trusted", [False, True])
def test_whole_modules(tmp_path, trusted):
    from torchvision.models import squeezenet1_1

    original = squeezenet1_1(num_classes=6).eval()
    path = save({"model": nn.DataParallel(original).half()}, tmp_path / "m.pt")
    loaded = load_model(path, trust_pickle=trusted)
    assert (loaded.arch, loaded.num_classes) == ("squeezenet1_1", 6)
    assert not loaded.model.training
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.model(x), original.float()(x))
    assert "does not fit resnet18" in refusal(path, arch="resnet18", trust_pickle=trusted)


def test_trusted_module_of_another_kind(tmp_path):
    path = save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3)), tmp_path / "m.pt")
    assert "--trust-pickle only if you trust" in refusal(path)
    loaded = load_model(path, trust_pickle=True)
    assert (loaded.arch, loaded.num_classes, loaded.transform) == ("sequential", 3, Transform())
    assert "no classifier of torchvision" in loaded.notes[0]
    save(nn.ReLU(), path)
    assert "without a linear or convolutional layer" in refusal(path, trust_pickle=True)
