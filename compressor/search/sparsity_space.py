"""The search space with one coordinate more: the share of weights that the final magnitude pass leaves (Sec. 3.3).

The pass takes the smallest weights of all convolutions and linear layers, so that R counts the weights of them all that
are not zero: what the ranks leave times the share kept. The share is counted in LEVELS; like a rank, the last of
them leaves everything as it is, and "log" coordinates scale it as its logarithm.
"""

import numpy as np
from numpy.typing import NDArray

from compressor.arrays import Ranks
from compressor.search.space import RankSpace

SPARSITY = "share of weights kept"
LEVELS = 20
MIN = 2  # levels kept at least: nine weights of ten are the most to be pruned
FRACTIONS = np.round(1.0 - np.arange(1, LEVELS + 1) / LEVELS, 2)  # pruned at levels 1..LEVELS


class SparsitySpace(RankSpace):
    """Ranks of layers (d - 1 of them) and a level 1..LEVELS.

    Args:
        layers: the space of the ranks, whose costs are parameters.
        other_weights: weights of layers outside it, which the pass prunes, too.
    """

    def __init__(self, layers: RankSpace, other_weights: int) -> None:
        kept = np.arange(1, LEVELS + 1) / LEVELS
        tables = [table.tolist() for table in (*layers.tables, kept)]
        super().__init__([*layers.names, SPARSITY], tables, layers.coordinates)
        self.choices = [*layers.choices, np.arange(MIN, LEVELS + 1)]
        self._layers = layers
        self._other_weights = other_weights
        self.dense_cost = float(layers.cost(layers.num_choices)) + other_weights

    @property
    def layers(self) -> RankSpace:
        return self._layers

    def complete(self, ranks: Ranks) -> Ranks:
        return np.append(ranks, LEVELS)

    def layer_ranks(self, ranks: Ranks) -> Ranks:
        return ranks[:-1]

    def prune_fraction(self, ranks: Ranks) -> float:
        return float(FRACTIONS[ranks[-1] - 1])

    def cost(self, ranks: Ranks) -> NDArray[np.float64]:
        """Weights (...,) that are not zero at ranks (..., d)."""
        weights = self._layers.cost(ranks[..., :-1]) + self._other_weights
        return np.asarray(weights - np.rint(FRACTIONS[ranks[..., -1] - 1] * weights))
