"""Equal scales of factors: the same function, and pruning that removes no factor as a whole."""

import copy

import pytest
import torch
from torch import nn

from compressor.factorization.layers.making import chain
from compressor.factorization.records import Method
from compressor.factorization.registry import METHODS
from compressor.network.layers import compressible, find_layers, with_method
from compressor.network.pruning import equalize_factor_scales, prune_smallest
from compressor.network.surgery import build_candidate, detach_from_original


def factorized(method: Method, groups: int = 1) -> nn.Module:
    """A network of two factorized layers, the first factors a thousandth of their size and the last a thousandfold."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=groups), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    first, last = compressible(find_layers(network.eval(), torch.zeros(1, 8, 6, 6)))
    layers = [with_method(first, method), last]
    factors = {layer.name: METHODS[layer.method or "svd"].factorize(layer.module) for layer in layers}
    made = detach_from_original(build_candidate(network, factors, {first.name: 4, last.name: 6}))
    for name in (first.name, last.name):
        made_of = made.get_submodule(name)
        assert isinstance(made_of, nn.Sequential)
        made_of[0].weight.mul_(1e-3)
        made_of[-1].weight.mul_(1e3)
    return made


@pytest.mark.parametrize(("method", "groups"), [("spatial", 1), ("spatial", 2), ("tucker", 1), ("cp", 1)])
def test_the_function_stays_and_norms_are_equal(method: Method, groups: int) -> None:
    network = factorized(method, groups)
    inputs = torch.randn(4, 8, 6, 6)
    with torch.inference_mode():
        before = network(inputs)
        balanced = equalize_factor_scales(copy.deepcopy(network))
        assert torch.allclose(balanced(inputs), before, atol=1e-4 * float(before.abs().max()))
    first, second = balanced.get_submodule("3")
    assert torch.allclose(first.weight.norm(dim=1), second.weight.norm(dim=0), rtol=1e-4)
    assert not any(value.requires_grad for value in balanced.parameters())


@pytest.mark.parametrize("method", ["spatial", "tucker"])
def test_pruning_no_longer_removes_a_whole_factor(method: Method) -> None:
    network = factorized(method)
    inputs = torch.randn(64, 8, 6, 6)
    with torch.inference_mode():
        outputs = network(inputs)
        pruned = prune_smallest(copy.deepcopy(network), 0.2)(inputs)
    assert float((pruned - outputs).square().mean()) < 0.4 * float(outputs.var())


def test_a_channel_with_a_zero_weight_before_or_after_is_unchanged() -> None:
    factors = chain(nn.Linear(4, 3, bias=False), nn.Linear(3, 5)).requires_grad_(False)
    factors[0].weight[1] = 0.0
    factors[1].weight[:, 2] = 0.0
    inputs = torch.randn(7, 4)
    before = factors(inputs)
    equalize_factor_scales(factors)
    assert torch.allclose(factors(inputs), before, atol=1e-5)
    assert torch.isfinite(factors[0].weight).all()
    assert torch.equal(factors[0].weight[1], torch.zeros(4))


def test_layers_that_are_no_factors_stay() -> None:
    """A network's own sequence may have a forward of its own, as here, or parts that are called alone."""

    class Perceptron(nn.Sequential):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self[1](nn.functional.silu(self[0](inputs)))
            return outputs

    network = nn.Sequential(Perceptron(nn.Linear(4, 3, bias=False), nn.Linear(3, 5)), nn.Linear(5, 2))
    before = copy.deepcopy(network.state_dict())
    equalize_factor_scales(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
