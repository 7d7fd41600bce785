"""Teacher and ranks in, a network out."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from torch import nn

from compressor.factors import Factors

KEPT_PER_LAYER = 4  # layers at a rank, as many times as there are layers


def build_candidate(model: nn.Module, factors: Mapping[str, Factors], ranks: Mapping[str, int]) -> nn.Module:
    """The network with the named layers factorised; every other tensor is shared with `model`.

    Args:
        model: the original, left untouched.
        factors: factors by layer name.
        ranks: rank by layer name, only for layers that are not kept dense.
    """
    return _with_layers(model, {name: factors[name].build(rank) for name, rank in ranks.items()})


class Candidates:
    """The networks of one search: what a layer was made into at a rank is kept for a while, for the next that wants it.

    Candidates differ in few layers from one another, and factors fitted to images take longer to build than the network
    takes for a look. They share modules, too, and must not be changed.
    """

    def __init__(self, model: nn.Module, factors: Mapping[str, Factors]) -> None:
        self._model = model
        self._factors = factors
        self._kept = lru_cache(maxsize=KEPT_PER_LAYER * len(factors))(lambda name, rank: factors[name].build(rank))

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return Candidates, (self._model, self._factors)

    def build(self, ranks: Mapping[str, int]) -> nn.Module:
        """`build_candidate` at these ranks."""
        return _with_layers(self._model, {name: self._kept(name, rank) for name, rank in ranks.items()})


def detach_from_original(candidate: nn.Module) -> nn.Module:
    """A copy that shares no tensor with the original network."""
    return copy.deepcopy(candidate)


def _with_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    candidate = _copy_sharing_tensors(model)
    for name, layer in layers.items():
        candidate = replace_layer(candidate, name, layer)
    return candidate


def _copy_sharing_tensors(model: nn.Module) -> nn.Module:
    known: dict[int, object] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    # A module has a dozen empty dictionaries, of hooks and the like; without them a copy takes half the time.
    for module in model.modules():
        for value in vars(module).values():
            if type(value) in (dict, OrderedDict) and not value:
                known[id(value)] = type(value)()
    return copy.deepcopy(model, known)


def replace_layer(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """The network with `module` in the place of the named layer: `model` itself, changed, or `module` alone."""
    if not name:  # the network is the layer
        return module
    model.set_submodule(name, module)
    return model
