"""What can be compressed in real networks, what cannot and why, and the paper's own layer sets."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.errors import InputError
from compressor.factorization.registry import METHODS
from compressor.network.layers import FoundLayer, compressible, find_layers
from compressor.network.surgery import build_candidate

models = torchvision.models
NEVER_CALLED = "its forward is never called (unused, or its owner reads the weight)"
SHARED = "shares its weight with another layer"


def on_meta(build: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """A full-size network without its memory."""
    with torch.device("meta"):
        return build(**options).eval()


def found_in(model: nn.Module, side: int = 64, **options: Any) -> dict[str, FoundLayer]:
    device = next(model.parameters()).device
    return {layer.name: layer for layer in find_layers(model, torch.zeros(1, 3, side, side, device=device), **options)}


def names(layers: dict[str, FoundLayer]) -> list[str]:
    return [layer.name for layer in compressible(list(layers.values()))]


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return on_meta(models.resnet18)


def test_resnet18_has_21_layers_all_compressible_in_order_of_definition(resnet18: nn.Module) -> None:
    layers = found_in(resnet18)
    expected = [name for name, module in resnet18.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert list(layers) == expected == names(layers)
    assert len(layers) == 21
    assert sum(layer.params for layer in layers.values()) == 11_678_912


def test_caps_of_resnet18_are_those_of_section_3_3(resnet18: nn.Module) -> None:
    for layer in found_in(resnet18).values():
        num_out, num_in = layer.shape[:2]
        kernel = layer.shape[2] if layer.kind == "conv" else 1
        assert layer.break_even_rank == kernel * num_in * num_out // (num_in + num_out)
        assert layer.method == ("svd" if kernel == 1 else "spatial")


def test_the_table_of_parameters_ends_with_the_dense_layer(resnet18: nn.Module) -> None:
    layers = found_in(resnet18)
    table = layers["layer1.0.conv1"].params_by_rank()
    assert table == [*(rank * (64 * 3 + 64 * 3) for rank in range(1, 96)), 64 * 64 * 9]
    assert layers["fc"].params_by_rank()[:2] == [1512, 3024]
    for layer in layers.values():
        counts = layer.params_by_rank()
        assert len(counts) == layer.dense_rank in (layer.break_even_rank, layer.break_even_rank + 1)
        assert counts == sorted(counts)
        assert counts[-2] < counts[-1] == layer.params


def test_costs_and_record(resnet18: nn.Module) -> None:
    record = found_in(resnet18)["layer1.0.conv1"].record()
    assert record.shape == [64, 64, 3, 3]
    assert record.macs == 64 * 64 * 9 * 16 * 16
    assert (record.break_even_rank, record.method, record.params, record.skipped) == (96, "spatial", 36864, None)
    assert found_in(on_meta(models.mobilenet_v2))["features.1.conv.0.0"].record().break_even_rank == 1


def test_the_papers_set_for_resnet18_is_the_eight_conv2(resnet18: nn.Module) -> None:
    layers = found_in(resnet18, include=["paper"], arch="resnet18")
    assert names(layers) == [f"layer{stage}.{block}.conv2" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert sum(layers[name].params for name in names(layers)) == 6_266_880  # Table 6: 6.27M
    assert layers["conv1"].skipped == "not named by --layers"


def test_the_papers_set_for_resnet50_is_the_sixteen_3x3() -> None:
    layers = found_in(on_meta(models.resnet50), include=["paper"], arch="resnet50")
    assert len(names(layers)) == 16
    assert all(layers[name].shape[2:] == [3, 3] for name in names(layers))
    assert sum(layers[name].params for name in names(layers)) == 11_317_248  # Table 7: 11.32M


def test_the_papers_set_for_vgg16_is_13_convolutions_and_3_linear_layers() -> None:
    layers = found_in(on_meta(models.vgg16), include=["paper"], arch="vgg16")
    kinds = [layers[name].kind for name in names(layers)]
    assert (kinds.count("conv"), kinds.count("linear")) == (13, 3)


@pytest.mark.parametrize("arch", ["mobilenet_v2", ""])
def test_the_paper_has_no_set_for_other_networks(resnet18: nn.Module, arch: str) -> None:
    with pytest.raises(InputError, match=f"no layer set for {arch or 'this network'}"):
        found_in(resnet18, include=["paper"], arch=arch)


def test_the_features_of_vgg11() -> None:
    layers = found_in(on_meta(models.vgg11).features)
    assert [layer.shape[0] for layer in layers.values()] == [64, 128, 256, 256, 512, 512, 512, 512]
    assert layers["0"].break_even_rank == 3 * 3 * 64 // 67
    assert len(names(layers)) == 8


def test_depthwise_layers_of_mobilenet_are_left_with_their_reason() -> None:
    layers = found_in(on_meta(models.mobilenet_v2))
    depthwise = [layer for layer in layers.values() if layer.shape[1:] == [1, 3, 3]]
    assert len(depthwise) == 17
    assert {layer.skipped for layer in depthwise} == {
        "depthwise: already thin, two thinner convolutions would only be slower"
    }
    assert len(names(layers)) == len(layers) - 17


def test_attention_keeps_its_output_projection() -> None:
    """nn.MultiheadAttention reads `out_proj.weight` itself: a factorized one would crash it."""
    layers = found_in(on_meta(models.vit_b_16), side=224)
    projections = {name: layer for name, layer in layers.items() if name.endswith("out_proj")}
    assert len(projections) == 12
    assert all(layer.skipped for layer in projections.values())
    assert names(layers) == [name for name in layers if name not in projections]


def test_what_is_called_compressible_in_a_fused_encoder_can_be_replaced() -> None:
    """In eval mode nn.TransformerEncoderLayer reads `linear1.weight` itself, but not while a hook is attached."""
    model = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    tokens = torch.randn(2, 5, 8)
    for layer in compressible(find_layers(model, tokens)):
        factors = {layer.name: METHODS[layer.method].factorize(layer.module)}
        candidate = build_candidate(model, factors, {layer.name: factors[layer.name].max_rank})
        with torch.inference_mode():
            torch.testing.assert_close(candidate(tokens), model(tokens), rtol=1e-3, atol=1e-4)


def test_auxiliary_heads_that_eval_mode_never_calls_are_left() -> None:
    layers = found_in(on_meta(models.googlenet, init_weights=False), side=96)
    unused = [name for name, layer in layers.items() if layer.skipped == NEVER_CALLED]
    assert unused == [f"aux{i}.{part}" for i in (1, 2) for part in ("conv.conv", "fc1", "fc2")]


class Net(nn.Module):
    """A layer of every kind that must be left alone, beside one that may change."""

    def __init__(self) -> None:
        super().__init__()
        self.good = nn.Linear(10, 10)
        self.unused = nn.Linear(10, 10)
        self.one = nn.Linear(10, 10)
        self.two = nn.Linear(10, 10)
        self.two.weight = self.one.weight
        self.signal = nn.ConvTranspose1d(4, 4, 3, padding=1)
        self.thin = nn.Linear(10, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.thin(self.signal(self.two(self.one(self.good(x)))))


def test_every_reason() -> None:
    layers = find_layers(Net().eval(), torch.zeros(2, 4, 10))
    assert {layer.name: layer.skipped for layer in layers} == {
        "good": None,
        "unused": NEVER_CALLED,
        "one": SHARED,
        "two": SHARED,
        "signal": "ConvTranspose1d is not supported",
        "thin": "no rank makes it smaller (break-even rank 0)",
    }


def test_subclasses_may_do_anything_and_are_left() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    layers = find_layers(nn.Sequential(nn.Linear(10, 10), Doubled(10, 10)), torch.zeros(1, 10))
    assert [layer.skipped for layer in layers] == [None, "Doubled is not supported"]


class TwoPositions(nn.Module):
    """One layer object that hangs in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(10, 10)
        self.left = nn.Sequential(nn.Linear(10, 10))
        self.right = nn.Sequential(self.left[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.right(self.left(self.other(x)))


def test_a_layer_in_two_places_is_left() -> None:
    layers = find_layers(TwoPositions(), torch.zeros(1, 10))
    assert [layer.name for layer in compressible(layers)] == ["other"]


class TiedToAnEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(10, 10)
        self.words = nn.Embedding(10, 10)
        self.head = nn.Linear(10, 10, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(x) + self.words(x.new_zeros(len(x), dtype=torch.int64)))


def test_a_layer_whose_weight_is_used_elsewhere_is_left() -> None:
    layers = find_layers(TiedToAnEmbedding(), torch.zeros(1, 10))
    assert [layer.name for layer in compressible(layers)] == ["other"]


@pytest.mark.parametrize(
    ("include", "skip", "expected"),
    [
        (["layer1.*"], [], ["layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2"]),
        (["layer1.*"], ["*conv1"], ["layer1.0.conv2", "layer1.1.conv2"]),
        (["fc", "conv1"], [], ["conv1", "fc"]),
        (["*downsample*"], ["layer[34].*"], ["layer2.0.downsample.0"]),
        ([], ["layer*"], ["conv1", "fc"]),
    ],
)
def test_patterns(resnet18: nn.Module, include: list[str], skip: list[str], expected: list[str]) -> None:
    layers = found_in(resnet18, include=include, skip=skip)
    assert names(layers) == expected
    assert len(layers) == 21
    others = {layer.skipped for layer in layers.values()} - {None}
    assert others <= {"not named by --layers", "left out by --skip"}


@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(0, 20), min_size=1), st.sets(st.integers(0, 20)))
def test_what_is_left_is_what_is_included_and_not_skipped(kept: set[int], left_out: set[int]) -> None:
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(21)))
    example = torch.zeros(1, 6)
    include, skip = map(str, sorted(kept)), [str(index) for index in sorted(left_out)]
    found = compressible(find_layers(model, example, include=list(include), skip=skip))
    assert {int(layer.name) for layer in found} == kept - left_out


