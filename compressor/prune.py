"""The final magnitude pass: one threshold over all weights (Sec. 4.3; Han et al. 2015)."""

from torch import nn
from torch.nn.utils import prune

from compressor.balance import balance_factors
from compressor.network import detach_from_original


def prune_smallest(model: nn.Module, fraction: float) -> nn.Module:
    """Set the smallest `fraction` of all conv and linear weights to zero, in place; returns `model`.

    One threshold holds for the whole network; biases and normalisation layers are left alone. Factors of one layer are
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
