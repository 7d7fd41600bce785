"""Global magnitude pruning (Sec. 4.3; Han et al. 2015), after equalizing the scales of factors."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from compressor.factorization.layers.kinds import KINDS, Layer, groups_of, set_weight, weight_of
from compressor.factorization.layers.making import is_chain
from compressor.network.surgery import detach_from_original


def prune_smallest(model: nn.Module, fraction: float) -> nn.Module:
    """Set the smallest `fraction` of all conv and linear weights to zero, in place; returns `model`.

    One threshold holds for the whole network; biases and normalization layers are kept. Before, the scales of the
    factors of a layer are equalized.
    """
    if fraction == 0:
        return model
    equalize_factor_scales(model)
    weights = [(layer, "weight") for layer in _prunable(model)]
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=fraction)
    for layer, name in weights:
        prune.remove(layer, name)
    return model


def pruned_copy(candidate: nn.Module, fraction: float) -> nn.Module:
    """A pruned copy of a candidate, which may share tensors with the original; the candidate itself for 0."""
    return prune_smallest(detach_from_original(candidate), fraction) if fraction else candidate


def count_prunable(model: nn.Module) -> int:
    """Number of weights that can be pruned."""
    return sum(layer.weight.numel() for layer in _prunable(model))


def _prunable(model: nn.Module) -> list[Layer]:
    """Layers whose weight is a tensor of their own, not made of others at every call as by weight norm."""
    layers = [layer for layer in model.modules() if isinstance(layer, KINDS)]
    return [layer for layer in layers if layer._parameters.get("weight") is not None]


def equalize_factor_scales(network: nn.Module) -> nn.Module:
    """Scale every channel between factors so that the weights before and after it have equal norms.

    In place, with new tensors for the weights; returns `network`.
    """
    for first, second in factor_pairs(network):
        before = weight_of(first).flatten(1).norm(dim=1)
        after = _by_group(second).transpose(1, 2).flatten(2).norm(dim=2).flatten()
        used = (before > 0) & (after > 0)
        rescale(first, second, torch.where(used, after / before.where(used, torch.ones_like(before)), 1.0).sqrt())
    return network


def factor_pairs(network: nn.Module) -> list[tuple[Layer, Layer]]:
    """Factors of which the second reads what the first gives, which has no bias, and nothing else does."""
    return [
        (first, second)
        for chain in network.modules()
        if is_chain(chain)
        for first, second in pairwise(chain.children())
        if isinstance(first, KINDS) and isinstance(second, KINDS) and first.bias is None
    ]


def rescale(first: Layer, second: Layer, scale: Tensor) -> None:
    """Multiply each of the K channels between two layers by a number `scale` (K,) above 0, and take it back behind."""
    with torch.no_grad():
        weight, grouped = weight_of(first), _by_group(second)
        set_weight(first, weight * scale.view(-1, *[1] * (weight.dim() - 1)))
        divided = grouped / scale.view(len(grouped), 1, -1, *[1] * (grouped.dim() - 3))
        set_weight(second, divided.flatten(0, 1))


def _by_group(layer: Layer) -> Tensor:
    """The weight as (groups, Co/groups, Ci/groups, ...)."""
    weight = weight_of(layer)
    return weight.reshape(groups_of(layer), -1, *weight.shape[1:])
