"""The first-order change of a plan's outputs with the rank of each layer.

One forward and p backward passes give the gradients of p combinations of the outputs with respect to the outputs of
every layer. The change of a layer's outputs at another rank needs that layer alone, and nested factors give it for all
ranks at once. With more outputs than directions the combinations are random and orthogonal, so that squared lengths are
kept on average (Johnson and Lindenstrauss 1984): with half as many directions as outputs, their variance is little more
than half of that of independent directions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from compressor.arrays import Ranks
from compressor.factorization.base import AllRanks, JointFactors, LayerByRank
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.linear_model import LinearModel
from compressor.network.hooks import differentiable, fitting_with_gradients, watching
from compressor.network.layers import Ranked, factorized_ranks
from compressor.network.surgery import build_candidate, with_layer
from compressor.process.memory import at_once, release_memory
from compressor.streams import Stream, generator

BATCH_SIZE = 25
MAX_GRADIENTS = 3 * 10**7  # by layers' outputs, which are held at once: 120 MB; twice as many in 16 bits
# Substitutes of a layer are compared on as many images as keep what is held of it below this, and on four at least.
MAX_TRIED, MIN_IMAGES = 5 * 10**6, 4
# What a backward pass costs, in forward passes; the count then agrees with measured times, see
# benchmarks/studies/search/evaluation_cost.py.
BACKWARD_PASSES = 1.5

CHANNELS_LAST = torch.channels_last
Axes = Mapping[str, int | None]
Calls = list[tuple[Tensor, Tensor]]  # inputs and outputs (b, ...) of a layer, one pair per call


class Linearizer:
    """The linear model around any plan of one network.

    Args:
        norm: function norm on the images that indices refer to.
        original: the original network.
        layers: what a plan gives ranks for, in its order.
        factors: their factors, by name.
    """

    def __init__(
        self,
        norm: FunctionNorm,
        original: nn.Module,
        layers: Sequence[Ranked],
        factors: Mapping[str, LayerByRank | JointFactors],
    ) -> None:
        self._norm = norm
        self._original = original
        self._layers = list(layers)
        self._factors = dict(factors)
        self._axes: Axes = {}

    def __call__(
        self, ranks: Ranks, others: Sequence[Sequence[int]], indices: np.ndarray, directions: int
    ) -> LinearModel:
        """The model around the plan `ranks` (d,), see `compressor.fidelity.linear_model.Linearize`."""
        candidate = build_candidate(self._original, self._factors, factorized_ranks(self._layers, ranks)).eval()
        along = _directions(indices, self._norm.targets.shape[1], directions)
        images = torch.from_numpy(indices)
        moves = [self._moves(layer, row) for layer, row in zip(self._layers, others, strict=True)]
        if not self._axes:
            self._axes = _image_axes(self._original, [name for of_layer in moves for name in of_layer], self._norm)
        size = fitting_with_gradients(candidate, self._norm.inputs_and_targets(images[:1])[0], BATCH_SIZE)
        size = 1 if None in self._axes.values() else size
        batches = zip(images.split(size), along.split(size), strict=True)
        parts = [self._linearize(candidate, moves, *batch) for batch in batches]
        residuals = np.concatenate([part[0] for part in parts])
        changes = [
            {rank: np.concatenate([part[1][layer][rank] for part in parts]) for rank in ranks_of_layer}
            for layer, ranks_of_layer in enumerate(others)
        ]
        release_memory()
        each = 1 + BACKWARD_PASSES * residuals.shape[1] + float(np.mean([len(row) for row in others]))
        return LinearModel(residuals, changes, round(each * len(indices)))

    def _moves(self, layer: Ranked, ranks: Sequence[int]) -> "dict[str, _Move]":
        """What other ranks make of the layers that they replace, by name."""
        factors, kept = self._factors[layer.name], [rank for rank in ranks if rank != layer.dense_rank]
        alone: dict[int, nn.Module] = {}
        nested: Mapping[str, AllRanks | None] = {layer.name: None}
        if isinstance(factors, JointFactors):
            nested = {name: factors.nested(name, max(kept)) if kept else None for name in factors.layers}
        elif kept:
            nested = {layer.name: factors.nested(max(kept))}
            alone = {rank: factors.build(rank) for rank in kept if nested[layer.name] is None}
        moves = {}
        for name, found in nested.items():
            dense = {layer.dense_rank: self._original.get_submodule(name)} if len(kept) < len(ranks) else {}
            moves[name] = _Move(alone | dense, kept if found else [], found)
        return moves

    def _linearize(
        self, candidate: nn.Module, moves: Sequence[Mapping[str, "_Move"]], indices: Tensor, directions: Tensor
    ) -> tuple[np.ndarray, list[dict[int, np.ndarray]]]:
        inputs, targets = self._norm.inputs_and_targets(indices)
        names = [name for of_layer in moves for name in of_layer]
        calls, outputs = _forward(candidate, names, self._axes, inputs)
        directions = directions.to(outputs.device)
        values = torch.einsum("bk,bkp->bp", outputs, directions)
        flat = [output for layer in calls for _, output in layer]
        room, size = at_once(MAX_GRADIENTS), sum(output.numel() for output in flat)
        # Layers at other ranks are computed anew for every part of the directions, and cost more than the gradients.
        dtype = None if values.shape[1] * size <= room else torch.bfloat16
        count = max(1, room * (1 if dtype is None else 2) // size)
        parts: list[list[dict[int, np.ndarray]]] = []
        for begin in range(0, values.shape[1], count):
            some = values[:, begin : begin + count]
            slopes = _slopes(some, flat, dtype, last=begin + count >= values.shape[1])
            pairs = iter(calls)
            with torch.no_grad():
                rows = [
                    _sum([_changes(move, next(pairs), slopes, some) for move in of_layer.values()])
                    for of_layer in moves
                ]
            parts.append([{rank: _to_numpy(moved) for rank, moved in row.items()} for row in rows])
        changes = [
            {rank: np.concatenate([row[rank] for row in of_layer], 1) for rank in of_layer[0]}
            for of_layer in zip(*parts, strict=True)
        ]
        with torch.no_grad():
            residuals = torch.einsum("bk,bkp->bp", outputs - targets, directions)
        return _to_numpy(residuals), changes


@dataclass(frozen=True)
class _Held:
    """What is kept of one call of a layer: the images (b,), its inputs (n, ...), the gradients (p, n, ...) of the
    directions by its outputs, rounded to 16 bits, and their inner products (b, p) with the outputs; n is b, or a
    multiple of it."""

    images: Tensor
    inputs: Tensor
    slope: Tensor
    here: Tensor


class SingleLayerLosses:
    """The function norm with one layer alone replaced, to first order around the original; any number of substitutes.

    Gradients are found for as many layers at once as MAX_GRADIENTS allow: ask for the layers in their order. A large
    layer is tried on fewer images. Gradients take half the memory, so that fewer passes do: substitutes are compared
    by sums over thousands of numbers, which rounding to three digits hardly moves.

    Args:
        norm: the function norm on the images that losses are meant for.
        original: the original network.
        names: of the layers that substitutes will be tried for, in the order in which they will be asked for.
        directions: combinations of the outputs, per image.
    """

    def __init__(self, norm: FunctionNorm, original: nn.Module, names: Sequence[str], directions: int) -> None:
        self._norm = norm
        self._original = original
        self._names = list(names)
        self._images = torch.arange(len(norm.images))
        self._along = _directions(self._images.numpy(), norm.targets.shape[1], directions)
        self._held: dict[str, list[_Held]] = {}
        self._sizes: dict[str, int] = {}
        self._axes: Axes = {}
        self._batch_size = 1

    def __call__(self, name: str, substitute: nn.Module) -> float:
        """L with `substitute` in place of the layer.

        It is measured where the network passes the layer no gradient, or all images have the same outputs of it.
        """
        if not self._sizes:
            self._measure_sizes()
        is_common = self._axes[name] is None
        if name not in self._held and not is_common:
            self._hold(name)
        held, images = self._held.get(name, []), self._images_of(name)
        if not any(bool(call.slope.any()) for call in held):
            network = with_layer(self._original, name, substitute)
            return self._norm.losses(network, images.numpy()).mean
        changes = torch.zeros(len(images), self._along.shape[-1], device=held[0].here.device)
        with torch.no_grad():
            for call in held:
                there = _by_image(_along(call.slope, substitute(call.inputs)), len(call.images))
                changes[call.images] += there - call.here
        return float(changes.double().square().sum(1).mean())

    def _hold(self, name: str) -> None:
        """Find the gradients of this layer, and of those after it as far as there is room."""
        chosen: dict[str, int] = {}
        room = at_once(MAX_GRADIENTS)
        by_image = [following for following in self._names if self._axes[following] is not None]
        for following in by_image[by_image.index(name) :]:
            count = len(self._images_of(following))
            room -= count * self._sizes[following]
            if chosen and room < 0:
                break
            chosen[following] = count
        self._held = {following: [] for following in chosen}
        bounds = sorted({0, *chosen.values()})
        for begin, end in pairwise(bounds):
            names = [following for following, count in chosen.items() if count >= end]
            for indices in self._images[begin:end].split(self._batch_size):
                self._hold_batch(names, indices)

    def _hold_batch(self, names: Sequence[str], indices: Tensor) -> None:
        inputs, _ = self._norm.inputs_and_targets(indices)
        all_calls, outputs = _forward(self._original, names, self._axes, inputs)
        values = torch.einsum("bk,bkp->bp", outputs, self._along[indices].to(outputs.device))
        slopes = _slopes(values, [output for calls in all_calls for _, output in calls], torch.bfloat16, last=True)
        for name, calls in zip(names, all_calls, strict=True):
            for given, output in calls:
                slope = next(slopes)
                here = _by_image(_along(slope, output.detach()), len(indices))
                self._held[name].append(_Held(indices, given, slope, here))

    def _images_of(self, name: str) -> Tensor:
        """The images that substitutes of a layer are tried on."""
        return self._images[: max(MIN_IMAGES, MAX_TRIED // max(1, self._sizes[name]))]

    def _measure_sizes(self) -> None:
        """How many numbers are held for each layer and image, gradients by halves."""
        example, _ = self._norm.inputs_and_targets(self._images[:1])
        self._batch_size = fitting_with_gradients(self._original, example, BATCH_SIZE)
        directions = self._along.shape[-1]
        self._axes = _image_axes(self._original, self._names, self._norm)
        all_calls, _ = _forward(self._original, self._names, self._axes, example)
        for name, calls in zip(self._names, all_calls, strict=True):
            self._sizes[name] = sum(given.numel() + directions * output.numel() // 2 for given, output in calls)


def _image_axes(network: nn.Module, names: Sequence[str], norm: FunctionNorm) -> Axes:
    """The axis of the named layers' outputs that images come along; None where all images have the same outputs.

    For most layers it is the first. Linear layers of transformers that take (tokens, images, features) have another,
    and a perceptron of positions, which sees no image, has none.
    """
    counts = (1, 2) if len(norm.images) == 2 else (2, 3)  # a batch of one may be squeezed
    fewer, more = (_shapes(network, names, norm.inputs_and_targets(torch.arange(count))[0]) for count in counts)
    axes: dict[str, int | None] = {}
    for name in names:
        shapes = list(zip(fewer.get(name, (0,)), more.get(name, (1,)), strict=False))
        axes[name] = next((axis for axis, (few, many) in enumerate(shapes) if few != many), None)
    return axes


def _shapes(network: nn.Module, names: Sequence[str], inputs: Tensor) -> dict[str, Sequence[int]]:
    """Of the outputs of each layer's first call, by name."""
    found: dict[str, Sequence[int]] = {}

    def keep(index: int, _: Tensor, output: Tensor) -> None:
        found.setdefault(names[index], output.shape)

    with watching([network.get_submodule(name) for name in names], keep), torch.no_grad():
        network(inputs.clone())  # it may work in place
    return found


