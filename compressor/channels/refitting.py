"""Readers refitted in the compressed network, front to back, by least squares.

In the compressed network a reader's inputs differ from the original's by the errors of all layers before it. It is
refitted from the inputs that it does receive to the outputs of the original (asymmetric reconstruction; Zhang et al.
2016). Where its outputs are added to something computed before, as in a residual block, it makes up for the errors of
that as well (He et al. 2017): the sum is to be the original's.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressor.channels.factors import ChannelFactors
from compressor.channels.groups import ChannelGroup, Reader
from compressor.channels.narrowing import channels_of
from compressor.channels.statistics import MAX_ROWS, SplitMoments, images_of
from compressor.channels.tracing import in_order, plain_name, tensors_in
from compressor.data.images import ImageSet
from compressor.factorization.moments import raise_floor_
from compressor.network.calibration.moments import rows_of_batch
from compressor.network.hooks import (
    Captured,
    OutputPositions,
    batches,
    count_calls,
    position_generators,
    sample_positions,
    watching,
)

MIN_SCALE = 1e-3  # of a batch norm's channel, below which it does not pass on what is added

Rows = list[tuple[OutputPositions, Tensor, Tensor]]
"""Per batch of images: positions of a layer's output, the image of each, and what is wanted there (rows, Co)."""


@dataclass
class Call:
    """One call of a reader: its input, its output, and what the output is added to (None where it is not)."""

    value: Tensor
    output: Tensor
    other: Tensor | None = None


