"""The search space with one dimension more: the share of weights that the final magnitude pruning keeps (Sec. 3.3).

Pruning takes the smallest weights of all convolutions and linear layers. R therefore counts all of their weights that
are not zero: what the ranks leave, times the share kept. The share is counted in LEVELS; like a rank, the last of
them leaves everything as it is, and "log" coordinates scale it as its logarithm.
"""

import numpy as np
from numpy.typing import NDArray

from compressor.arrays import Ranks
from compressor.search.dimension import SparsityDimension
from compressor.search.space import RankSpace

SPARSITY = "share of weights kept"
LEVELS = 20
MIN_LEVEL = 2  # at most nine weights of ten are pruned


class SparsitySpace(RankSpace):
    """Ranks of layers (d - 1 of them) and a level 1..LEVELS.

    Args:
        layers: the space of the ranks, whose costs are parameters.
        other_weights: number of weights of layers outside it, which are pruned, too.
    """

    def __init__(self, layers: RankSpace, other_weights: int) -> None:
        self._sparsity = SparsityDimension(LEVELS, MIN_LEVEL, layers.coordinates, SPARSITY)
        self._initialize(
            [*layers.dimensions, self._sparsity],
            [*layers.tables, np.arange(1, LEVELS + 1) / LEVELS],
            layers.coordinates,
            layers.widths,
            layers.shared,
        )
        self._layers = layers
        self._other_weights = other_weights
        self.dense_cost = float(layers.cost(layers.break_even_ranks)) + other_weights

    @property
    def layers(self) -> RankSpace:
        """See `RankSpace.layers`."""
        return self._layers

    def complete(self, ranks: Ranks) -> Ranks:
        """See `RankSpace.complete`."""
        return np.append(ranks, LEVELS)

    def layer_ranks(self, ranks: Ranks) -> Ranks:
        """See `RankSpace.layer_ranks`."""
        return ranks[:-1]

    def prune_fraction(self, ranks: Ranks) -> float:
        """See `RankSpace.prune_fraction`."""
        return float(self._sparsity.fraction(ranks[-1]))

    def cost(self, ranks: Ranks) -> NDArray[np.float64]:
        """Number of weights (...,) that are not zero at ranks (..., d)."""
        weights = self._layers.cost(ranks[..., :-1]) + self._other_weights
        return np.asarray(weights - np.rint(self._sparsity.fraction(ranks[..., -1]) * weights))
