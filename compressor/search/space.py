"""The search space: scikit-optimize's `Space` with one dimension of ranks per layer, theta in [0, 1]^d (Sec. 3.3)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skopt.space import Space

from compressor.arrays import Array, Ranks, Thetas
from compressor.search.dimension import Coordinates, RankDimension, RankTransformer, draw_uniform, real_ranks

CONTEXT_STEP = 1.4  # factor between a rank and those around it at which a layer is measured within a plan
CONTEXT_STEPS = (1 / CONTEXT_STEP, CONTEXT_STEP)
STRIDES = (0.6, 1 / CONTEXT_STEP, 0.85, 1.18, CONTEXT_STEP, 1.7)  # factors of a layer's rank
WIDTH_STRIDES = (0.6, 0.7, 0.8, 0.87, 0.92, 0.96, 1.04, 1.08, 1.15, 1.25, 1.4, 1.7)  # of a number of channels
NEIGHBOURS = 2  # on either side: L is jagged, an even rank may be better than the odd ones beside it
SHARES_OF_THE_WAY = (0.35, 0.7)
HALVINGS = 16  # of the step in theta by which a plan is moved to a limit


@dataclass(frozen=True)
class SharedCost:
    """What layers between two groups of hidden channels cost: they produce one and read the other.

    Attributes:
        first, second: numbers of the dimensions of the groups.
        whole: the cost with all channels of both, which is proportional to the width of either.
    """

    first: int
    second: int
    whole: float


class RankSpace(Space):
    """Integer ranks 1..break-even rank per layer, and the ratio R that each point costs.

    A dimension may also be the width of a group of layers that share hidden channels. Its scale is always linear, as
    useful widths are a large part of all, and its finest steps are smaller.

    A point is a row of ranks (d,); the last value of a dimension stands for a layer kept dense. "log" coordinates scale
    a rank as theta = log K / log dense, because useful ranks are a few per cent of the largest; "linear" is the paper's
    scale. `sample`, `encode` and `decode` do for whole arrays what `rvs`, `transform` and `inverse_transform` do for
    lists.

    Args:
        names: layer names, in order.
        costs: per layer what it costs at ranks 1, 2, ..., and last as the dense layer: its parameters, or another
            measure of size.
        coordinates: the scale of theta.
        multiple: the lattice has ranks below it, its multiples, and dense; ranks that cost as much as the dense layer
            are left out.
        widths: numbers of the dimensions that are widths. The costs of one are those with all channels of the others.
        shared: costs that two of them have in common, and that both have in their costs.

    Attributes:
        break_even_ranks: the largest value (d,) of every dimension, which stands for the dense layer.
        choices: per layer the lattice's ranks (r,), ascending.
        dense_cost: cost of the dense layers, to which R is relative.
        widths, shared: as given.
    """

    def __init__(
        self,
        names: Sequence[str],
        costs: Sequence[Sequence[float]],
        coordinates: Coordinates = "log",
        multiple: int = 1,
        widths: Collection[int] = (),
        shared: Sequence[SharedCost] = (),
    ) -> None:
        tables = [np.asarray(table, dtype=np.float64) for table in costs]
        dimensions = [
            RankDimension(_lattice(table, multiple), "linear" if number in widths else coordinates, name)
            for number, (name, table) in enumerate(zip(names, tables, strict=True))
        ]
        self._initialize(dimensions, tables, coordinates, widths, shared)

    def _initialize(
        self,
        dimensions: Sequence[RankDimension],
        tables: Sequence[Array],
        coordinates: Coordinates,
        widths: Collection[int] = (),
        shared: Sequence[SharedCost] = (),
    ) -> None:
        """Set up from dimensions and, for each, its costs at values 1..break-even rank."""
        super().__init__(dimensions)
        self.names = [dimension.name or "" for dimension in dimensions]
        self.coordinates: Coordinates = coordinates
        self.widths, self.shared = frozenset(widths), list(shared)
        self.choices: list[Ranks] = [dimension.choices for dimension in dimensions]
        self.break_even_ranks: Ranks = np.array([dimension.dense for dimension in dimensions], dtype=np.int64)
        self.tables = list(tables)
        self.dense_cost = sum(float(table[-1]) for table in self.tables) - sum(one.whole for one in self.shared)
        self._first, self._second = (
            np.array([getattr(one, side) for one in self.shared], dtype=np.int64) for side in ("first", "second")
        )
        self._whole = np.array([one.whole for one in self.shared])
        # The tables of all layers in one array each, so that many plans are looked up in one step.
        self._offsets = np.cumsum([-1, *self.break_even_ranks[:-1]])
        self._cost_table = np.concatenate(self.tables)
        self._theta_table = np.concatenate(
            [dimension.scale.transform(np.arange(1, dimension.dense + 1)) for dimension in dimensions]
        )
        self._moves: dict[tuple[float, ...], list[Ranks]] = {}

    @property
    def num_dims(self) -> int:
        """d, the number of layers (and one more where sparsity is searched)."""
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
        """Nearest ranks (n, d) of thetas (n, d), which are clipped to [0, 1]."""
        return self.nearest(self._real_ranks(thetas))

    def fit(self, ranks: Ranks, limit: float) -> Ranks:
        """Plans (n, d) moved to a limit of R: all layers of a plan by the same step in theta, as high as it allows.

        Where nothing keeps to the limit, every rank is 1.
        """
        thetas, low, high = self.encode(ranks), np.full((len(ranks), 1), -1.0), np.full((len(ranks), 1), 1.0)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            fits = (self.ratio(self.decode(thetas + middle)) <= limit)[:, None]
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        return self.decode(thetas + low)

    def nearest(self, values: NDArray[np.floating[Any]]) -> Ranks:
        """The lattice's points (n, d) nearest to real ranks (n, d)."""
        columns = [dimension.scale.nearest(values[..., layer]) for layer, dimension in enumerate(self.dimensions)]
        return np.stack(columns, axis=-1)

    def sample(self, count: int, rng: np.random.Generator | np.random.RandomState) -> Ranks:
        """`count` random points (count, d), uniform on the coordinates' scale, as `RankDimension.rvs` draws them."""
        limits = np.array([dimension.limits for dimension in self.dimensions]).T
        size = (count, self.num_dims)
        ranks = draw_uniform((limits[0], limits[1]), size, self.coordinates, rng)
        if self.widths and self.coordinates != "linear":
            columns = sorted(self.widths)
            ranks[:, columns] = draw_uniform((limits[0], limits[1]), size, "linear", rng)[:, columns]
        return self.nearest(ranks)

    def rvs(self, n_samples: int = 1, random_state: Any = None) -> list[list[int]]:
        """`sample` as lists of Python integers; a seed, a `RandomState` and None will do for `random_state`, too."""
        points: list[list[int]] = self.sample(n_samples, random_state).tolist()
        return points

    def moves(self, strides: tuple[float, ...]) -> list[Ranks]:
        """Per layer the ranks (dense, k) that each rank leads to: by one choice up or down, or by a stride in theta."""
        if strides not in self._moves:
            self._moves[strides] = [_moves(dimension.scale, strides) for dimension in self.dimensions]
        return self._moves[strides]

    def levels(
        self, layer: int, count: int, thetas: NDArray[np.float64] | None = None
    ) -> tuple[Ranks, NDArray[np.float64]]:
        """A layer's choices thinned out evenly in theta, both ends included.

        Args:
            layer: number of the dimension.
            count: how many choices (r,) at most.
            thetas: the choices nearest to these (k,) are added.

        Returns:
            The choices (r,), and their theta (r,).
        """
        choices = self.choices[layer]
        positions = self.dimensions[layer].scale.transform(choices)
        if len(choices) <= count:
            return choices, positions
        wanted = np.linspace(0.0, 1.0, count)
        wanted = wanted if thetas is None else np.concatenate([wanted, thetas])
        chosen = np.unique(np.abs(positions[:, None] - wanted).argmin(0))
        return choices[chosen], positions[chosen]

    def uniform(self, fraction: float) -> Ranks:
        """The plan (d,) with every layer at the same fraction of its largest rank."""
        return self.nearest(fraction * self.break_even_ranks)

    def cost(self, ranks: Ranks) -> NDArray[np.float64]:
        """What the compressible layers cost (...,) at ranks (..., d)."""
        cost = self._cost_table[ranks + self._offsets].sum(-1)
        if self.shared:
            first, second = (ranks[..., side] / self.break_even_ranks[side] for side in (self._first, self._second))
            cost = cost + (self._whole * (first * second - first - second)).sum(-1)
        return np.asarray(cost)

    def ratio(self, ranks: Ranks) -> NDArray[np.float64]:
        """R (...,): the cost at ranks (..., d) over that of the dense layers."""
        return self.cost(ranks) / self.dense_cost

    def layer_ratio(self, layer: int, plan: Ranks | None = None) -> NDArray[np.float64]:
        """Share of the dense layers' cost (dense,) that one layer takes at ranks 1..break-even rank.

        A group of hidden channels takes what it shares with another, too: by the width of that in `plan` (..., d), then
        (..., dense), or all of its channels.
        """
        table = self.tables[layer]
        if plan is not None:
            own = np.arange(1, len(table) + 1) / len(table)
            for one in self.shared:
                if layer in (one.first, one.second):
                    other = one.second if layer == one.first else one.first
                    removed = 1.0 - plan[..., other, None] / self.break_even_ranks[other]
                    table = table - one.whole * removed * own
        return np.asarray(table / self.dense_cost)

    def keeping(self, plans: Ranks, limit: float) -> Ranks:
        """Those of the plans (n, d) that keep to a limit of R, all of them where no costs are shared.

        For these, changes of single layers tell what several cost together.
        """
        return plans[self.ratio(plans) <= limit] if self.shared else plans

    def _real_ranks(self, thetas: Thetas) -> Array:
        ranks = real_ranks(self.break_even_ranks, thetas, self.coordinates)
        if self.widths and self.coordinates != "linear":
            columns = sorted(self.widths)
            ranks[..., columns] = real_ranks(self.break_even_ranks[columns], thetas[..., columns], "linear")
        return ranks


