"""Candidates of real networks: exact at full rank, with the plan's parameters, and without effect on the original."""

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, ResNet

from compressor.factorization.base import Factors
from compressor.factorization.registry import METHODS
from compressor.network.layers import FoundLayer, compressible, find_layers
from compressor.network.pruning import prune_smallest
from compressor.network.surgery import MAX_CACHED_RANKS, Candidates, build_candidate, detach_from_original
from compressor.search.space import RankSpace

SIDE, RESNET = 64, "a small resnet"


def small_resnet() -> nn.Module:
    """torchvision's, of one block a stage: full-rank factors of 512 x 512 kernels take a minute each."""
    network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    network.layer4, network.fc = nn.Identity(), nn.Linear(256, 10)
    return network


class Subject:
    """A network with moving statistics that fit its weights, its layers and their factors."""

    def __init__(self, arch: str, method: str = "auto") -> None:
        torch.manual_seed(0)
        self.model = small_resnet() if arch == RESNET else get_model(arch, weights=None, num_classes=10)
        self.images = torch.randn(8, 3, SIDE, SIDE)
        for _ in range(3):
            self.model.train()(self.images)
        self.model.eval()
        self.layers = compressible(find_layers(self.model, self.images, method=method))
        self.factors: dict[str, Factors] = {
            layer.name: METHODS[layer.method].factorize(layer.module) for layer in self.layers
        }

    def error(self, candidate: nn.Module) -> float:
        with torch.inference_mode():
            expected = self.model(self.images)
            return float((candidate(self.images) - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def mobilenet() -> Subject:
    return Subject("mobilenet_v2")


def addresses(model: nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in tensors(model)}


def tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from (buffer for buffer in model.buffers() if buffer.numel() > 1)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("arch", "method"),
    [pytest.param(RESNET, "auto", marks=pytest.mark.hard), ("mobilenet_v2", "auto"), ("squeezenet1_1", "tucker")],
)
def test_at_full_rank_the_whole_network_is_the_original(arch: str, method: str) -> None:
    subject = Subject(arch, method)
    ranks = {name: factors.max_rank for name, factors in subject.factors.items()}
    candidate = build_candidate(subject.model, subject.factors, ranks)
    dense = dict(subject.model.named_modules())
    assert all(isinstance(candidate.get_submodule(name), nn.Sequential) for name in ranks if name in dense)
    assert subject.error(candidate) < 1e-4


def test_networks_of_one_search_are_those_built_alone_and_share_their_layers(mobilenet: Subject) -> None:
    candidates, before = Candidates(mobilenet.model, mobilenet.factors), snapshot(mobilenet.model)
    first, second = ({layer.name: 1 + step for layer in mobilenet.layers[step:]} for step in (0, 1))
    name, layers = mobilenet.layers[0].name, []
    for ranks in (first, second, first):
        network = candidates.build(ranks)
        assert_same(network, snapshot(build_candidate(mobilenet.model, mobilenet.factors, ranks)))
        layers.append(network.get_submodule(name))
    assert layers[0] is layers[2]
    assert layers[1] is not mobilenet.model.get_submodule(name)
    assert_same(mobilenet.model, before)
    sent = pickle.loads(pickle.dumps(candidates))
    assert_same(sent.build(first), snapshot(network))


def test_networks_of_several_threads_are_kept_apart(mobilenet: Subject) -> None:
    candidates, name = Candidates(mobilenet.model, mobilenet.factors), mobilenet.layers[0].name
    with ThreadPoolExecutor(1) as other:
        mine, theirs = candidates.build({name: 1}), other.submit(candidates.build, {name: 2}).result()
    assert mine is not theirs
    assert mine.get_submodule(name) is not theirs.get_submodule(name)


def test_the_cache_of_built_factors_is_bounded(mobilenet: Subject) -> None:
    name = max(mobilenet.layers, key=lambda layer: layer.break_even_rank).name
    candidates = Candidates(mobilenet.model, {name: mobilenet.factors[name]})
    first = candidates.build({name: 1}).get_submodule(name)
    assert candidates.build({name: 1}).get_submodule(name) is first
    for rank in range(2, MAX_CACHED_RANKS + 2):
        candidates.build({name: rank})
    assert candidates.build({name: 1}).get_submodule(name) is not first


def test_a_copy_keeps_a_modules_state_and_its_hooks_apart_from_the_originals() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    model.notes = {"kept": [1, 2]}  # type: ignore[assignment]
    candidate = build_candidate(model, {}, {})
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("original"))
    candidate[0].register_forward_hook(lambda *_: calls.append("candidate"))  # type: ignore[index, operator]
    candidate(torch.zeros(1, 3, 8, 8))
    assert calls == ["candidate"]
    assert candidate.notes == {"kept": [1, 2]}
    assert candidate.notes is not model.notes


