"""Factors of one layer made alike in size, before the smallest weights of all are sought.

A channel between two factors can be scaled by any number if the weights that read it are divided by that: the layer
computes the same. Fitted factors come in scales that mean nothing, a first one of 0.01 beside a second of 0.5; one
threshold over all weights would then take the first away as a whole.
"""

import torch
from torch import Tensor, nn

Part = nn.Conv2d | nn.Linear


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