def _lattice(costs: Array, multiple: int) -> Ranks:
    """Ranks below `multiple` and its multiples that cost less than dense, and the last, which stands for dense."""
    dense = len(costs)
    fitting = [rank for rank in range(1, dense) if rank < multiple or rank % multiple == 0]
    return np.array([*(rank for rank in fitting if costs[rank - 1] < costs[-1]), dense], dtype=np.int64)


def _moves(scale: RankTransformer, strides: tuple[float, ...]) -> Ranks:
    choices, ranks = scale.choices, np.arange(1, scale.dense + 1)
    thetas = scale.transform(ranks)
    columns = [scale.inverse_transform(thetas + sign * stride) for stride in strides for sign in (-1, 1)]
    positions = np.searchsorted(choices, ranks)
    columns += [choices[np.clip(positions + sign, 0, len(choices) - 1)] for sign in (-1, 1)]
    return np.stack(columns, axis=1)


def alternatives(space: RankSpace, plan: Ranks) -> list[list[int]]:
    """Per layer other ranks than the plan's (d,): those by strides, and NEIGHBOURS of the lattice on either side."""
    strides = [WIDTH_STRIDES if number in space.widths else STRIDES for number in range(space.num_dims)]
    return [_others(*of_layer) for of_layer in zip(space.choices, plan.tolist(), strides, strict=True)]


