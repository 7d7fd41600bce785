"""The final magnitude pass: one threshold over all weights (Sec. 4.3; Han et al. 2015)."""

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from compressor.network.surgery import detach_from_original

Part = nn.Conv2d | nn.Linear


def prune_smallest(model: nn.Module, fraction: float) -> nn.Module:
    """Set the smallest `fraction` of all conv and linear weights to zero, in place; returns `model`.

    One threshold holds for the whole network; biases and normalization layers are left alone. Factors of one layer are
    brought to one scale before.
    """
    if fraction == 0:
        return model
    balance_factors(model)
    weights = [(layer, "weight") for layer in _prunable(model)]
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=fraction)
    for layer, name in weights:
        prune.remove(layer, name)
    return model


def pruned_copy(candidate: nn.Module, fraction: float) -> nn.Module:
    """The same for a candidate that shares tensors with the original, which stays as it is."""
    return prune_smallest(detach_from_original(candidate), fraction) if fraction else candidate


def count_prunable(model: nn.Module) -> int:
    """How many weights the pass chooses from."""
    return sum(layer.weight.numel() for layer in _prunable(model))


def _prunable(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def balance_factors(network: nn.Module) -> nn.Module:
    """Scale the channels between factors so that what writes a channel has the norm of what reads it; in place, with
    new tensors for the weights; returns `network`."""
    for chain in network.modules():
        if isinstance(chain, nn.Sequential):
            for first, second in zip(chain, list(chain)[1:], strict=False):
                if isinstance(first, Part) and isinstance(second, Part) and first.bias is None:
                    _balance(first, second)
    return network


def _balance(first: Part, second: Part) -> None:
    """Both weights for each of the K channels between them."""
    with torch.no_grad():
        read = _by_input(second)
        written, reading = first.weight.flatten(1).norm(dim=1), read.transpose(1, 2).flatten(2).norm(dim=2).flatten()
        known = (written > 0) & (reading > 0)
        scale = torch.where(known, reading / written.where(known, torch.ones_like(written)), 1.0).sqrt()
        first.weight = _parameter(first.weight * scale.view(-1, *[1] * (first.weight.dim() - 1)), first)
        divided = read / scale.view(len(read), 1, -1, *[1] * (read.dim() - 3))
        second.weight = _parameter(divided.reshape(second.weight.shape), second)


def _by_input(layer: Part) -> Tensor:
    """The weight as (groups, Co/groups, Ci/groups, ...)."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return layer.weight.reshape(groups, -1, *layer.weight.shape[1:])


def _parameter(value: Tensor, like: Part) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=like.weight.requires_grad)
