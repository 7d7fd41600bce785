"""Low-rank networks at a share of their operations: ranks allocated as widths of hidden channels are."""

import numpy as np
import torch
from torch import Tensor, nn

from compressor.cost.tables import cost_tables, saves_nothing
from compressor.data.images import ImageSet
from compressor.factorization.registry import competing_methods
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.linearization import Linearizer
from compressor.network.layers import compressible, factorized_ranks, find_layers
from compressor.network.macs import count_macs
from compressor.network.surgery import build_candidate, detach_from_original
from compressor.pipeline.stages.factorize import Decomposer
from compressor.recovery.reconstruction import Reconstruction
from compressor.search.initial.allocation import Option, allocate_within
from compressor.search.initial.sensitivity import interpolate_table
from compressor.search.space import RankSpace

CPU = torch.device("cpu")
LEVELS, DIRECTIONS = 8, 4  # ranks at which a layer's loss is measured, and combinations of the outputs for it


class LowRank:
    """One network with factors of all layers, each by the method that suits it, under the command line's `auto`.

    Args:
        model: the network, in eval mode; it is not changed.
        fit: images to fit on.
        check: the function norm on other images, which decides.
        multiple: of the ranks above it.
    """

    def __init__(self, model: nn.Module, fit: ImageSet, check: FunctionNorm, multiple: int) -> None:
        self._model, self._fit, self._check = model, fit, check
        example = fit.batch([0])
        found = compressible(find_layers(model, example))
        parts = Decomposer(model, fit, check, CPU, "auto", competitors=competing_methods("auto")).run(found)
        every = {part.layer.name: part.factors for part in parts}
        tables = cost_tables("macs", model, [part.layer for part in parts], every, example, _no_clock)
        chosen = [(part, table) for part, table in zip(parts, tables, strict=True) if not saves_nothing(table)]
        self._layers = [part.layer for part, _ in chosen]
        self._factors = {layer.name: every[layer.name] for layer in self._layers}
        names = [layer.name for layer in self._layers]
        self._space = RankSpace(names, [table for _, table in chosen], multiple=multiple)
        self._whole, _ = count_macs(model, example)
        self._options = self._measure()

    def networks(self, share: float) -> tuple[nn.Module, nn.Module]:
        """Networks with at most this share of the multiply-accumulates: the factors in place, and reconstructed."""
        rest = self._whole - self._space.dense_cost
        limit = (share * self._whole - rest) / self._space.dense_cost
        plan = allocate_within(self._space, self._options, limit)
        ranks = factorized_ranks(self._layers, plan)
        bare = detach_from_original(build_candidate(self._model, self._factors, ranks))
        layers = [layer for layer in self._layers if layer.name in ranks]
        network = detach_from_original(build_candidate(self._model, self._factors, ranks))
        reconstruction = Reconstruction(self._model, network, layers, self._fit, self._check, CPU)
        reconstruction.run()
        return bare, reconstruction.network

    def _measure(self) -> list[Option]:
        """Per layer its ranks, and the function norm with it alone at each, to first order."""
        dense = np.array([layer.dense_rank for layer in self._layers], dtype=np.int64)
        levels = [self._space.levels(number, LEVELS)[0][:-1] for number in range(self._space.num_dims)]
        linearize = Linearizer(self._check, self._model, self._layers, self._factors)
        every = np.arange(len(self._check.images))
        losses = linearize(dense, [ranks.tolist() for ranks in levels], every, DIRECTIONS).single_layer_norms()
        options = []
        for number, (ranks, found) in enumerate(zip(levels, losses, strict=True)):
            known = np.array([found[rank] for rank in ranks.tolist()])
            table = interpolate_table(ranks, known, int(dense[number]))
            choices = self._space.choices[number]
            options.append((choices, table[choices - 1]))
        return options


def _no_clock(_key: str, _modules: object, _inputs: Tensor) -> list[float]:
    raise AssertionError("operations are counted, not timed")
