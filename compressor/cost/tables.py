"""Cost of a layer at every rank, the R of the objective (Eq. 3): parameters, bytes, multiply-accumulates or time.

The first three are exact. Milliseconds are measured for the layer and for its factors at a few ranks, each alone, and
interpolated linearly between these ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from compressor.arrays import FLOAT_BYTES
from compressor.cost.records import Cost
from compressor.factorization.base import Factors
from compressor.factorization.layers.kinds import KINDS
from compressor.factorization.registry import METHODS
from compressor.network.hooks import watching
from compressor.network.layers import FoundLayer
from compressor.network.macs import count_macs

MEASURED_RANKS = 5

Clock = Callable[[str, Sequence[nn.Module], Tensor], Sequence[float]]
"""From a key of the layer, the modules to time and their input (N, ...) to milliseconds of each module."""


def cost_tables(
    cost: Cost,
    model: nn.Module,
    layers: Sequence[FoundLayer],
    factors: Mapping[str, Factors],
    example: Tensor,
    clock: Clock,
    on_step: Callable[[int], None] = lambda count: None,
) -> list[list[float]]:
    """The costs of every layer at ranks 1, 2, ..., and last that of the layer as it is (dense_rank,).

    Args:
        cost: the kind of cost.
        model: the network that holds the layers.
        layers: the layers.
        factors: their factors, by the layer's name.
        example: inputs (N, ...) of the network; times are those of the whole batch.
        clock: measures times, for the cost "latency" only.
        on_step: called with the number of layers done.
    """
    if cost == "params":
        return [[float(count) for count in layer.params_by_rank()] for layer in layers]
    if cost == "bytes":
        return [_bytes_by_rank(layer, factors[layer.name]) for layer in layers]
    inputs = _inputs_of(model, layers, example)
    tables = []
    for number, layer in enumerate(layers):
        on_step(number)
        table = _macs_by_rank if cost == "macs" else _clocked(clock)
        tables.append(table(layer, factors[layer.name], inputs[layer.name]))
    return tables


def saves_nothing(table: Sequence[float]) -> bool:
    """Whether no rank of the layer with this cost table costs less than the layer itself."""
    return min(table[:-1]) >= table[-1]


def _inputs_of(model: nn.Module, layers: Sequence[FoundLayer], example: Tensor) -> dict[str, Tensor]:
    """The input of each layer on its first call, by the layer's name."""
    seen: dict[str, Tensor] = {}

    def keep(number: int, value: Tensor, _output: Tensor) -> None:
        seen.setdefault(layers[number].name, value.detach().clone())

    with torch.no_grad(), watching([model.get_submodule(layer.name) for layer in layers], keep):
        model(example)
    return seen


def _bytes_by_rank(layer: FoundLayer, factors: Factors) -> list[float]:
    """Bytes of all tensors; those that are no weights of the factors are the same at every rank."""
    beside_weights = _stored_bytes(factors.build(1)) - FLOAT_BYTES * layer.params_by_rank()[0]
    return [
        *(float(FLOAT_BYTES * count + beside_weights) for count in layer.params_by_rank()[:-1]),
        float(_stored_bytes(layer.module)),
    ]


def _stored_bytes(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())


def _macs_by_rank(layer: FoundLayer, factors: Factors, value: Tensor) -> list[float]:
    """Parameters of each factor times the positions where it is applied, counted at rank 1."""
    assert layer.method is not None
    module = factors.build(1)
    dense_macs, _ = count_macs(layer.module, value)
    _, macs = count_macs(module, value)
    # One sample of a layer's input need not be one image: attention's windows lie along the batch dimension, too.
    scale = layer.macs / dense_macs
    weights = {name: part.weight for name, part in module.named_modules() if isinstance(part, KINDS)}
    positions = np.array([scale * macs.get(name, 0) / prod(weight.shape) for name, weight in weights.items()])
    method, shape, groups = METHODS[layer.method], layer.shape, layer.num_groups
    counts = np.array([method.factor_params(shape, groups, rank) for rank in range(1, layer.dense_rank)])
    return [*(counts @ positions).tolist(), float(layer.macs)]


def _clocked(clock: Clock) -> Callable[[FoundLayer, Factors, Tensor], list[float]]:
    """Measured milliseconds by rank, interpolated between `MEASURED_RANKS` ranks."""

    def table(layer: FoundLayer, factors: Factors, value: Tensor) -> list[float]:
        ranks = np.unique(np.geomspace(1, layer.dense_rank - 1, MEASURED_RANKS).round().astype(int))
        key = f"{layer.method} {layer.module} {ranks.tolist()}"
        dense, *factorized = clock(key, [layer.module, *(factors.build(int(rank)) for rank in ranks)], value)
        return [*np.interp(np.arange(1, layer.dense_rank), ranks, factorized).tolist(), dense]

    return table
