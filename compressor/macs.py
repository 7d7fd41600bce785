"""Multiply-accumulates of a network, counted from the operators that really run.

This module imports nothing of ours.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

WHOLE_NETWORK = "Global"  # FlopCounterMode's own name for the sum over all modules
FLOPS_PER_MAC = 2


def count_macs(model: nn.Module, example: Tensor) -> tuple[int, dict[str, int]]:
    """Count the multiply-accumulates of one forward pass in eval mode for a batch of one.

    Convolutions, matrix products and attention are counted; biases, norms and activations are not (as is
    usual). Nothing of the model is changed: weights, buffers and training flags are as before.

    Args:
        model: any network; it runs on the device it is on.
        example: a batch (N, ...) with N at least 1; only its first sample is used.

    Returns:
        The total, and the MACs of each module under its name in `model.named_modules()`. A module is charged
        for what it runs outside its children, so the values add up to the total; modules that run none are
        left out. Attention that reads its children's weights itself (`nn.MultiheadAttention` and its
        `out_proj`) is charged to the attention, not to the child.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), _in_eval_mode(model), _without_attention_fast_path(), counter:
        model(example[:1].to(_device_of(model)))
    macs = {name: sum(ops.values()) // FLOPS_PER_MAC for name, ops in counter.get_flop_counts().items()}
    return macs[WHOLE_NETWORK], _charge_own(model, macs)


def _charge_own(model: nn.Module, macs: Mapping[str, int]) -> dict[str, int]:
    """Each module's MACs less those of its children; in `macs` every name starts with the root's class."""
    root = type(model).__name__
    own = {}
    for name, module in model.named_modules():
        key = f"{root}.{name}" if name else root
        children = sum(macs.get(f"{key}.{child}", 0) for child, _ in module.named_children())
        own[name] = macs.get(key, 0) - children
    return {name: count for name, count in own.items() if count > 0}


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """A batch of one breaks batch norm in training mode, and running statistics must not move."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def _without_attention_fast_path() -> Iterator[None]:
    """The fused `nn.MultiheadAttention` is one operator of unknown cost: it would count as zero."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