def test_a_low_rank_is_not_the_original(mobilenet: Subject) -> None:
    candidate = build_candidate(mobilenet.model, mobilenet.factors, {layer.name: 1 for layer in mobilenet.layers})
    assert mobilenet.error(candidate) > 0.1


def test_a_candidate_shares_every_untouched_tensor_and_leaves_the_original_alone(mobilenet: Subject) -> None:
    before, module_ids = snapshot(mobilenet.model), [id(module) for module in mobilenet.model.modules()]
    names = [layer.name for layer in mobilenet.layers[::3]]
    candidate = build_candidate(mobilenet.model, mobilenet.factors, dict.fromkeys(names, 3))
    original = dict(mobilenet.model.state_dict(keep_vars=True))
    shared = {
        name: value
        for name, value in candidate.state_dict(keep_vars=True).items()
        if not name.startswith(tuple(f"{layer}." for layer in names))
    }
    untouched = [name for name in original if not name.startswith(tuple(f"{layer}." for layer in names))]
    assert sorted(shared) == sorted(untouched)
    assert all(value is original[name] for name, value in shared.items())
    assert [id(module) for module in mobilenet.model.modules()] == module_ids
    assert_same(mobilenet.model, before)


def test_with_no_rank_given_the_candidate_is_the_original_in_other_modules(mobilenet: Subject) -> None:
    candidate = build_candidate(mobilenet.model, mobilenet.factors, {})
    assert candidate is not mobilenet.model
    assert mobilenet.error(candidate) == 0
    assert addresses(candidate) == addresses(mobilenet.model)


def test_a_detached_network_shares_nothing(mobilenet: Subject) -> None:
    ranks = {layer.name: max(1, layer.break_even_rank // 2) for layer in mobilenet.layers}
    candidate = build_candidate(mobilenet.model, mobilenet.factors, ranks)
    detached = detach_from_original(candidate)
    assert addresses(detached).isdisjoint(addresses(mobilenet.model) | addresses(candidate))
    before, expected = snapshot(mobilenet.model), snapshot(candidate)
    assert_same(detached, expected)
    prune_smallest(detached, 0.5)
    assert_same(mobilenet.model, before)
    assert_same(build_candidate(mobilenet.model, mobilenet.factors, ranks), expected)


def conv_and_linear_weights(model: nn.Module) -> int:
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear))


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_a_candidate_has_the_plans_parameters(mobilenet: Subject, data: st.DataObject) -> None:
    layers = mobilenet.layers
    ranks = np.array([data.draw(st.integers(1, layer.dense_rank)) for layer in layers])
    space = RankSpace([layer.name for layer in layers], [layer.params_by_rank() for layer in layers])
    below_cap = {layer.name: int(rank) for layer, rank in zip(layers, ranks, strict=True) if rank < layer.dense_rank}
    candidate = build_candidate(mobilenet.model, mobilenet.factors, below_cap)
    rest = conv_and_linear_weights(mobilenet.model) - space.cost(space.break_even_ranks[None])[0]
    assert conv_and_linear_weights(candidate) == space.cost(ranks[None])[0] + rest
    biases_and_norms = num_params(mobilenet.model) - conv_and_linear_weights(mobilenet.model)
    assert num_params(candidate) == conv_and_linear_weights(candidate) + biases_and_norms


def num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def whole_network(layer: nn.Module, example: torch.Tensor) -> FoundLayer:
    (found,) = find_layers(layer, example)
    return found


@pytest.mark.parametrize(
    ("layer", "example"),
    [
        (nn.Linear(12, 20), torch.randn(4, 12)),
        (nn.Conv2d(6, 8, 3, padding=1), torch.randn(2, 6, 9, 9)),
    ],
)
def test_a_network_that_is_one_layer(layer: nn.Module, example: torch.Tensor) -> None:
    found = whole_network(layer, example)
    assert found.name == ""
    factors = {"": METHODS[found.method].factorize(found.module)}
    before = snapshot(layer)
    candidate = build_candidate(layer, factors, {"": factors[""].max_rank})
    with torch.inference_mode():
        torch.testing.assert_close(candidate(example), layer(example), rtol=1e-4, atol=1e-5)
    assert isinstance(candidate, nn.Sequential)
    assert_same(layer, before)


def test_plain_modules_only(mobilenet: Subject) -> None:
    """Plain torch modules: the result is usable without this package."""
    candidate = build_candidate(mobilenet.model, mobilenet.factors, {layer.name: 2 for layer in mobilenet.layers})
    owners = {type(module).__module__.partition(".")[0] for module in candidate.modules()}
    assert owners <= {"torch", "torchvision"}


def test_a_candidate_is_in_eval_mode(mobilenet: Subject) -> None:
    candidate = build_candidate(mobilenet.model, mobilenet.factors, {layer.name: 2 for layer in mobilenet.layers})
    assert not any(module.training for module in candidate.modules())
