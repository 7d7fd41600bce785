"""Equal ranges between factors: the same function, in which 8 bits for a whole tensor lose less."""

import copy

import pytest
import torch
from torch import Tensor, nn

from compressor.data.batches import from_batches
from compressor.data.images import ImageSet
from compressor.factorization.records import Method
from compressor.factorization.registry import METHODS
from compressor.network.layers import compressible, find_layers, with_method
from compressor.network.pruning import factor_pairs, rescale
from compressor.network.surgery import build_candidate, detach_from_original
from compressor.recovery.ranges import equalize_ranges

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images() -> ImageSet:
    torch.manual_seed(1)
    return from_batches([torch.randn(32, 8, 6, 6)], 32)


def factorized(method: Method) -> nn.Module:
    """Two factorized layers whose first factors give channels of which each is half as large as the one before."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)).eval()
    first, last = compressible(find_layers(network, torch.zeros(1, 8, 6, 6)))
    layers = [with_method(first, method), last]
    factors = {layer.name: METHODS[layer.method or "svd"].factorize(layer.module) for layer in layers}
    made = detach_from_original(build_candidate(network, factors, {first.name: 6, last.name: 8}))
    for before, after in factor_pairs(made):
        rescale(before, after, 0.5 ** torch.arange(len(before.weight)))
    return made


def between_in_8_bits(network: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs where what the first factors hand on is rounded to 8 bits, all channels by one scale."""

    def round_(_module: nn.Module, _given: object, value: Tensor) -> Tensor:
        scale = value.abs().max() / 127
        return (value / scale).round() * scale

    handles = [network.get_submodule(f"{name}.0").register_forward_hook(round_) for name in ("0", "3")]
    outputs: Tensor = network(inputs)
    for handle in handles:
        handle.remove()
    return outputs


@pytest.mark.parametrize("method", ["spatial", "tucker"])
def test_outputs_stay_and_every_channel_reaches_about_one(method: Method, images: ImageSet) -> None:
    network, inputs = factorized(method), images.batch(slice(None))
    equal = equalize_ranges(copy.deepcopy(network), images, CPU)
    with torch.inference_mode():
        before, after = network(inputs), equal(inputs)
        assert torch.equal(after, before)
        first = equal.get_submodule("0.0")(inputs)
        errors = [float((between_in_8_bits(each, inputs) - before).square().mean()) for each in (network, equal)]
    largest = first.abs().amax((0, 2, 3))
    assert (largest >= 0.5**0.5 - 1e-4).all()
    assert (largest <= 2**0.5 + 1e-4).all()
    assert errors[1] < 0.5 * errors[0]
    assert not any(value.requires_grad for value in equal.parameters())


def test_channels_that_are_silent_stay_and_networks_without_factors_are_left_alone(images: ImageSet) -> None:
    network, inputs = factorized("spatial"), images.batch(slice(None))
    weight = network.get_submodule("3.0").weight
    with torch.no_grad():
        weight[2] = 0.0
        before = network(inputs)
        equal = equalize_ranges(network, images, CPU)
        assert torch.equal(equal(inputs), before)
    assert equal.get_submodule("3.0").weight[2].abs().max() == 0
    plain = nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU()).eval()
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    assert all(
        torch.equal(value, state[name]) for name, value in equalize_ranges(plain, images, CPU).state_dict().items()
    )
