"""Multiply-accumulates of a network, counted from the operators that really run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compressor.network.detection.proposals import without_proposals
from compressor.network.hooks import noting

FLOPS_PER_MAC = 2


def count_macs(model: nn.Module, example: Tensor) -> tuple[int, dict[str, int]]:
    """Count the multiply-accumulates of one forward pass in eval mode for a batch of one.

    Convolutions, matrix products and attention are counted; biases, norms and activations are not (as is
    usual). The model is left as it was: weights, buffers and training flags.

    Args:
        model: any network; it runs on the device it is on.
        example: a batch (N, ...) with N at least 1; only its first sample is used.

    Returns:
        The total, and the MACs of each module under its name in `model.named_modules()`. A module is charged
        for what it runs outside its children, so the values add up to the total; modules that run none are
        left out. Attention that reads its children's weights itself (`nn.MultiheadAttention` and its
        `out_proj`) is charged to the attention, not to the child.
    """
    model = without_proposals(model)  # finding a detector's proposals is no part of it
    names = {module: name for name, module in model.named_modules()}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), _in_eval_mode(model), _countable_attention():
        flops = _run_counted(model, example[:1].to(_device_of(model)), names, counter)
    total = counter.get_total_flops() // FLOPS_PER_MAC
    return total, {name: own // FLOPS_PER_MAC for name, own in flops.items() if own > 0}


def _run_counted(
    model: nn.Module, sample: Tensor, names: Mapping[nn.Module, str], counter: FlopCounterMode
) -> dict[str, int]:
    with counter, _own_flops(names, counter) as own:
        model(sample)
    return own


@contextmanager
def _own_flops(names: Mapping[nn.Module, str], counter: FlopCounterMode) -> Iterator[dict[str, int]]:
    """Yields a dictionary that fills while the network runs: name -> flops outside the module's children.

    The counter's own table lists a module that occurs twice in the network under one of its names only.
    """
    own = dict.fromkeys(names.values(), 0)
    running: list[int] = []  # uncharged flops at the entry of each module that is running

    def enter(module: nn.Module) -> None:
        running.append(counter.get_total_flops() - sum(own.values()))

    def leave(module: nn.Module, _output: object) -> None:
        uncharged_before = running.pop()
        own[names[module]] += counter.get_total_flops() - sum(own.values()) - uncharged_before

    with noting(names, leave, enter):
        yield own


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """In training mode a batch of one breaks batch norm, and running statistics would change."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def _countable_attention() -> Iterator[None]:
    """Runs attention as matrix products.

    Fused kernels are operators of unknown cost, which would count as zero: the whole of `nn.MultiheadAttention`, and
    since torch 2.14 also the CPU's scaled dot product.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
