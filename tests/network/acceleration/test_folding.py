"""Batch norms in the layers before them: the same outputs, the same factors, fewer modules."""

import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.ops import misc

from compressor.channels.grouping import find_groups
from compressor.channels.unfitted import unfitted_channels
from compressor.data.batches import from_batches
from compressor.factorization.base import JointFactors
from compressor.factorization.registry import METHODS
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.linearization import Linearizer, SingleLayerLosses
from compressor.network.acceleration.folding import Folded, fold_norms
from compressor.network.calibration.gradients import OutputGradients
from compressor.network.layers import find_layers
from compressor.network.surgery import build_candidate, with_layer
from tests.factorization.fitted import check_along

CPU = torch.device("cpu")


def with_statistics(network: nn.Module, seed: int = 0) -> nn.Module:
    """Norms with other statistics than those at the start, in eval mode."""
    draw = torch.Generator().manual_seed(seed)
    norms: list[Any] = [module for module in network.modules() if hasattr(module, "running_var")]
    for norm in norms:
        count = len(norm.running_var)
        norm.running_mean.copy_(torch.randn(count, generator=draw))
        norm.running_var.copy_(0.2 + torch.rand(count, generator=draw))
        if norm.weight is not None:
            norm.weight.data.copy_(torch.randn(count, generator=draw))
            norm.bias.data.copy_(torch.randn(count, generator=draw))
    return network.eval().requires_grad_(False)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1, groups=2),
            nn.BatchNorm2d(8, affine=False),
            nn.ReLU(),
            nn.Conv2d(8, 6, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(150, 12),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.Linear(12, 4),
        )
    )


@pytest.fixture
def images() -> Tensor:
    return torch.randn(20, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def norms_of(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if hasattr(module, "running_var")]


def test_norms_are_gone_and_outputs_stay(network: nn.Module, images: Tensor) -> None:
    before = [parameter.clone() for parameter in network.state_dict().values()]
    folded = fold_norms(network, images[:1])
    assert set(folded.norms) == {"0", "3", "9"}
    assert not norms_of(folded.network)
    torch.testing.assert_close(folded.network(images), network(images), rtol=1e-4, atol=1e-4)
    assert folded.network.get_submodule("12").weight is network.get_submodule("12").weight
    for old, new in zip(before, network.state_dict().values(), strict=True):
        assert torch.equal(old, new)
    torch.testing.assert_close(pickle.loads(pickle.dumps(folded)).network(images), folded.network(images))


@pytest.mark.parametrize("arch", ["mobilenet_v2", "resnet18", "densenet121", "efficientnet_b0", "inception_v3"])
def test_networks_of_torchvision(arch: str) -> None:
    torch.manual_seed(0)
    network = get_model(arch, weights=None, init_weights=False) if arch == "inception_v3" else get_model(arch)
    network.eval().requires_grad_(False)
    images = torch.randn(2, 3, 96, 96)
    folded = fold_norms(network, images[:1])
    assert len(folded.norms) > 15
    left = norms_of(folded.network)
    assert len(left) + len(folded.norms) == len(norms_of(network))
    assert arch in ("densenet121", "inception_v3") or not left  # norms before layers, and an auxiliary head's
    torch.testing.assert_close(folded.network(images), network(images), rtol=1e-3, atol=1e-4)


class Twice(nn.Module):
    """Outputs of a layer that a norm reads, and something else, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return (self.norm(y) + y).flatten(1)


class Tokens(nn.Module):
    """A norm along another axis than the layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(5, 7), nn.BatchNorm1d(15)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.layer(x.flatten(1, 2)))
        return y.flatten(1)


class Again(nn.Module):
    """A norm that is used behind two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.norm(self.first(x)).relu())).flatten(1)


class Weight(nn.Module):
    """A forward that reads a norm's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.layer(x.to(self.norm.weight.dtype)))
        return y.flatten(1)


