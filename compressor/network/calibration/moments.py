"""Second moments of layers' inputs from unlabelled calibration images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from compressor.factorization.moments import INPUT_FLOOR, LayerMoments, raise_floor_
from compressor.network.calibration.gradients import KEPT_BYTES, OutputGradients
from compressor.network.hooks import position_generators, sample_positions, watch_batches
from compressor.network.layers import FoundLayer
from compressor.network.replay import Replay
from compressor.process.memory import at_once

T = TypeVar("T")

MAX_INPUTS = 5120  # of one output, and outputs of a group; wider layers are left out. A matrix takes 210 MB at most.
MEMORY_BYTES = 1 << 27  # for the moments of one pass; more layers take more passes
MAX_ROWS = 8192  # output positions per layer that enter its covariance
SQUARE_BLOCK = 512  # rows of a covariance that are added up at once


@dataclass
class RunningMoments:
    """Running sums over rows x (rows, groups * n) and, where given, targets y (rows, groups * m).

    Sums are over differences from the first row, so that small variations about a large mean keep their digits and
    constants have a covariance of exactly zero. Products are summed in float32, or in the rows' own precision if that
    is higher: the floor under every covariance is far above their rounding. Memory: groups * n * (n + m) such numbers.
    """

    groups: int
    count: int = 0
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _origins: dict[str, Tensor] = field(default_factory=dict)

    def add(self, rows: Tensor, targets: Tensor | None = None) -> None:
        """Add rows; an inference tensor may be given.

        Args:
            rows: (r, groups * n).
            targets: likewise (r, groups * m), in every call or in none.
        """
        with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):  # autocast would round products
            x = self._from_origin("x", rows)
            self.count += len(rows)
            self._add("x", x.double().sum(1))
            self._add_squares(x)
            if targets is not None:
                y = self._from_origin("y", targets)
                self._add("y", y.double().sum(1))
                self._products("xy", x, y).baddbmm_(x.mT, y)

    @property
    def num_inputs(self) -> int:
        """n."""
        return self._sums["xx"].shape[-1]

    def mean(self) -> Tensor:
        """Mean of the rows, (groups, n)."""
        return self._shift("x") + self._origin("x")

    def target_mean(self) -> Tensor:
        """Mean of the targets, (groups, m)."""
        return self._shift("y") + self._origin("y")

    def variance(self) -> float:
        """The trace of the covariances, over all groups."""
        squares = self._sums["xx"].diagonal(dim1=-2, dim2=-1).double().cpu() / self.count
        return float((squares - self._shift("x").square()).sum())

    def covariance(self, dtype: torch.dtype = torch.float64, last: bool = False) -> Tensor:
        """Covariance of the rows, (groups, n, n).

        Args:
            dtype: its type; in single precision it takes half the memory.
            last: nobody will ask for it again, so that it may take the place of the sums.
        """
        shift = self._shift("x").to(dtype)
        products = self._mean_products("xx", dtype, last)
        for here, after in _row_blocks(products.shape[-1]):
            products[:, after, here] = products[:, here, after].mT
        return products.baddbmm_(shift[:, :, None], -shift[:, None, :])

    def cross_covariance(self) -> Tensor:
        """Covariance of rows and targets, (groups, n, m)."""
        return self._mean_products("xy").baddbmm_(self._shift("x")[:, :, None], -self._shift("y")[:, None, :])

    def _shift(self, name: str) -> Tensor:
        return self._sums[name] / self.count

    def _origin(self, name: str) -> Tensor:
        return self._origins[name][:, 0].double().cpu()

    def _mean_products(self, name: str, dtype: torch.dtype = torch.float64, last: bool = False) -> Tensor:
        sums = self._sums.pop(name) if last else self._sums[name]
        return sums.cpu().to(dtype, copy=not last).div_(self.count)

    def _add(self, name: str, value: Tensor) -> None:
        value = value.double().cpu()
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _products(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """The sum of x^T y (groups, n, m), on the rows' device."""
        if name not in self._sums:
            with torch.inference_mode(False):  # else they could not be divided in place
                self._sums[name] = torch.zeros(len(x), x.shape[-1], y.shape[-1], dtype=x.dtype, device=x.device)
        return self._sums[name]

    def _add_squares(self, x: Tensor) -> None:
        """Add x^T x (groups, n, n), by blocks from the diagonal to the right: it is symmetric."""
        total = self._products("xx", x, x)
        for here, after in _row_blocks(x.shape[-1]):
            total[:, here, here].baddbmm_(x[..., here].mT, x[..., here])
            if after.start < after.stop:
                total[:, here, after].baddbmm_(x[..., here].mT, x[..., after])

    def _from_origin(self, name: str, rows: Tensor) -> Tensor:
        """Rows by group (groups, rows, n) less the first row of all."""
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        by_group = rows.reshape(len(rows), self.groups, -1).transpose(0, 1)
        if name not in self._origins:
            self._origins[name] = by_group[:, :1].clone()
        return by_group - self._origins[name]


