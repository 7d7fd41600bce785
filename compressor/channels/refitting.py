"""Readers refitted in the compressed network, front to back, by least squares.

In the compressed network a reader's inputs differ from the original's by the errors of all layers before it. It is
refitted from the inputs that it does receive to the outputs of the original (asymmetric reconstruction; Zhang et al.
2016). Where its outputs are added to something computed before, as in a residual block, it makes up for the errors of
that as well (He et al. 2017): the sum is to be the original's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.channels.factors import ChannelFactors
from compressor.channels.groups import ChannelGroup, Reader
from compressor.channels.narrowing import channels_of
from compressor.channels.passes import Passes
from compressor.channels.statistics import MAX_ROWS, SplitMoments, images_of
from compressor.factorization.least_squares import solve_in_place
from compressor.factorization.moments import raise_floor_
from compressor.network.calibration.moments import rows_of_batch
from compressor.network.hooks import (
    OutputPositions,
    count_calls,
    position_generators,
    sample_positions,
)

MIN_SCALE = 1e-3  # of a batch norm's channel, below which it does not pass on what is added


@dataclass(frozen=True)
class NormalEquations:
    """Of least squares from a layer's inputs to what is wanted of it, as precise as a ridge of a hundredth needs.

    Attributes:
        covariance: of the inputs (n, n), float32.
        cross: covariance of inputs and targets (n, m), float32.
        mean: of the inputs (n,), float64.
        target_mean: of the targets (m,), float64.
    """

    covariance: Tensor
    cross: Tensor
    mean: Tensor
    target_mean: Tensor


Rows = list[tuple[OutputPositions, Tensor, Tensor]]
"""Per batch of images: positions of a layer's output, the image of each, and what is wanted there (rows, Co)."""


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


def wanted_rows(original: nn.Module, readers: Sequence[Reader], passes: Passes, seed: int) -> dict[str, Rows]:
    """What the readers' outputs are to be at random positions: the original's, plus what it adds them to.

    Where a batch norm follows they are less its mean, and divided by its scale.

    Args:
        original: the network with all channels, on the device.
        readers: whose outputs are wanted.
        passes: of the original over N images; each batch gives its share of at most MAX_ROWS positions.
        seed: of the positions.

    Returns:
        By reader, batch after batch, the positions and the wanted outputs there (rows, Co).
    """
    rows: dict[str, Rows] = {reader.name: [] for reader in readers}
    names = [reader.name for reader in readers]
    generators = dict(zip(names, position_generators(seed, len(names)), strict=True))
    for size, calls in passes.calls(original, readers):
        count = rows_of_batch(size, passes.num_images, MAX_ROWS)
        for reader, call in calls:
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


def equations_of(
    network: nn.Module, reader: Reader, rows: Rows, passes: Passes, outputs: Tensor | None = None
) -> NormalEquations:
    """The normal equations of the inputs that a reader receives and of what is wanted of it.

    Args:
        network: the compressed network.
        reader: the layer.
        rows: of `wanted_rows` on the same images.
        passes: of the compressed network over these images.
        outputs: which outputs of the original (k,) the reader still has; None for all.
    """
    module, moments = network.get_submodule(reader.name), SplitMoments()
    for (_, calls), (positions, numbers, wanted) in zip(passes.calls(network, [reader]), rows, strict=True):
        ((_, call),) = calls
        inputs = positions.of_input(module, call.value)
        if outputs is not None:
            wanted = wanted[:, outputs]
        if call.other is not None:
            wanted = wanted - _before_norm(network, reader, positions.of_output(call.other))
        moments.add(inputs, numbers, wanted)
    return NormalEquations(
        moments.covariance(), moments.cross_covariance().float(), moments.mean(), moments.target_mean()
    )


def least_squares(equations: NormalEquations, present: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of least squared error, with a ridge that pulls towards the present weight.

    Args:
        equations: of the layer.
        present: the weight as it is (Co, ...).
        ridge: its strength, as a share of the covariance's mean diagonal.

    Returns:
        The weight (Co, ...) and the bias (Co,), in double precision on the CPU.

    Raises:
        LinAlgError: SciPy's; the covariance is not positive definite.
    """
    covariance = equations.covariance.clone()
    level = raise_floor_(covariance[None], ridge)
    prior = present.detach().float().cpu().flatten(1)
    solution = solve_in_place(covariance, equations.cross + level * prior.T).double().T
    bias = equations.target_mean - solution @ equations.mean
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
