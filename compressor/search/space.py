"""The search space: one integer rank per layer, scaled to theta in [0, 1]^d (Sec. 3.3)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from skopt.space import Integer, Space

Coordinates = Literal["log", "linear"]
Ranks = NDArray[np.int64]
Thetas = NDArray[np.float64]


class RankSpace:
    """Integer ranks 1..cap per layer, and the ratio R each point costs.

    The dimensions are scikit-optimize's `Integer`; "log" scales a rank as theta = log K / log cap, because
    useful ranks lie at a few per cent of the caps, "linear" as the paper does. Points are arrays of ranks
    (n, d); the last value of a dimension stands for a layer kept dense. `encode` and `decode` do for whole arrays what
    the space's own transforms do point by point (a test compares them).

    Args:
        names: layer names, in order.
        params_by_rank: for every layer its parameters at ranks 1, 2, ..., and last those of the dense layer.
    """

    def __init__(
        self, names: Sequence[str], params_by_rank: Sequence[Sequence[int]], coordinates: Coordinates = "log"
    ) -> None:
        self.names = list(names)
        self.coordinates = coordinates
        self.caps: Ranks = np.array([len(table) for table in params_by_rank], dtype=np.int64)
        prior = "log-uniform" if coordinates == "log" else "uniform"
        self.space = Space(
            [
                Integer(1, int(cap), prior=prior, transform="normalize", name=name)
                for name, cap in zip(self.names, self.caps, strict=True)
            ]
        )
        self._params = [np.asarray(table, dtype=np.int64) for table in params_by_rank]
        self._dense_params = sum(int(table[-1]) for table in self._params)

    @property
    def num_dims(self) -> int:
        """d, the number of layers."""
        return len(self.names)

    def encode(self, ranks: Ranks) -> Thetas:
        """theta (n, d) of ranks (n, d)."""
        if self.coordinates == "log":
            return np.log(ranks) / np.log(self.caps)
        return (ranks - 1) / (self.caps - 1)

    def decode(self, thetas: Thetas) -> Ranks:
        """Nearest ranks (n, d) of thetas (n, d)."""
        clipped = np.clip(thetas, 0.0, 1.0)
        values = self.caps**clipped if self.coordinates == "log" else 1 + clipped * (self.caps - 1)
        return np.clip(np.rint(values), 1, self.caps).astype(np.int64)

    def sample(self, count: int, rng: np.random.Generator) -> Ranks:
        """`count` random points (n, d), uniform on the coordinates' scale.

        Drawn between 0.5 and cap + 0.5 and then rounded, so that the two end points (rank 1 and dense) are not
        half as likely as their neighbours.
        """
        low, high = np.full(self.num_dims, 0.5), self.caps + 0.5
        if self.coordinates == "log":
            values = np.exp(rng.uniform(np.log(low), np.log(high), size=(count, self.num_dims)))
        else:
            values = rng.uniform(low, high, size=(count, self.num_dims))
        return np.clip(np.rint(values), 1, self.caps).astype(np.int64)

    def uniform(self, fraction: float) -> Ranks:
        """The plan (d,) with every layer at the same fraction of its cap."""
        return np.clip(np.rint(fraction * self.caps), 1, self.caps).astype(np.int64)

    def params(self, ranks: Ranks) -> NDArray[np.int64]:
        """Parameters (n,) of the compressible layers at ranks (n, d)."""
        return sum(
            (table[ranks[:, i] - 1] for i, table in enumerate(self._params)),
            start=np.zeros(len(ranks), dtype=np.int64),
        )

    def ratio(self, ranks: Ranks) -> NDArray[np.float64]:
        """R (n,): parameters at ranks (n, d) over those of the dense layers."""
        return self.params(ranks) / self._dense_params

    def layer_ratio(self, layer: int) -> NDArray[np.float64]:
        """Share of all dense parameters (cap,) that one layer takes at ranks 1..cap."""
        return self._params[layer] / self._dense_params
