"""Gradients of the network's outputs by the outputs of its layers, and their second moments, each found once a run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.factorization.layers.kinds import Layer, axes_of, groups_of
from compressor.factorization.moments import OUTPUT_FLOOR, with_floor
from compressor.failures import is_shortage
from compressor.files.tensors_on_disk import TensorsOnDisk, on_disk
from compressor.network.hooks import batches, differentiable, fitting_with_gradients, watching
from compressor.network.replay import Cuts, Replay
from compressor.process.memory import at_once
from compressor.streams import Stream, derived_seed

GRADIENT_IMAGES = 64
GRADIENT_BATCH_SIZE = 8
NUM_PROJECTIONS = 4  # random combinations of the network's outputs whose gradients are taken per image
MAX_POSITIONS = 256  # of a gradient, at random, whose products are added up
KEPT_BYTES = 1 << 28  # of sums that are kept for whoever asks next


@dataclass
class OutputGradients:
    """Second moments of the gradients at layers' outputs, found once for all who ask.

    They are estimated without bias from the gradients of random +-1 combinations of the network's outputs, over all
    calls of a layer. Passes of gradients are the dearest that a run makes, so that sums are kept as far as memory goes.

    Args:
        model: the original network on `device`, in eval mode, or one whose layers' outputs are multiples of
            its plus constants.
        images: calibration images, of which GRADIENT_IMAGES are used.
        device: of the network.
        seed: of the combinations.
        scales: what the original's outputs were multiplied by (Co,), by the names of the layers where they were.
    """

    model: nn.Module
    images: ImageSet
    device: torch.device
    seed: int
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    _kept: dict[str, "_Sums"] = field(default_factory=dict, init=False, repr=False)

    def by_position(self, names: Sequence[str]) -> dict[str, Tensor]:
        """K-FAC's G: the mean over positions of J^T J, J the Jacobian of the network's outputs by the layer's.

        With few gradients the estimate is shrunk towards the identity. Where a network, or a part of it, has no
        gradients, it is the identity.

        Args:
            names: of the layers.

        Returns:
            By name (groups, m, m), float64, with a mean diagonal of about 1, m = Co/groups; the blocks within groups
            alone.
        """
        return {name: sums.by_position() for name, sums in self._find(names).items()}

    def by_image(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Second moments (Co, Co), float64, of the gradients' sums over an image's positions and of the deviations.

        Args:
            names: of the layers.
        """
        return {name: sums.by_image() for name, sums in self._find(names).items()}

    def replay(self, names: Sequence[str]) -> Replay:
        """Passes over the images for who asks for the inputs of these layers, one after the other."""
        example = self.images.batch([0]).to(self.device)
        return Replay(Cuts(self.model, names, example), self.images, self.device)

    def _find(self, names: Sequence[str]) -> dict[str, "_Sums"]:
        """The sums of these layers: the kept ones, and the others by one run of the images."""
        found = {name: self._kept[name] for name in names if name in self._kept}
        missing = [name for name in names if name not in found]
        if missing:
            modules: dict[str, Any] = {name: self.model.get_submodule(name) for name in missing}
            sums = {name: _Sums(module, self.scales.get(name)) for name, module in modules.items()}
            try:
                with torch.backends.cudnn.flags(enabled=False):  # its recurrent layers have no gradients in eval mode
                    parts = projected_gradients(self.model, list(modules.values()), self.images, self.device, self.seed)
                    for index, gradient in parts:
                        sums[missing[index]].add(gradient)
            except RuntimeError as error:
                if is_shortage(error):
                    raise
                sums = {name: _Sums(module, self.scales.get(name)) for name, module in modules.items()}
            self._keep(sums)
            found |= sums
        return {name: found[name] for name in names}

    def _keep(self, found: dict[str, "_Sums"]) -> None:
        room = at_once(KEPT_BYTES) - sum(sums.num_bytes for sums in self._kept.values())
        for name, sums in found.items():
            sums.store()
            if sums.num_bytes <= room:
                self._kept[name] = sums
                room -= sums.num_bytes


