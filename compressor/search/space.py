"""The search space: one integer rank per layer, scaled to theta in [0, 1]^d (Sec. 3.3)."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from skopt.space import Integer, Space

from compressor.arrays import Ranks, Thetas

CONTEXT_STEP = 1.4  # in rank, up and down
CONTEXT_STEPS = (1 / CONTEXT_STEP, CONTEXT_STEP)
STRIDES = (0.6, 1 / CONTEXT_STEP, 0.85, 1.18, CONTEXT_STEP, 1.7)  # of a layer's rank
NEIGHBOURS = 2  # on either side: L is jagged, an even rank may be better than the odd ones beside it
SHARES_OF_THE_WAY = (0.35, 0.7)

Coordinates = Literal["log", "linear"]


class RankSpace:
    """Integer ranks 1..cap per layer, and the ratio R each point costs.

    The dimensions are scikit-optimize's `Integer`; "log" scales a rank as theta = log K / log cap, because
    useful ranks lie at a few per cent of the caps, "linear" as the paper does. Points are arrays of ranks
    (n, d); the last value of a dimension stands for a layer kept dense. `encode` and `decode` do for whole arrays what
    the space's own transforms do point by point (a test compares them).

    Args:
        names: layer names, in order.
        costs: for every layer what it costs at ranks 1, 2, ..., and last as the dense layer: its parameters, or another
            measure of size.
        multiple: the lattice's ranks are those below it, its multiples, and dense; without those that cost as much as
            the dense layer.
    """

    def __init__(
        self,
        names: Sequence[str],
        costs: Sequence[Sequence[float]],
        coordinates: Coordinates = "log",
        multiple: int = 1,
    ) -> None:
        self.names = list(names)
        self.coordinates = coordinates
        self.num_choices: Ranks = np.array([len(table) for table in costs], dtype=np.int64)
        self.tables = [np.asarray(table, dtype=np.float64) for table in costs]
        self.choices: list[Ranks] = [_lattice(table, multiple) for table in self.tables]
        prior = "log-uniform" if coordinates == "log" else "uniform"
        self.space = Space(
            [
                Integer(1, int(break_even_rank), prior=prior, transform="normalize", name=name)
                for name, break_even_rank in zip(self.names, self.num_choices, strict=True)
            ]
        )
        self.dense_cost = sum(float(table[-1]) for table in self.tables)
        # All layers' tables in one array each: a look-up for many plans is then one step.
        self._offsets = np.cumsum([-1, *self.num_choices[:-1]])
        self._cost_table = np.concatenate(self.tables)
        self._theta_table = np.concatenate(
            [
                self._theta(layer, np.arange(1, break_even_rank + 1))
                for layer, break_even_rank in enumerate(self.num_choices)
            ]
        )
        self._moves: dict[tuple[float, ...], list[Ranks]] = {}

    @property
    def num_dims(self) -> int:
        """d, the number of layers (and one where sparsity is searched)."""
        return len(self.names)

    @property
    def layers(self) -> "RankSpace":
        """The space of the layers' ranks alone."""
        return self

    def complete(self, ranks: Ranks) -> Ranks:
        """The point (d,) of a plan for the layers, nothing pruned."""
        return ranks

    def layer_ranks(self, ranks: Ranks) -> Ranks:
        """The layers' ranks of a point (d,)."""
        return ranks

    def prune_fraction(self, ranks: Ranks) -> float:
        """The share of weights set to zero at a point (d,)."""
        return 0.0

    def encode(self, ranks: Ranks) -> Thetas:
        """theta (n, d) of ranks (n, d)."""
        return self._theta_table[ranks + self._offsets]

    def decode(self, thetas: Thetas) -> Ranks:
        """Nearest ranks (n, d) of thetas (n, d)."""
        return self.nearest(self._values(self.num_choices, thetas))

    def nearest(self, values: NDArray[np.floating[Any]]) -> Ranks:
        """The lattice's points (n, d) nearest to real ranks (n, d)."""
        return np.stack([self._nearest(layer, values[..., layer]) for layer in range(self.num_dims)], axis=-1)

    def moves(self, strides: tuple[float, ...]) -> list[Ranks]:
        """For every layer the ranks (cap, k) that each rank leads to: one choice up or down, or a stride in theta."""
        if strides not in self._moves:
            self._moves[strides] = [self._moves_of(layer, strides) for layer in range(self.num_dims)]
        return self._moves[strides]

    def _moves_of(self, layer: int, strides: tuple[float, ...]) -> Ranks:
        break_even_rank, choices = self.num_choices[layer], self.choices[layer]
        ranks = np.arange(1, break_even_rank + 1)
        thetas = self._theta(layer, ranks)
        columns = []
        for stride in [sign * stride for stride in strides for sign in (-1, 1)]:
            columns.append(self._nearest(layer, self._values(break_even_rank, thetas + stride)))
        positions = np.searchsorted(choices, ranks)
        columns += [choices[np.clip(positions + sign, 0, len(choices) - 1)] for sign in (-1, 1)]
        return np.stack(columns, axis=1)

    def _values(self, num_choices: Ranks, thetas: Thetas) -> NDArray[np.float64]:
        """Real ranks at thetas, of layers with these caps."""
        clipped = np.clip(thetas, 0.0, 1.0)
        return np.asarray(num_choices**clipped if self.coordinates == "log" else 1 + clipped * (num_choices - 1))

    def _nearest(self, layer: int, values: NDArray[np.floating[Any]]) -> Ranks:
        choices = self.choices[layer]
        return choices[np.searchsorted((choices[1:] + choices[:-1]) / 2, values)]

    def _theta(self, layer: int, ranks: Ranks) -> NDArray[np.float64]:
        break_even_rank = self.num_choices[layer]
        return np.asarray(
            np.log(ranks) / np.log(break_even_rank)
            if self.coordinates == "log"
            else (ranks - 1) / (break_even_rank - 1)
        )

    def levels(
        self, layer: int, count: int, thetas: NDArray[np.float64] | None = None
    ) -> tuple[Ranks, NDArray[np.float64]]:
        """At most `count` of a layer's choices (r,), evenly spaced in theta, both ends included, and their theta; with
        `thetas` (k,) those nearest to these, too."""
        choices = self.choices[layer]
        positions = self._theta(layer, choices)
        if len(choices) <= count:
            return choices, positions
        wanted = np.linspace(0.0, 1.0, count)
        wanted = wanted if thetas is None else np.concatenate([wanted, thetas])
        chosen = np.unique(np.abs(positions[:, None] - wanted).argmin(0))
        return choices[chosen], positions[chosen]

    def sample(self, count: int, rng: np.random.Generator) -> Ranks:
        """`count` random points (n, d), uniform on the coordinates' scale.

        Drawn between 0.5 and cap + 0.5 and then rounded, so that the two end points (rank 1 and dense) are not
        half as likely as their neighbours.
        """
        low, high = np.full(self.num_dims, 0.5), self.num_choices + 0.5
        if self.coordinates == "log":
            values = np.exp(rng.uniform(np.log(low), np.log(high), size=(count, self.num_dims)))
        else:
            values = rng.uniform(low, high, size=(count, self.num_dims))
        return self.nearest(values)

    def uniform(self, fraction: float) -> Ranks:
        """The plan (d,) with every layer at the same fraction of its cap."""
        return self.nearest(fraction * self.num_choices)

    def cost(self, ranks: Ranks) -> NDArray[np.float64]:
        """What the compressible layers cost (...,) at ranks (..., d)."""
        return np.asarray(self._cost_table[ranks + self._offsets].sum(-1))

    def ratio(self, ranks: Ranks) -> NDArray[np.float64]:
        """R (...,): the cost at ranks (..., d) over that of the dense layers."""
        return self.cost(ranks) / self.dense_cost

    def layer_ratio(self, layer: int) -> NDArray[np.float64]:
        """Share of the dense layers' cost (cap,) that one layer takes at ranks 1..cap."""
        return np.asarray(self.tables[layer] / self.dense_cost)


