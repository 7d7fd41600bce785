"""A network with fewer hidden channels: narrowed, its readers refitted front to back, each step kept if it helps.

What a step does to the function norm is computed behind the last cut before the reader (`compressor.network.replay`).
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.linalg import LinAlgError
from torch import nn

from compressor.arrays import FLOAT_BYTES, Ranks
from compressor.channels.factors import ChannelFactors
from compressor.channels.groups import ChannelGroup, Reader
from compressor.channels.narrowing import narrow
from compressor.channels.passes import Passes
from compressor.channels.refitting import (
    NormalEquations,
    equations_of,
    kept_outputs,
    least_squares,
    readers_in_order,
    set_weight,
    start_from,
    wanted_rows,
)
from compressor.channels.statistics import MAX_ROWS
from compressor.data.images import ImageSet
from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.calibration.moments import chunks
from compressor.network.replay import Cuts, Replay

# Pull towards the present weight, as a share of the inputs' mean variance: a weak one where images tell the weights, a
# strong one in late layers, where a few hundred images have too few positions; the last leaves little but a new bias.
RIDGES = (0.01, 0.1, 1.0, 10.0, 1000.0)


@dataclass(frozen=True)
class RefitStep:
    """What one refit did: the layer, and the function norm before and with it."""

    layer: str
    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether the function norm on the check images fell."""
        return self.after < self.before


@dataclass
class Reduction:
    """Narrowing of a network to given widths, and the refits after it.

    Args:
        original: the network on `device`, in eval mode; left unchanged.
        factors: of all groups.
        calibration: images to fit on.
        check: the function norm on other images, which decides on every refit.
        device: where to compute.
        base: the network to narrow, where it is not the original: other layers of it may be factorized.
        seed: of the positions that are sampled.
        on_step: called with the number of refits done and the progress in words.
        steps: the refits so far.
    """

    original: nn.Module
    factors: Sequence[ChannelFactors]
    calibration: ImageSet
    check: FunctionNorm
    device: torch.device
    base: nn.Module | None = None
    seed: int = 0
    on_step: Callable[[int, str], None] = lambda count, text: None
    steps: list[RefitStep] = field(default_factory=list)
    _checked: Replay | None = field(default=None, init=False)

    @property
    def groups(self) -> list[ChannelGroup]:
        """The groups of the factors."""
        return [factors.group for factors in self.factors]

    def run(self, widths: Ranks) -> nn.Module:
        """The network at these widths (d,), its readers refitted front to back."""
        network = self.start(widths)
        kept = kept_outputs(self.original, self.groups, _kept(self.factors, widths))
        readers = readers_in_order(self.original, self.groups, self.calibration.batch([0]).to(self.device))
        readers = readers[self._first_changed(widths, readers) :]
        cuts = Cuts(network, [reader.name for reader in readers], self.check.images.batch([0]).to(self.device))
        self._checked = Replay(cuts, self.check.images, self.device)
        before, after = (Passes(each, readers, self.calibration, self.device) for each in (self.original, network))
        for chunk in chunks(readers, self._row_bytes):
            wanted = wanted_rows(self.original, chunk, before, self.seed)
            for reader in chunk:
                equations = equations_of(network, reader, wanted[reader.name], after, kept.get(reader.name))
                self._checked.advance(network, reader.name)
                self._refit(network, reader, equations)
        return network

    def _row_bytes(self, reader: Reader) -> int:
        """What a reader's wanted outputs take."""
        module: Any = self.original.get_submodule(reader.name)
        return FLOAT_BYTES * MAX_ROWS * len(module.weight)

    def start(self, widths: Ranks) -> nn.Module:
        """The network at these widths (d,), with the readers' weights for the original's inputs."""
        return start(self.original, self.base or self.original, self.factors, widths)

    def _first_changed(self, widths: Ranks, readers: Sequence[Reader]) -> int:
        """Number of the first reader that lost inputs: none before it has anything to make up for."""
        changed = {
            name
            for factors, width in zip(self.factors, widths, strict=True)
            if width < factors.max_rank
            for name in factors.group.reader_names
        }
        return next((number for number, reader in enumerate(readers) if reader.name in changed), len(readers))

    def _refit(self, network: nn.Module, reader: Reader, equations: NormalEquations) -> None:
        module: Any = network.get_submodule(reader.name)
        present = module.weight.detach().clone()
        before = self._loss(network) if not self.steps else min(self.steps[-1].before, self.steps[-1].after)
        unchanged = self._state(network, reader)
        best, after = unchanged, np.inf
        for ridge in RIDGES:
            with suppress(LinAlgError):
                set_weight(network, reader, *least_squares(equations, present, ridge))
                if (loss := self._loss(network)) > after:
                    break
                best, after = self._state(network, reader), loss
        step = RefitStep(reader.name, before, after)
        self._restore(network, reader, best if step.kept else unchanged)
        self.steps.append(step)
        self.on_step(len(self.steps), f"{reader.name}, function norm {min(before, after):.4g}")

    def _loss(self, network: nn.Module) -> float:
        assert self._checked is not None
        return self.check.of_outputs(self._checked.outputs(network))

    def _state(self, network: nn.Module, reader: Reader) -> list[Any]:
        module: Any = network.get_submodule(reader.name)
        mean = None if reader.norm is None else network.get_submodule(reader.norm).running_mean
        return [module.weight, module.bias, mean]

    def _restore(self, network: nn.Module, reader: Reader, state: list[Any]) -> None:
        module: Any = network.get_submodule(reader.name)
        module.weight, module.bias = state[:2]
        if reader.norm is not None:
            norm: Any = network.get_submodule(reader.norm)
            norm.running_mean = state[2]


def start(
    original: nn.Module, base: nn.Module, factors: Sequence[ChannelFactors], widths: Ranks | Sequence[int]
) -> nn.Module:
    """`base` at these widths (d,), with the readers' weights for the original's inputs; it shares no tensors with it.

    Args:
        original: the original network.
        base: the same, or a network that differs in layers of no group.
        factors: of the groups.
        widths: their widths, in units.
    """
    groups, kept = [one.group for one in factors], _kept(factors, widths)
    outputs = kept_outputs(original, groups, kept)
    network = copy.deepcopy(narrow(base, groups, kept))
    for one, width in zip(factors, widths, strict=True):
        if width < one.max_rank:
            start_from(network, one, int(width), outputs)
    return network


def _kept(factors: Sequence[ChannelFactors], widths: Ranks | Sequence[int]) -> dict[str, torch.Tensor]:
    return {one.group.name: one.kept(int(width)) for one, width in zip(factors, widths, strict=True)}