def _forward(candidate: nn.Module, names: Sequence[str], axes: Axes, inputs: Tensor) -> tuple[list[Calls], Tensor]:
    """Inputs and outputs of every call of the named layers, images first, and the network's outputs (b, k)."""
    calls: dict[str, Calls] = {name: [] for name in names}

    def keep(index: int, given: Tensor, found: Tensor) -> Tensor:
        axis = axes[names[index]] or 0
        found = differentiable(found).movedim(axis, 0)
        calls[names[index]].append((given.detach().movedim(axis, 0).clone(), found))
        return found.movedim(0, axis).clone()  # the next layer may work in place

    with watching([candidate.get_submodule(name) for name in names], keep), torch.enable_grad():
        outputs = candidate(inputs.clone())  # it may work in place; the graph begins at the first of the layers
    return list(calls.values()), outputs.reshape(len(inputs), -1).float()


def _slopes(
    values: Tensor, outputs: Sequence[Tensor], dtype: torch.dtype | None = None, *, last: bool
) -> Iterator[Tensor]:
    """Gradients (p, b, ...) of values (b, p) with respect to each of the layers' outputs; zero where there are none.

    They are of the outputs' type, or of `dtype`. After the `last` ones, what the graph holds is given back.
    """
    count = values.shape[1]
    if not values.requires_grad:
        return (output.new_zeros(count, *output.shape, dtype=dtype) for output in outputs)
    sums = values.sum(0)
    found = [_room_for(count, output, dtype or output.dtype) for output in outputs]
    for number in range(count):
        retain = not last or number + 1 < count
        slopes = torch.autograd.grad(sums[number], outputs, retain_graph=retain, allow_unused=True)
        for kept, slope in zip(found, slopes, strict=True):
            kept[number] = 0.0 if slope is None else slope
    return iter(found)