def _row_blocks(size: int) -> Iterator[tuple[slice, slice]]:
    """Yields every SQUARE_BLOCK rows of a square matrix, and the columns to the right of their diagonal block."""
    for begin in range(0, size, SQUARE_BLOCK):
        end = min(begin + SQUARE_BLOCK, size)
        yield slice(begin, end), slice(end, size)


def has_moments(layer: FoundLayer) -> bool:
    """Whether the layer is narrow enough for its moments to be kept in memory."""
    return max(_num_inputs(layer), layer.shape[0] // layer.num_groups) <= MAX_INPUTS


def collect_moments(
    gradients: OutputGradients,
    layers: Sequence[FoundLayer],
) -> Iterator[tuple[FoundLayer, LayerMoments]]:
    """Yields the layers that have moments (see `has_moments`) with these, in order.

    Covariances are over at most MAX_ROWS random output positions per layer, in as many passes over the images as keep
    the memory under MEMORY_BYTES (or one layer's).

    Args:
        gradients: of the network, on the images that moments are wanted of.
        layers: layers of the network.
    """
    layers = [layer for layer in layers if has_moments(layer)]
    replay = gradients.replay([layer.name for layer in layers])
    for outer in chunks(layers, output_bytes, KEPT_BYTES):
        outputs = gradients.by_position([layer.name for layer in outer])
        for chunk in chunks(outer, _input_bytes):
            moments = _input_moments(gradients, chunk, replay)
            for layer in chunk:
                yield layer, make_moments(moments.pop(layer.name), outputs.pop(layer.name))


def rows_of_batch(batch_size: int, num_images: int, most: int | None = None) -> int:
    """A batch's share of all output positions to take, rounded up.

    Args:
        batch_size: its images.
        num_images: those of all batches.
        most: positions of all batches; None for MAX_ROWS.
    """
    return -(-(MAX_ROWS if most is None else most) * batch_size // num_images)


def make_moments(moments: RunningMoments, outputs: Tensor) -> LayerMoments:
    """A layer's moments from sums over its inputs, which are used up, and the moments (groups, m, m) of its output
    gradients."""
    covariance = moments.covariance(torch.float32, last=True)
    raise_floor_(covariance, INPUT_FLOOR)
    return LayerMoments(covariance, moments.mean(), outputs)


def _num_inputs(layer: FoundLayer) -> int:
    return int(torch.Size(layer.shape[1:]).numel())


def _input_bytes(layer: FoundLayer) -> int:
    return 4 * layer.num_groups * _num_inputs(layer) ** 2


def output_bytes(layer: FoundLayer) -> int:
    """What the moments of its output gradients take."""
    return 8 * layer.num_groups * (layer.shape[0] // layer.num_groups) ** 2


def chunks(parts: Sequence[T], bytes_of: Callable[[T], int], most: int | None = None) -> Iterator[list[T]]:
    """Yields layers, or groups of them, in order, in lists that take so many bytes at most (or one part's bytes).

    Args:
        parts: in the order of their use.
        bytes_of: what one of them takes.
        most: bytes; None for MEMORY_BYTES.
    """
    chunk: list[T] = []
    used = 0
    for part in parts:
        if chunk and used + bytes_of(part) > at_once(MEMORY_BYTES if most is None else most):
            yield chunk
            chunk, used = [], 0
        chunk.append(part)
        used += bytes_of(part)
    if chunk:
        yield chunk


def _input_moments(of: OutputGradients, layers: Sequence[FoundLayer], replay: Replay) -> dict[str, RunningMoments]:
    moments = {layer.name: RunningMoments(layer.num_groups) for layer in layers}
    generators = position_generators(of.seed, len(layers))

    def add(index: int, value: Tensor, output: Tensor, size: int) -> None:
        layer = layers[index]
        count = rows_of_batch(size, len(of.images))
        positions = sample_positions(layer.module, output, count, generators[index])
        moments[layer.name].add(positions.of_input(layer.module, value))

    replay.advance(of.model, *(layer.name for layer in layers))
    watch_batches(of.model, [of.model.get_submodule(layer.name) for layer in layers], replay.passes(of.model), add)
    return moments
