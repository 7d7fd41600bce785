"""Candidate networks: the original with layers replaced by factors."""

import copy
import functools
import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from torch import nn

from compressor.arrays import FLOAT_BYTES
from compressor.factorization.base import JointFactors, LayerByRank, built

MAX_CACHED_RANKS = 4  # per layer; of what takes more than LARGE_BYTES, one
LARGE_BYTES = 1 << 25


def build_candidate(
    model: nn.Module, factors: Mapping[str, LayerByRank | JointFactors], ranks: Mapping[str, int]
) -> nn.Module:
    """The network with some layers factorized; all other tensors are shared with `model`.

    Args:
        model: the original, left unchanged.
        factors: factors by name of the layer, or of what joint factors are of; no layer has two of them.
        ranks: rank by the same name, for what is not kept as it is.
    """
    candidate = copy_sharing_tensors(model)
    for name, rank in ranks.items():
        for layer, module in built(name, factors[name], rank).items():
            candidate = replace_layer(candidate, layer, module)
    return candidate


def with_layer(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """The network with one layer replaced; all other tensors are shared with `model`, which is left unchanged.

    Args:
        model: the network.
        name: of the layer; empty where the network is the layer.
        module: in its place.
    """
    return replace_layer(copy_sharing_tensors(model), name, module)


class Candidates:
    """The networks of one search, with a cache of built factors.

    Candidates differ in few layers from one another, and factors fitted to images take longer to build than a candidate
    takes to evaluate. `build` changes and returns the same network in each thread, so callers must not change it.
    """

    def __init__(self, model: nn.Module, factors: Mapping[str, LayerByRank | JointFactors]) -> None:
        self._model = model
        self._factors = factors
        self._kept = {
            name: lru_cache(maxsize=_num_cached(one))(functools.partial(built, name, one))
            for name, one in factors.items()
        }
        self._local = threading.local()

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return Candidates, (self._model, self._factors)

    def build(self, ranks: Mapping[str, int]) -> nn.Module:
        """The network of `build_candidate` at these ranks; the next call in this thread changes it."""
        local = self._local
        if not hasattr(local, "network"):
            local.network = copy_sharing_tensors(self._model)
            local.dense = {name: local.network.get_submodule(name) for name in self._names()}
        network: nn.Module = local.network
        wanted = dict(local.dense)
        for name in self._factors:
            if name in ranks:
                wanted |= self._kept[name](ranks[name])
        for name, module in wanted.items():
            network = replace_layer(network, name, module)
        return network

    def _names(self) -> list[str]:
        """Names of all layers that factors may replace."""
        return [
            layer
            for name, one in self._factors.items()
            for layer in (one.layers if isinstance(one, JointFactors) else [name])
        ]


def detach_from_original(candidate: nn.Module) -> nn.Module:
    """A copy that shares no tensor with the original network."""
    return copy.deepcopy(candidate)


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy with the same numbers, which are not copied; its parameters have no gradients."""
    return _copy(model, {id(one): nn.Parameter(one.detach(), requires_grad=False) for one in model.parameters()})


def copy_sharing_tensors(model: nn.Module) -> nn.Module:
    """A copy that has the same tensors."""
    return _copy(model, {id(parameter): parameter for parameter in model.parameters()})


def _copy(model: nn.Module, parameters: Mapping[int, nn.Parameter]) -> nn.Module:
    """A copy with the model's buffers, and with `parameters` in place of those of these ids."""
    known: dict[int, object] = {**parameters, **{id(buffer): buffer for buffer in model.buffers()}}
    # A module has a dozen empty dictionaries, of hooks and the like; not copying them halves the time.
    for module in model.modules():
        for value in vars(module).values():
            if type(value) in (dict, OrderedDict) and not value:
                known[id(value)] = type(value)()
    return copy.deepcopy(model, known)


def replace_layer(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Replace the named layer in place; returns `model`, or `module` where the whole network is the layer.

    Args:
        model: changed in place.
        name: of the layer; empty where the network is the layer.
        module: in its place.
    """
    if not name:  # the network is the layer
        return module
    model.set_submodule(name, module)
    return model


def _num_cached(factors: LayerByRank | JointFactors) -> int:
    """How many ranks of a layer are kept; readers of hidden channels are as large as they were at every one."""
    layers = factors.layers.values() if isinstance(factors, JointFactors) else ()
    return 1 if FLOAT_BYTES * sum(layer.weight.numel() for layer in layers) > LARGE_BYTES else MAX_CACHED_RANKS