class _Sums:
    """Sums over the gradients at a layer's outputs, in single precision.

    The first are of products within groups (groups, m, m), the others, where there are several groups, of all (Co, Co).
    `totals` are rows (n, Co), a gradient's sums over its positions. All are multiplied by `scale` (Co,) at the end.
    """

    def __init__(self, layer: Layer, scale: Tensor | None = None) -> None:
        self._layer, self._scale = layer, scale
        self._groups = groups_of(layer)
        self._rows = self._positions = self._images = 0
        self._generator = torch.Generator().manual_seed(0)
        self._products: list[Tensor] | TensorsOnDisk = []
        self._totals: list[Tensor] = []
        self._waiting: list[Tensor] = []  # rows (r, Co) whose products are not in the sums yet

    @property
    def num_bytes(self) -> int:
        """What they take in memory."""
        products = [] if isinstance(self._products, TensorsOnDisk) else self._products
        return sum(4 * part.numel() for part in (*products, *self._totals))

    def add(self, gradient: Tensor) -> None:
        """Add the gradients of one call's outputs (N, ...); not after `store`."""
        axis = -1 - axes_of(self._layer)
        rows = gradient.movedim(axis, -1).flatten(1, -2) if gradient.dim() > 2 else gradient[:, None]
        count = rows.shape[1]
        if not rows.numel():  # a layer that was called on nothing
            return
        # Deviations from the mean have the products of all, less 1 / count of the sums' products.
        self._totals.append(rows.sum(1, dtype=torch.float32) * (1 - 1 / count) ** 0.5)
        if count > MAX_POSITIONS:
            chosen = torch.randperm(count, generator=self._generator)[:MAX_POSITIONS]
            rows = rows[:, chosen.to(rows.device)] * (count / MAX_POSITIONS) ** 0.5
        self._waiting.append(rows.float().flatten(0, 1))
        self._rows += rows.shape[0] * rows.shape[1]
        self._positions += count * len(rows)
        self._images += len(rows)
        if sum(map(len, self._waiting)) >= MAX_POSITIONS:
            self._add_waiting()

    def store(self) -> None:
        """Move the sums to the disk."""
        self._add_waiting()
        if isinstance(self._products, list):
            self._products = on_disk(self._products)

    def _add_waiting(self) -> None:
        """Add the products of the rows that wait: for a few at a time, memory would be read and written for little."""
        if not self._waiting:
            return
        flat, self._waiting = torch.cat(self._waiting), []
        by_group = flat.reshape(len(flat), self._groups, -1).transpose(0, 1)
        parts = [by_group] if self._groups == 1 else [by_group, flat[None]]
        if not self._products:
            self._products = [part.new_zeros(len(part), part.shape[-1], part.shape[-1]) for part in parts]
        with torch.no_grad(), torch.autocast(flat.device.type, enabled=False):  # autocast would round products
            for total, part in zip(self._products, parts, strict=True):
                total.baddbmm_(part.mT, part)

    def by_position(self) -> Tensor:
        """See `OutputGradients`; after `store`."""
        if not self._products:
            size = len(self._layer.weight) // self._groups
            return torch.eye(size, dtype=torch.float64).repeat(self._groups, 1, 1)
        squares = self._products[0].double().cpu() / self._positions
        if self._scale is not None:
            scale = self._scale.view(self._groups, -1)
            squares *= scale[:, :, None] * scale[:, None]
        # Only ratios matter, and gradients may be tiny.
        squares /= squares.diagonal(dim1=-2, dim2=-1).mean().clamp_min(1e-300)
        return with_floor(squares, OUTPUT_FLOOR + squares.shape[-1] / self._rows)

    def by_image(self) -> Tensor:
        """See `OutputGradients`; after `store`."""
        if not self._products:
            return torch.eye(len(self._layer.weight), dtype=torch.float64)
        totals = torch.cat(self._totals).double()
        across = self._products[len(self._products) - 1][0]
        products = torch.addmm(across.double(), totals.mT, totals).cpu() / self._images
        return products if self._scale is None else products * torch.outer(self._scale, self._scale)


def projected_gradients(
    model: nn.Module, modules: Sequence[nn.Module], images: ImageSet, device: torch.device, seed: int
) -> Iterator[tuple[int, Tensor]]:
    """Yields the gradients of random +-1 combinations of the network's outputs by the outputs of modules.

    Args:
        model: the network on `device`, in eval mode.
        modules: parts of it.
        images: of which GRADIENT_IMAGES are used, with NUM_PROJECTIONS combinations for each.
        device: of the network.
        seed: of the combinations.

    Yields:
        The index in `modules` and a gradient, in the shape of the output of one call.
    """
    some = images.subset(range(min(GRADIENT_IMAGES, len(images))))
    size = fitting_with_gradients(model, some.batch([0]).to(device), GRADIENT_BATCH_SIZE)
    generator = torch.Generator().manual_seed(derived_seed(seed, Stream.SIGNS))
    calls: list[tuple[int, Tensor]] = []

    def keep(index: int, _value: Tensor, output: Tensor) -> Tensor:
        output = differentiable(output)
        calls.append((index, output))
        return output.clone()  # the next module may change its input in place

    for batch in batches(some, device, size):
        with torch.enable_grad(), watching(modules, keep):
            outputs = model(batch.requires_grad_().clone()).reshape(len(batch), -1)
            outputs = outputs if outputs.requires_grad else outputs.clone() * batch.new_ones(1).requires_grad_()
        for _ in range(NUM_PROJECTIONS):
            signs = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1
            with torch.enable_grad():
                combined = (outputs * signs).sum()
            gradients = torch.autograd.grad(
                combined,
                [output for _, output in calls],
                retain_graph=True,
                materialize_grads=True,
            )
            yield from zip((index for index, _ in calls), gradients, strict=True)
        calls.clear()
        del outputs, combined, gradients  # free the graph before the next one