def _lattice(costs: NDArray[np.float64], multiple: int) -> Ranks:
    """Ranks below `multiple` and its multiples that cost less than dense, and the last, which stands for dense."""
    dense = len(costs)
    fitting = [rank for rank in range(1, dense) if rank < multiple or rank % multiple == 0]
    return np.array([*(rank for rank in fitting if costs[rank - 1] < costs[-1]), dense], dtype=np.int64)


def alternatives(space: RankSpace, plan: Ranks) -> list[list[int]]:
    """Other ranks for every layer: strides away, and the lattice's next."""
    return [_others(choices, int(rank)) for choices, rank in zip(space.choices, plan, strict=True)]


def _others(choices: Ranks, rank: int) -> list[int]:
    place = int(np.searchsorted(choices, rank))
    neighbours = choices[max(place - NEIGHBOURS, 0) : place + NEIGHBOURS + 1]
    return [int(other) for other in np.unique([*nearest(choices, rank, STRIDES), *neighbours]) if other != rank]


def with_rank(plan: Ranks, layer: int, rank: int) -> Ranks:
    """The plan (d,) with another rank of one layer."""
    changed = plan.copy()
    changed[layer] = rank
    return changed


def nearest(choices: Ranks, rank: int, strides: Sequence[float]) -> list[int]:
    """A layer's choices about these many times as large as a rank."""
    return [int(choices[np.abs(np.log(choices) - np.log(rank * stride)).argmin()]) for stride in strides]


def between(space: RankSpace, plan: Ranks, target: Ranks) -> list[Ranks]:
    """The plan (d,), plans on the way to `target` (d,), and this: layers move together."""
    thetas = space.encode(np.stack([plan, target]))
    on_the_way = [space.decode((1 - share) * thetas[:1] + share * thetas[1:])[0] for share in SHARES_OF_THE_WAY]
    return [plan, *on_the_way, target]