@pytest.mark.parametrize("option", ["include", "skip"])
def test_a_pattern_that_matches_nothing_is_refused(resnet18: nn.Module, option: str) -> None:
    with pytest.raises(InputError, match=r"'layer9\.\*' matches no layer"):
        found_in(resnet18, **{option: ["fc", "layer9.*"]})


def test_nothing_left_still_lists_every_layer_with_its_reason(resnet18: nn.Module) -> None:
    layers = list(found_in(resnet18, skip=["*"]).values())
    assert len(layers) == 21
    assert not compressible(layers)
    (single,) = find_layers(nn.Conv2d(2, 2, 1), torch.zeros(1, 2, 4, 4))
    assert "no rank makes it smaller" in (single.skipped or "")


def test_tucker_is_taken_where_groups_and_kernel_allow() -> None:
    grouped = nn.Conv2d(16, 16, 3, groups=2)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), grouped, nn.Conv2d(16, 16, 1), nn.Flatten(), nn.Linear(16 * 16, 9))
    example = torch.zeros(1, 3, 8, 8)
    found = find_layers(model, example, method="tucker")
    assert [layer.method for layer in found] == ["tucker", "spatial", "svd", "svd"]
    assert [layer.method for layer in find_layers(model, example)] == ["spatial", "spatial", "svd", "svd"]
    for layer in found:
        assert METHODS[layer.method].factorize(layer.module).max_rank >= layer.break_even_rank


def test_finding_layers_leaves_the_network_unchanged() -> None:
    model = models.squeezenet1_1(num_classes=10).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_layers(model, torch.randn(2, 3, 48, 48))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