def kept_outputs(original: nn.Module, groups: Sequence[ChannelGroup], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By name of the readers that produce channels of another group: which of their outputs (k,) are kept.

    Args:
        original: the network with all channels.
        groups: all groups that lose channels.
        kept: indices of the units that are kept, by group; groups not named keep all.
    """
    readers = {name for group in groups for name in group.reader_names}
    return {
        name: channels_of(kept[group.name], group.num_units, len(original.get_submodule(name).weight))  # type: ignore[arg-type]
        for group in groups
        for name in group.producers
        if name in readers and group.name in kept
    }


def readers_in_order(network: nn.Module, groups: Sequence[ChannelGroup], example: Tensor) -> list[Reader]:
    """All readers of the groups in the order in which they run.

    Args:
        network: that holds them; it runs once.
        groups: whose readers are wanted.
        example: one input (1, ...), on the network's device.
    """
    readers = {reader.name: reader for group in groups for reader in group.readers}
    return [readers[name] for name in count_calls(network, list(readers), example)]


def wanted_rows(
    original: nn.Module, readers: Sequence[Reader], images: ImageSet, device: torch.device, seed: int
) -> dict[str, Rows]:
    """What the readers' outputs are to be at random positions: the original's, plus what it adds them to.

    Where a batch norm follows they are less its mean, and divided by its scale.

    Args:
        original: the network with all channels, on the device.
        readers: whose outputs are wanted.
        images: N of them; each batch gives its share of at most MAX_ROWS positions.
        device: where the network runs.
        seed: of the positions.

    Returns:
        By reader, batch after batch, the positions and the wanted outputs there (rows, Co).
    """
    rows: dict[str, Rows] = {reader.name: [] for reader in readers}
    names = [reader.name for reader in readers]
    generators = dict(zip(names, position_generators(seed, len(names)), strict=True))
    for batch in batches(images, device):
        count = rows_of_batch(len(batch), len(images), MAX_ROWS)
        for reader, call in calls_of(original, readers, batch):
            positions = sample_positions(
                original.get_submodule(reader.name), call.output, count, generators[reader.name]
            )
            wanted = positions.of_output(call.output)
            if reader.norm is not None:
                wanted = wanted - running_mean(original, reader.norm)
            if call.other is not None:
                wanted = wanted + _before_norm(original, reader, positions.of_output(call.other))
            rows[reader.name].append((positions, images_of(positions, call.output), wanted))
    return rows


def moments_of(
    network: nn.Module, reader: Reader, rows: Rows, images: ImageSet, outputs: Tensor | None = None
) -> SplitMoments:
    """Moments of the inputs that a reader receives and of what is wanted of it.

    Args:
        network: the compressed network.
        reader: the layer.
        rows: of `wanted_rows` on the same images.
        images: calibration images.
        outputs: which outputs of the original (k,) the reader still has; None for all.
    """
    module = network.get_submodule(reader.name)
    moments, device = SplitMoments(), rows[0][2].device
    for batch, (positions, numbers, wanted) in zip(batches(images, device), rows, strict=True):
        ((_, call),) = calls_of(network, [reader], batch)
        inputs = positions.of_input(module, call.value)
        if outputs is not None:
            wanted = wanted[:, outputs]
        if call.other is not None:
            wanted = wanted - _before_norm(network, reader, positions.of_output(call.other))
        moments.add(inputs, numbers, wanted)
    return moments


def least_squares(moments: SplitMoments, present: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of least squared error, with a ridge that pulls towards the present weight.

    Args:
        moments: of the layer's inputs and of its wanted outputs.
        present: the weight as it is (Co, ...).
        ridge: its strength, as a share of the covariance's mean diagonal.

    Returns:
        The weight (Co, ...) and the bias (Co,), in double precision on the CPU.
    """
    covariance = moments.covariance()
    level = raise_floor_(covariance[None], ridge)
    prior = present.detach().double().cpu().flatten(1)
    products = moments.cross_covariance() + level * prior.T
    solution = torch.cholesky_solve(products, torch.linalg.cholesky(covariance)).T
    bias = moments.target_mean() - solution @ moments.mean()
    return solution.reshape(present.shape), bias


def set_weight(network: nn.Module, reader: Reader, weight: Tensor, bias: Tensor) -> None:
    """Set a reader's weight and bias in place; where a batch norm follows, its mean takes the bias.

    Args:
        network: that has the reader.
        reader: the layer, and the norm behind it if there is one.
        weight: the new weight (Co, ...).
        bias: what is to be added to the outputs (Co,), on the scale before the norm.
    """
    module = network.get_submodule(reader.name)
    assert isinstance(module, nn.Conv2d | nn.Linear)
    like = module.weight
    module.weight = nn.Parameter(weight.to(like).contiguous(), requires_grad=like.requires_grad)
    if reader.norm is None:
        module.bias = nn.Parameter(bias.to(like).contiguous(), requires_grad=like.requires_grad)
    else:
        norm: Any = network.get_submodule(reader.norm)
        own = 0.0 if module.bias is None else module.bias.detach().double().cpu()
        norm.running_mean = (own - bias).to(norm.running_mean)


def start_from(
    network: nn.Module, factors: ChannelFactors, width: int, outputs: Mapping[str, Tensor] | None = None
) -> None:
    """Give the readers of a narrowed network the weights that `factors` has for the width, in place.

    Args:
        network: already narrowed to the width.
        factors: of the group.
        width: units that the group keeps.
        outputs: which outputs of the readers are left, as `kept_outputs` gives them; None for all.
    """
    kept, refits = factors.kept(width), factors.refit(width)
    for reader in factors.group.readers:
        found = refits[reader.name]
        module: Any = network.get_submodule(reader.name)
        index = channels_of(kept, factors.max_rank, found.weight.shape[1])
        rows = (outputs or {}).get(reader.name, torch.arange(len(found.weight)))
        bias = found.bias[rows] if module.bias is None else found.bias[rows] + module.bias.detach().double().cpu()
        if reader.norm is not None:
            bias = bias - running_mean(network, reader.norm).double().cpu()
        set_weight(network, reader, found.weight[rows][:, index], bias)


def calls_of(network: nn.Module, readers: Sequence[Reader], batch: Tensor) -> list[tuple[Reader, Call]]:
    """Inputs and outputs of the readers when the network runs on a batch; the pass ends after the last of them.

    Args:
        network: that holds the readers.
        readers: in the order of use.
        batch: inputs (N, ...), on the network's device.
    """
    calls: dict[int, Call] = {}
    last = {reader.addition: number for number, reader in enumerate(readers) if reader.addition is not None}

    def finish() -> None:
        waiting = any(call.other is None and readers[i].addition is not None for i, call in calls.items())
        if len(calls) == len(readers) and not waiting:
            raise Captured

    def keep(number: int, value: Tensor, output: Tensor) -> None:
        calls[number] = Call(value.clone(), output.clone())  # the next modules may change them in place
        finish()

    def add(count: int, operands: Sequence[Tensor]) -> None:
        if (number := last.get(count)) is not None:
            calls[number].other = operands[0 if readers[number].adds_right else 1].clone()
            finish()

    modules = [network.get_submodule(reader.name) for reader in readers]
    with torch.inference_mode(), suppress(Captured), watching(modules, keep), _Additions(add):
        network(batch)
    return [(readers[number], calls[number]) for number in sorted(calls)]


def running_mean(network: nn.Module, name: str) -> Tensor:
    """The running mean (C,) of a batch norm."""
    mean = network.get_submodule(name).running_mean
    assert isinstance(mean, Tensor)
    return mean


def _before_norm(network: nn.Module, reader: Reader, values: Tensor) -> Tensor:
    """Values (rows, Co) behind the batch norm as what they are before it, without its mean and bias."""
    if reader.norm is None:
        return values
    norm: Any = network.get_submodule(reader.norm)
    deviation = (norm.running_var + norm.eps).sqrt()
    scale = deviation.new_ones(()) if norm.weight is None else norm.weight
    return torch.where(scale.abs() > MIN_SCALE * scale.abs().max(), values * deviation / scale, 0.0)


class _Additions(TorchFunctionMode):
    """Calls `on_addition(number, operands)` before every addition of tensors, numbered as in tracing."""

    def __init__(self, on_addition: Callable[[int, Sequence[Any]], None]) -> None:
        super().__init__()
        self._on_addition = on_addition
        self._count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if plain_name(func) == "add" and any(True for _ in tensors_in([list(args), kwargs or {}])):
            self._on_addition(self._count, in_order(args, kwargs))
            self._count += 1
        return func(*args, **(kwargs or {}))
