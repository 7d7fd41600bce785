"""What a layer costs at every rank, which is the R of the objective (Eq. 3): numbers, bytes, operations or time.

Parameters, bytes and multiply-accumulates are exact. Milliseconds are measured: the layer and its factors at a few
ranks, each alone, with straight lines between the ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from compressor.cost.records import Cost
from compressor.factorization.registry import METHODS, Factors
from compressor.network.hooks import watching
from compressor.network.layers import FoundLayer
from compressor.network.macs import count_macs

MEASURED_RANKS = 5
FLOAT_BYTES = 4

# A key that tells layers apart, the modules to time, and their input in; milliseconds of each module out.
Clock = Callable[[str, Sequence[nn.Module], Tensor], Sequence[float]]


def cost_tables(
    cost: Cost,
    model: nn.Module,
    layers: Sequence[FoundLayer],
    factors: Mapping[str, Factors],
    example: Tensor,
    clock: Clock,
    on_step: Callable[[int], None] = lambda count: None,
) -> list[list[float]]:
    """For every layer its costs at ranks 1, 2, ..., and last that of the layer as it is (dense_rank,).

    Args:
        cost: what counts.
        model: the network that the layers are in.
        factors: of the layers, by name.
        example: inputs (N, ...) of the network; times are those of the whole batch.
        clock: measures times, for the cost "latency" alone.
        on_step: told layers done.
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
    """Whether no rank of a layer costs less than the layer."""
    return min(table[:-1]) >= table[-1]


def _inputs_of(model: nn.Module, layers: Sequence[FoundLayer], example: Tensor) -> dict[str, Tensor]:
    """What each layer receives on its first call."""
    seen: dict[str, Tensor] = {}

    def see(number: int, value: Tensor, _output: Tensor) -> None:
        seen.setdefault(layers[number].name, value.detach().clone())

    with torch.no_grad(), watching([model.get_submodule(layer.name) for layer in layers], see):
        model(example)
    return seen


def _bytes_by_rank(layer: FoundLayer, factors: Factors) -> list[float]:
    """Bytes of all tensors; what is not a weight of the factors is the same at every rank."""
    beside_weights = _stored_bytes(factors.build(1)) - FLOAT_BYTES * layer.params_by_rank()[0]
    return [
        *(float(FLOAT_BYTES * count + beside_weights) for count in layer.params_by_rank()[:-1]),
        float(_stored_bytes(layer.module)),
    ]


def _stored_bytes(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())


def _macs_by_rank(layer: FoundLayer, factors: Factors, value: Tensor) -> list[float]:
    """Parameters of each factor times the places where it is applied, which rank 1 shows."""
    assert layer.method is not None
    module = factors.build(1)
    dense_macs, _ = count_macs(layer.module, value)
    _, macs = count_macs(module, value)
    # One sample of a layer's input need not be one image: windows of attention lie along that dimension, too.
    scale = layer.macs / dense_macs
    weights = {name: part.weight for name, part in module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    positions = np.array([scale * macs.get(name, 0) / prod(weight.shape) for name, weight in weights.items()])
    method, shape, groups = METHODS[layer.method], layer.shape, layer.num_groups
    counts = np.array([method.factor_params(shape, groups, rank) for rank in range(1, layer.dense_rank)])
    return [*(counts @ positions).tolist(), float(layer.macs)]


def _clocked(clock: Clock) -> Callable[[FoundLayer, Factors, Tensor], list[float]]:
    def table(layer: FoundLayer, factors: Factors, value: Tensor) -> list[float]:
        ranks = np.unique(np.geomspace(1, layer.dense_rank - 1, MEASURED_RANKS).round().astype(int))
        key = f"{layer.method} {layer.module} {ranks.tolist()}"
        dense, *factorized = clock(key, [layer.module, *(factors.build(int(rank)) for rank in ranks)], value)
        return [*np.interp(np.arange(1, layer.dense_rank), ranks, factorized).tolist(), dense]

    return table