def _room_for(count: int, output: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory of the shape (count, *output.shape), in which channels lie last where they do in `output`."""
    is_last = output.dim() == 4 and not output.is_contiguous() and output.is_contiguous(memory_format=CHANNELS_LAST)
    memory_format = CHANNELS_LAST if is_last else torch.contiguous_format
    shape = (count * len(output), *output.shape[1:])
    room = torch.empty(shape, dtype=dtype, device=output.device, memory_format=memory_format)
    return room.unflatten(0, (count, len(output)))


@dataclass(frozen=True)
class _Move:
    """A layer's other ranks.

    Attributes:
        alone: modules by rank, for ranks that are computed one by one.
        together: ranks that `nested` computes at once.
        nested: what computes them; None where nothing does.
    """

    alone: Mapping[int, nn.Module]
    together: Sequence[int]
    nested: AllRanks | None


def _sum(rows: Sequence[Mapping[int, Tensor]]) -> dict[int, Tensor]:
    """The sum of the layers' changes, by rank."""
    first, *others = rows
    return {rank: sum((row[rank] for row in others), change) for rank, change in first.items()}


def _changes(move: _Move, calls: Calls, slopes: Iterator[Tensor], like: Tensor) -> dict[int, Tensor]:
    """What the layer's other ranks add to the values `like` (b, p), by rank: gradients times changes of its outputs.

    `slopes` gives the gradient of the next call each time.
    """
    totals = {rank: torch.zeros_like(like) for rank in [*move.alone, *move.together]}
    for inputs, outputs in calls:
        slope = next(slopes).to(outputs)
        found = {rank: _along(slope, module(inputs)) for rank, module in move.alone.items()}
        if move.nested is not None:
            products = move.nested.along(inputs, slope)
            found |= {rank: products[..., rank - 1].T for rank in move.together}
        here = _along(slope, outputs)
        for rank, there in found.items():
            totals[rank] += _by_image(there - here, len(like))
    return totals


def _along(slope: Tensor, outputs: Tensor) -> Tensor:
    """Inner products (b, p) of gradients (p, b, ...) with outputs (b, ...)."""
    axes = list(range(1, outputs.dim()))
    return torch.stack([(of_direction * outputs).sum(axes) for of_direction in slope], 1)


def _by_image(rows: Tensor, count: int) -> Tensor:
    """Sums (count, p) over each image's part of `rows` (count m, p): a layer may see several boxes of an image, say."""
    return rows.unflatten(0, (count, -1)).sum(1) if len(rows) > count and len(rows) % count == 0 else rows


def _to_numpy(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


def _directions(indices: np.ndarray, num_outputs: int, most: int) -> Tensor:
    """Combinations of the outputs on the images `indices` (m,), drawn anew for each: (m, num_outputs, p).

    Each output by itself where they are at most `most`, else random orthogonal ones, scaled so that squared lengths are
    kept on average.
    """
    if num_outputs <= most:
        return torch.eye(num_outputs).expand(len(indices), -1, -1)
    rng = generator(0, Stream.DIRECTIONS, *indices.tolist())
    bases, _ = np.linalg.qr(rng.standard_normal((len(indices), num_outputs, most)))
    return torch.from_numpy((bases * np.sqrt(num_outputs / most)).astype(np.float32))
