"""How a plan's outputs move with the rank of each of its layers, to first order.

One pass forward and p backward give the slopes of p combinations of the outputs with respect to every layer's own
outputs; what another rank would make of these needs that layer alone, and where its factors are nested, all ranks come
at once. With more outputs than directions the combinations are random and at right angles to one another, under which
squared lengths are kept on average (Johnson and Lindenstrauss 1984): half as many as there are outputs have little more
than half of the variance that they would have, were each drawn by itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d

from compressor.arrays import Ranks
from compressor.factorization.base import Factors, NestedFactors
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.linear_model import LinearModel
from compressor.network.hooks import watching
from compressor.network.layers import FoundLayer, factorized_ranks
from compressor.network.surgery import build_candidate
from compressor.streams import Stream

BATCH_SIZE = 25
MAX_NUMBERS = 5 * 10**8  # every layer's inputs, outputs and slopes are held at once: 2 GB
BACKWARD = (
    1.5  # in passes forward; with it the count agrees with the clock (benchmarks/studies/search/evaluation_cost.py)
)

Calls = list[tuple[Tensor, Tensor]]  # inputs and outputs (b, ...) of a layer, one pair for each time it is called


class Linearizer:
    """The linear model around any plan of one network.

    Args:
        norm: the function norm, on the images that indices point into.
        layers: the layers whose ranks a plan gives, in order, with their factors.
    """

    def __init__(
        self, norm: FunctionNorm, original: nn.Module, layers: Sequence[FoundLayer], factors: Mapping[str, Factors]
    ) -> None:
        self._norm = norm
        self._original = original
        self._layers = list(layers)
        self._factors = dict(factors)
        self._names = [layer.name for layer in layers]

    def __call__(
        self, ranks: Ranks, others: Sequence[Sequence[int]], indices: np.ndarray, directions: int
    ) -> LinearModel:
        """The model around the plan `ranks` (d,) with `others` as each layer's other ranks, on the images (m,)."""
        candidate = build_candidate(self._original, self._factors, factorized_ranks(self._layers, ranks)).eval()
        rng = np.random.default_rng([int(Stream.DIRECTIONS), *indices.tolist()])
        along = _directions(len(indices), self._norm.targets.shape[1], directions, rng)
        images = torch.from_numpy(indices)
        size = self._batch_size(images[:1], directions)
        moves = [self._move(layer, row) for layer, row in zip(self._layers, others, strict=True)]
        batches = zip(images.split(size), along.split(size), strict=True)
        parts = [self._linearize(candidate, moves, *batch) for batch in batches]
        residuals = np.concatenate([part[0] for part in parts])
        changes = [
            {rank: np.concatenate([part[1][layer][rank] for part in parts]) for rank in ranks_of_layer}
            for layer, ranks_of_layer in enumerate(others)
        ]
        each = 1 + BACKWARD * residuals.shape[1] + float(np.mean([len(row) for row in others]))
        return LinearModel(residuals, changes, round(each * len(indices)))

    def _move(self, layer: FoundLayer, ranks: Sequence[int]) -> "_Move":
        factors, kept = self._factors[layer.name], [rank for rank in ranks if rank != layer.dense_rank]
        nested = factors.nested(max(kept)) if kept else None
        alone = {rank: factors.build(rank) for rank in kept if nested is None}
        if len(kept) < len(ranks):
            alone[layer.dense_rank] = layer.module
        return _Move(alone, kept if nested else [], nested)

    def _batch_size(self, first: Tensor, directions: int) -> int:
        calls, _ = _forward(self._original, self._names, self._norm.inputs_and_targets(first)[0])
        numbers = sum(
            inputs.numel() + (2 + directions) * outputs.numel() for layer in calls for inputs, outputs in layer
        )
        return max(1, min(BATCH_SIZE, MAX_NUMBERS // numbers))

    def _linearize(
        self, candidate: nn.Module, moves: Sequence["_Move"], indices: Tensor, directions: Tensor
    ) -> tuple[np.ndarray, list[dict[int, np.ndarray]]]:
        inputs, targets = self._norm.inputs_and_targets(indices)
        calls, outputs = _forward(candidate, self._names, inputs)
        directions = directions.to(outputs.device)
        values = torch.einsum("bk,bkp->bp", outputs, directions)
        flat = [output for layer in calls for _, output in layer]
        slopes = iter(_slopes(values, flat))
        with torch.no_grad():
            residuals = torch.einsum("bk,bkp->bp", outputs - targets, directions)
            changes = [_changes(move, pairs, slopes, values) for move, pairs in zip(moves, calls, strict=True)]
        return _to_numpy(residuals), [{rank: _to_numpy(moved) for rank, moved in row.items()} for row in changes]


def _forward(candidate: nn.Module, names: Sequence[str], inputs: Tensor) -> tuple[list[Calls], Tensor]:
    """Every named layer's inputs and outputs as often as it is called, and the network's outputs (b, k)."""
    calls: dict[str, Calls] = {name: [] for name in names}

    def keep(index: int, given: Tensor, found: Tensor) -> Tensor:
        calls[names[index]].append((given.detach().clone(), found))
        return found.clone()  # what follows may work in place

    with watching([candidate.get_submodule(name) for name in names], keep), torch.enable_grad():
        outputs = candidate(inputs.clone().requires_grad_())
    return list(calls.values()), outputs.reshape(len(inputs), -1).float()


def _slopes(values: Tensor, outputs: Sequence[Tensor]) -> Iterator[Tensor]:
    """Of values (b, p) with respect to every layer's outputs (p, b, ...), one after the other; zero where they do not
    depend on them, or where the network lets no slope through."""
    count = values.shape[1]
    if not values.requires_grad:
        return (output.new_zeros(count, *output.shape) for output in outputs)
    sums = values.sum(0)
    rows = [torch.autograd.grad(sums[p], outputs, retain_graph=True, allow_unused=True) for p in range(count)]
    return (
        torch.stack([torch.zeros_like(output) if slope is None else slope for slope in slopes])
        for output, *slopes in zip(outputs, *rows, strict=True)
    )


@dataclass(frozen=True)
class _Move:
    """A layer's other ranks: modules for those that have to be computed alone, and for the others what has all."""

    alone: Mapping[int, nn.Module]
    together: Sequence[int]
    nested: NestedFactors | None


def _changes(move: _Move, calls: Calls, slopes: Iterator[Tensor], like: Tensor) -> dict[int, Tensor]:
    """What the layer at its other ranks adds to the values `like` (b, p): slopes, the next for every call, times what
    its outputs move by."""
    totals = {rank: torch.zeros_like(like) for rank in [*move.alone, *move.together]}
    for inputs, outputs in calls:
        slope = next(slopes)
        found = {rank: _along(slope, module(inputs)) for rank, module in move.alone.items()}
        if move.nested is not None:
            found |= _at_all_ranks(move.nested, move.together, inputs, slope)
        here = _along(slope, outputs)
        for rank, there in found.items():
            totals[rank] += there - here
    return totals


def _along(slope: Tensor, outputs: Tensor) -> Tensor:
    """Products (b, p) of slopes (p, b, ...) with outputs (b, ...)."""
    return (slope.flatten(2) * outputs.flatten(1)).sum(-1).T


def _at_all_ranks(nested: NestedFactors, ranks: Sequence[int], inputs: Tensor, slope: Tensor) -> dict[int, Tensor]:
    """Products (b, p) of slopes (p, b, ...) with the factors' outputs at every one of `ranks`."""
    groups, lead = len(nested.outputs), slope.shape[:2]
    features, slope = nested.features(inputs), slope.flatten(0, 1)
    features, slope = (_by_place(values, nested.channels_last) for values in (features, slope))
    # A convolution, because it is quick for few places and for many; products of matrices are for one of them.
    along = conv1d(slope, nested.outputs.flatten(0, 1)[..., None], groups=groups).unflatten(0, lead)
    by_feature = torch.einsum("pbsn,bsn->pbs", along, features).unflatten(-1, (groups, -1)).sum(-2)
    sums = by_feature.cumsum(-1)
    if nested.bias is not None:
        sums += (slope.sum(-1) @ nested.bias).unflatten(0, lead)[..., None]
    return {rank: sums[..., rank * nested.width - 1].T for rank in ranks}


def _by_place(values: Tensor, channels_last: bool) -> Tensor:
    """Inputs, features or outputs (b, ...) as (b, channels, places)."""
    return values.reshape(len(values), -1, values.shape[-1]).mT if channels_last else values.flatten(2)


def _to_numpy(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


def _directions(count: int, num_outputs: int, most: int, rng: np.random.Generator) -> Tensor:
    """Combinations of outputs (count, num_outputs, p): each output alone where they are few, else random ones at right
    angles, as long as makes up for those left out."""
    if num_outputs <= most:
        return torch.eye(num_outputs).expand(count, -1, -1)
    bases, _ = np.linalg.qr(rng.standard_normal((count, num_outputs, most)))
    return torch.from_numpy((bases * np.sqrt(num_outputs / most)).astype(np.float32))
