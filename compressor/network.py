"""Teacher and ranks in, a network out."""

import copy
from collections.abc import Mapping

from torch import nn

from compressor.factors import Factors


def build_candidate(model: nn.Module, factors: Mapping[str, Factors], ranks: Mapping[str, int]) -> nn.Module:
    """The network with the named layers factorised; every other tensor is shared with `model`.

    Args:
        model: the original, left untouched.
        factors: factors by layer name.
        ranks: rank by layer name, only for layers that are not kept dense.
    """
    candidate = _copy_sharing_tensors(model)
    for name, rank in ranks.items():
        candidate = replace_layer(candidate, name, factors[name].build(rank))
    return candidate


def detach_from_original(candidate: nn.Module) -> nn.Module:
    """A copy that shares no tensor with the original network."""
    return copy.deepcopy(candidate)


def _copy_sharing_tensors(model: nn.Module) -> nn.Module:
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def replace_layer(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """The network with `module` in the place of the named layer: `model` itself, changed, or `module` alone."""
    if not name:  # the network is the layer
        return module
    model.set_submodule(name, module)
    return model
