"""How a plan's outputs move with the rank of each of its layers, to first order.

One pass forward and p backward give the slopes of p combinations of the outputs with respect to every layer's own
outputs; what another rank would make of these needs that layer alone. With more outputs than directions the
combinations are random signs, under which squared lengths are kept on average (Achlioptas 2003).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from compressor.factors import Factors
from compressor.fidelity import FunctionNorm
from compressor.layers import FoundLayer, factorised_ranks
from compressor.network import build_candidate
from compressor.search.linear_model import LinearModel
from compressor.search.space import Ranks

BATCH_SIZE = 10
MOST_NUMBERS = 5 * 10**8  # every layer's inputs, outputs and slopes are held at once: 2 GB
DIRECTIONS_STREAM = 8
BACKWARD = 1.5  # in passes forward; with it the count agrees with the clock (ResNet-18 at 64 px, one thread: 23 to 28)

Calls = list[tuple[Tensor, Tensor]]  # inputs and outputs (b, ...) of a layer, one pair for each time it is called


class Lineariser:
    """The linear model around any plan of one network.

    Args:
        norm: the function norm, on the images that indices point into.
        layers: the layers whose ranks a plan gives, in order, with their factors.
    """

    def __init__(
        self, norm: FunctionNorm, teacher: nn.Module, layers: Sequence[FoundLayer], factors: Mapping[str, Factors]
    ) -> None:
        self._norm = norm
        self._teacher = teacher
        self._layers = list(layers)
        self._factors = dict(factors)
        self._names = [layer.name for layer in layers]

    def __call__(
        self, ranks: Ranks, others: Sequence[Sequence[int]], indices: np.ndarray, directions: int
    ) -> LinearModel:
        """The model around the plan `ranks` (d,) with `others` as each layer's other ranks, on the images (m,)."""
        candidate = build_candidate(self._teacher, self._factors, factorised_ranks(self._layers, ranks)).eval()
        rng = np.random.default_rng([DIRECTIONS_STREAM, *indices.tolist()])
        along = _directions(len(indices), self._norm.targets.shape[1], directions, rng)
        images = torch.from_numpy(indices)
        size = self._batch_size(images[:1], directions)
        batches = zip(images.split(size), along.split(size), strict=True)
        parts = [self._linearise(candidate, others, *batch) for batch in batches]
        residuals = np.concatenate([part[0] for part in parts])
        changes = [
            {rank: np.concatenate([part[1][layer][rank] for part in parts]) for rank in ranks_of_layer}
            for layer, ranks_of_layer in enumerate(others)
        ]
        each = 1 + BACKWARD * residuals.shape[1] + float(np.mean([len(row) for row in others]))
        return LinearModel(residuals, changes, round(each * len(indices)))

    def _batch_size(self, first: Tensor, directions: int) -> int:
        calls, _ = _forward(self._teacher, self._names, self._norm.inputs_and_targets(first)[0])
        numbers = sum(
            inputs.numel() + (2 + directions) * outputs.numel() for layer in calls for inputs, outputs in layer
        )
        return max(1, min(BATCH_SIZE, MOST_NUMBERS // numbers))

    def _linearise(
        self, candidate: nn.Module, others: Sequence[Sequence[int]], indices: Tensor, directions: Tensor
    ) -> tuple[np.ndarray, list[dict[int, np.ndarray]]]:
        inputs, targets = self._norm.inputs_and_targets(indices)
        calls, outputs = _forward(candidate, self._names, inputs)
        directions = directions.to(outputs.device)
        values = torch.einsum("bk,bkp->bp", outputs, directions)
        flat = [output for layer in calls for _, output in layer]
        slopes = [_slopes(values[:, p].sum(), flat) for p in range(values.shape[1])]
        with torch.no_grad():
            residuals = torch.einsum("bk,bkp->bp", outputs - targets, directions)
            changes, place = [], 0
            for layer, pairs, ranks in zip(self._layers, calls, others, strict=True):
                of_layer = [[row[place + number] for row in slopes] for number in range(len(pairs))]
                place += len(pairs)
                changes.append({rank: self._change(layer, rank, pairs, of_layer, values) for rank in ranks})
        return residuals.double().cpu().numpy(), changes

    def _change(
        self, layer: FoundLayer, rank: int, calls: Calls, slopes: list[list[Tensor | None]], like: Tensor
    ) -> np.ndarray:
        """What the layer at another rank adds to the outputs (b, p)."""
        dense = rank == layer.dense_rank
        module = layer.module if dense else self._factors[layer.name].build(rank)
        total = torch.zeros_like(like)
        for (inputs, outputs), rows in zip(calls, slopes, strict=True):
            moved = (module(inputs) - outputs).reshape(len(like), -1)
            for p, slope in enumerate(rows):
                if slope is not None:
                    total[:, p] += (slope.reshape(len(like), -1) * moved).sum(1)
        return total.double().cpu().numpy()


def _forward(candidate: nn.Module, names: Sequence[str], inputs: Tensor) -> tuple[list[Calls], Tensor]:
    """Every named layer's inputs and outputs as often as it is called, and the network's outputs (b, k)."""
    calls: dict[str, Calls] = {name: [] for name in names}

    def keep(name: str, given: Tensor, found: Tensor) -> Tensor:
        calls[name].append((given.detach().clone(), found))
        return found.clone()  # what follows may work in place

    handles = [
        candidate.get_submodule(name).register_forward_hook(
            lambda _, given, found, name=name: keep(name, given[0], found)
        )
        for name in names
    ]
    try:
        with torch.enable_grad():
            outputs = candidate(inputs.clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    return list(calls.values()), outputs.reshape(len(inputs), -1).float()


def _slopes(value: Tensor, outputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Of a sum over images with respect to every layer's outputs; None where it does not depend on them, or where the
    network lets no slope through."""
    if not value.requires_grad:
        return [None] * len(outputs)
    return torch.autograd.grad(value, outputs, retain_graph=True, allow_unused=True)


def _directions(count: int, num_outputs: int, most: int, rng: np.random.Generator) -> Tensor:
    """Combinations of outputs (count, num_outputs, p): each output alone where they are few, else random signs."""
    if num_outputs <= most:
        return torch.eye(num_outputs).expand(count, -1, -1)
    signs = rng.choice([-1.0, 1.0], size=(count, num_outputs, most)) / np.sqrt(most)
    return torch.from_numpy(signs.astype(np.float32))