class Small(nn.Module):
    """A second reader whose share of the outputs is lost beside larger ones."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.boxes = Twice(), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([1e-5 * self.twice(x), 1e3 * self.boxes(x).flatten(1)], 1)


class FrozenBatchNorm2d(nn.Module):
    """Of the name of torchvision's, and written otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class WithActivation(nn.BatchNorm2d):
    """A norm that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, lambda: WithActivation(4)])
def test_other_norms_are_left_alone(norm: Any, images: Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), norm(), nn.Flatten()).eval()
    folded = fold_norms(network, images[:1])
    assert not folded.norms
    torch.testing.assert_close(folded.network(images), network(images))


@pytest.mark.parametrize("between", [nn.Identity(), nn.ReLU(inplace=True)])
def test_one_norm_that_cannot_be_folded_leaves_the_others(between: nn.Module, images: Tensor) -> None:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 1), between, nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3), Twice()]
    network = with_statistics(nn.Sequential(*parts))
    folded = fold_norms(network, images[:1])
    assert set(folded.norms) == ({"0", "3"} if isinstance(between, nn.Identity) else {"3"})
    torch.testing.assert_close(folded.network(images), network(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Twice, Tokens, Again, Weight, Small])
def test_what_is_used_otherwise_is_left_alone(kind: type[nn.Module], images: Tensor) -> None:
    torch.manual_seed(0)
    network = with_statistics(kind())
    folded = fold_norms(network, images[:1])
    assert not folded.norms
    torch.testing.assert_close(folded.network(images), network(images))


def test_frozen_norms_of_detectors(images: Tensor) -> None:
    torch.manual_seed(0)
    network = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), misc.FrozenBatchNorm2d(4), nn.Flatten()))
    folded = fold_norms(network, images[:1])
    assert set(folded.norms) == {"0"}
    torch.testing.assert_close(folded.network(images), network(images), rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["svd", "spatial", "tucker", "interpolative"]), st.integers(1, 4))
def test_factors_with_the_norm_behind_them(method: str, rank: int) -> None:
    torch.manual_seed(rank)
    layer = nn.Linear(9, 8) if method in ("svd", "interpolative") else nn.Conv2d(3, 8, 3)
    norm = nn.BatchNorm1d(8) if isinstance(layer, nn.Linear) else nn.BatchNorm2d(8)
    network, inputs = (
        with_statistics(nn.Sequential(layer, norm)),
        torch.randn(2, *([9] if layer.weight.dim() == 2 else [3, 6, 6])),
    )
    folded = fold_norms(network, inputs)
    factors = METHODS[method].factorize(layer)
    found = folded.factors({"0": factors})["0"]
    assert not isinstance(found, JointFactors)
    torch.testing.assert_close(found.build(rank)(inputs), norm(factors.build(rank)(inputs)), rtol=1e-3, atol=1e-4)
    nested = found.nested(rank)
    if nested is not None:
        check_along(nested, [found.build(one) for one in range(1, rank + 1)], inputs)


def test_readers_of_channels_with_the_norm_behind_them(network: nn.Module, images: Tensor) -> None:
    folded = fold_norms(network, images[:1])
    groups = find_groups(network, images[:1])
    for name, factors in folded.factors(unfitted_channels(network, groups, from_batches([images], 20), CPU)).items():
        assert isinstance(factors, JointFactors)
        for reader in factors.layers:
            inputs = network[: int(reader)](images[:2])
            built = [factors.build(width)[reader] for width in range(1, factors.max_rank + 1)]
            check_along(factors.nested(reader, factors.max_rank), built, inputs)
        whole = build_candidate(folded.network, {name: factors}, {name: factors.max_rank})
        torch.testing.assert_close(whole(images), network(images), rtol=1e-3, atol=1e-3)


def test_models_and_losses_are_those_with_norms(network: nn.Module, images: Tensor) -> None:
    norm = FunctionNorm(network, from_batches([images], 20), CPU)
    layers = [layer for layer in find_layers(network, images[:1]) if layer.skipped is None]
    factors = {layer.name: METHODS[layer.method or "svd"].factorize(layer.weighted_module) for layer in layers}
    folded = fold_norms(network, images[:1])
    ranks = [1 for _ in layers]
    others = [[2] for _ in layers]
    models = [
        Linearizer(norm, model, layers, of)(torch.tensor(ranks).numpy(), others, torch.arange(20).numpy(), 4)
        for model, of in ((network, factors), (folded.network, folded.factors(factors)))
    ]
    torch.testing.assert_close(*(torch.from_numpy(model.residuals) for model in models), rtol=1e-3, atol=1e-3)
    for before, after in zip(models[0].changes, models[1].changes, strict=True):
        torch.testing.assert_close(torch.from_numpy(before[2]), torch.from_numpy(after[2]), rtol=1e-3, atol=1e-3)
    names = [layer.name for layer in layers]
    substitutes = {name: factors[name].build(1) for name in names}
    plain, without = (SingleLayerLosses(norm, model, names, 4) for model in (network, folded.network))
    for name in names:
        expected = plain(name, substitutes[name])
        assert without(name, folded.module(name, substitutes[name])) == pytest.approx(expected, rel=1e-2)


def test_moments_of_gradients_are_those_with_norms(network: nn.Module, images: Tensor) -> None:
    folded, names = fold_norms(network, images[:1]), ["0", "3", "6", "9", "12"]
    before = OutputGradients(network, from_batches([images], 20), CPU, 0)
    after = OutputGradients(folded.network, from_batches([images], 20), CPU, 0, folded.scales)
    for find in ("by_position", "by_image"):
        expected, found = getattr(before, find)(names), getattr(after, find)(names)
        for name in names:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-3)


def test_another_module_keeps_the_norm_behind_it(network: nn.Module, images: Tensor) -> None:
    other = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh()).requires_grad_(False)
    folded = fold_norms(network, images[:1])
    found = with_layer(folded.network, "0", folded.module("0", other))(images)
    torch.testing.assert_close(found, with_layer(network, "0", other)(images), rtol=1e-4, atol=1e-4)
    assert Folded(network).module("0", other) is other