def _others(choices: Ranks, rank: int, strides: Sequence[float]) -> list[int]:
    position = int(np.searchsorted(choices, rank))
    neighbours = choices[max(position - NEIGHBOURS, 0) : position + NEIGHBOURS + 1]
    return [int(other) for other in np.unique([*nearest(choices, rank, strides), *neighbours]) if other != rank]


def with_rank(plan: Ranks, layer: int, rank: int) -> Ranks:
    """The plan (d,) with another rank of one layer.

    Args:
        plan: ranks (d,), left unchanged.
        layer: its index.
        rank: its other rank.
    """
    changed = plan.copy()
    changed[layer] = rank
    return changed


def nearest(choices: Ranks, rank: int, factors: Sequence[float]) -> list[int]:
    """For every factor the choice nearest to that multiple of the rank, by their logarithms.

    Args:
        choices: ranks to choose from (n,).
        rank: whose multiples are wanted.
        factors: the multiples.
    """
    return [int(choices[np.abs(np.log(choices) - np.log(rank * factor)).argmin()]) for factor in factors]


def between(space: RankSpace, plan: Ranks, target: Ranks, limit: float | None = None) -> list[Ranks]:
    """Plans (d,) from `plan` to `target`: the two and SHARES_OF_THE_WAY between, all layers moving together.

    With a limit of R, those between are moved to it, and the two where they exceed it.

    Args:
        space: of the ranks.
        plan: ranks (d,).
        target: ranks (d,).
        limit: of R; None for none.
    """
    thetas = space.encode(np.stack([plan, target]))
    shares = np.array(SHARES_OF_THE_WAY)[:, None]
    plans = np.stack([plan, *space.decode((1 - shares) * thetas[0] + shares * thetas[1]), target])
    if limit is not None:
        is_moved = space.ratio(plans) > limit
        is_moved[1:-1] = True
        plans = np.where(is_moved[:, None], space.fit(plans, limit), plans)
    return list(plans)
