"""One threshold over the whole network, in place, and nothing but conv and linear weights."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressor.network.pruning import count_prunable, prune_smallest


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return torchvision.models.squeezenet1_1(num_classes=10).eval()


def weights(model: nn.Module) -> torch.Tensor:
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return torch.cat([layer.weight.detach().flatten() for layer in layers])


@settings(max_examples=12, deadline=None)
@given(st.floats(0, 0.99), st.integers(0, 3))
def test_the_smallest_weights_of_the_whole_network_are_zero_and_the_others_untouched(
    fraction: float, seed: int
) -> None:
    model = network(seed)
    before = weights(model).clone()
    assert prune_smallest(model, fraction) is model
    after = weights(model)
    zeroed = after == 0
    assert int(zeroed.sum()) == max(round(fraction * len(before)), int((before == 0).sum()))
    assert torch.equal(after[~zeroed], before[~zeroed])
    if zeroed.any():
        assert before[zeroed].abs().max() <= before[~zeroed].abs().min()


def test_one_threshold_holds_for_all_layers() -> None:
    """A layer of small weights loses more than its share."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))
    with torch.no_grad():
        model[0].weight.mul_(0.01)
    prune_smallest(model, 0.5)
    assert int((model[0].weight == 0).sum()) > 870
    assert int((model[1].weight == 0).sum()) < 30


def test_biases_and_norms_are_left_alone_and_the_modules_stay_plain() -> None:
    torch.manual_seed(0)
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=10).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    convs = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    prune_smallest(model, 0.3)
    after = model.state_dict()
    assert set(after) == set(before)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed <= convs
    assert changed
    assert all(isinstance(module.weight, nn.Parameter) for module in model.modules() if isinstance(module, nn.Conv2d))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_nothing_to_prune_changes_nothing() -> None:
    model = network()
    before = weights(model).clone()
    assert prune_smallest(model, 0.0) is model
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize("fraction", [0.25, 0.9])
def test_pruning_again_at_the_same_fraction_changes_nothing(fraction: float) -> None:
    model = prune_smallest(network(), fraction)
    once = weights(model).clone()
    assert torch.equal(weights(prune_smallest(model, fraction)), once)


def test_weights_that_are_made_of_others_are_left_alone() -> None:
    layers = [nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3), nn.Flatten()]
    network = nn.Sequential(*layers).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items() if name.startswith("0.")}
    assert count_prunable(network) == 4 * 4 * 9
    prune_smallest(network, 0.5)
    assert int((network.get_parameter("1.weight") == 0).sum()) == 72
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
