"""Dimensions of the search space: scikit-optimize's `Dimension` for the ranks of a layer, and for a share of zeros."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from skopt.space import Dimension
from skopt.space.transformers import Identity, Transformer

from compressor.arrays import Array, Ranks, Thetas

Coordinates = Literal["log", "linear"]


class RankTransformer(Transformer):
    """Scales ranks 1..dense to theta in [0, 1], and thetas back to the nearest rank of the lattice.

    "log": theta = log K / log dense. "linear": theta = (K - 1) / (dense - 1), as in the paper (Sec. 3.3).

    Args:
        choices: the lattice's ranks (r,), ascending; the last stands for the dense layer.
        coordinates: the scale.
    """

    def __init__(self, choices: Ranks, coordinates: Coordinates) -> None:
        self.choices = choices
        self.coordinates = coordinates
        self.dense = int(choices[-1])
        self._midpoints = (choices[1:] + choices[:-1]) / 2

    def transform(self, X: ArrayLike) -> Thetas:
        """theta, in the shape of the ranks; 0 where rank 1 is the dense layer."""
        ranks = np.asarray(X)
        if self.dense == 1:
            return np.zeros(ranks.shape)
        if self.coordinates == "log":
            return np.asarray(np.log(ranks) / np.log(self.dense))
        return np.asarray((ranks - 1) / (self.dense - 1))

    def inverse_transform(self, X: ArrayLike) -> Ranks:
        """Nearest ranks of the lattice, in the shape of the thetas; thetas are clipped to [0, 1]."""
        return self.nearest(real_ranks(self.dense, np.asarray(X), self.coordinates))

    def nearest(self, values: NDArray[np.floating[Any]]) -> Ranks:
        """Ranks of the lattice nearest to real ranks, in their shape."""
        return self.choices[np.searchsorted(self._midpoints, values)]


class RankDimension(Dimension):
    """The ranks of one layer.

    It differs from `skopt.space.Integer` in three ways: only the lattice's ranks occur, a single one is allowed, and
    samples are drawn between 1/2 and dense + 1/2 before they are rounded, so that the end points are not half as
    likely as their neighbours. Values are returned as Python integers, which JSON takes.

    Args:
        choices: the lattice's ranks, ascending; the last stands for the dense layer.
        coordinates: the scale of theta, on which samples are uniform.
        name: of the layer.
    """

    def __init__(
        self, choices: Sequence[int] | Ranks, coordinates: Coordinates = "log", name: str | None = None
    ) -> None:
        self.choices: Ranks = np.asarray(choices, dtype=np.int64)
        self.coordinates = coordinates
        self.prior = "log-uniform" if coordinates == "log" else "uniform"
        self.base = 10
        self.name = name
        self.scale = RankTransformer(self.choices, coordinates)
        self.set_transformer("normalize")

    def set_transformer(self, transform: str = "normalize") -> None:
        """Work on theta ("normalize") or on the ranks themselves ("identity"), as skopt's optimizers ask for.

        Raises:
            ValueError: another transform.
        """
        if transform not in ("normalize", "identity"):
            raise ValueError(f"transform should be 'normalize' or 'identity', got {transform!r}")
        self.transform_ = transform
        self.transformer = self.scale if transform == "normalize" else Identity()

    @property
    def dense(self) -> int:
        """The break-even rank, which stands for the dense layer: the largest value."""
        return self.scale.dense

    @property
    def limits(self) -> tuple[float, float]:
        """Real ranks between which samples are drawn."""
        return 0.5, self.dense + 0.5

    def rvs(self, n_samples: int = 1, random_state: Any = None) -> list[int]:
        """Random ranks, uniform on the coordinates' scale.

        Args:
            n_samples: how many.
            random_state: a numpy `Generator`, or what scikit-learn takes: a seed, a `RandomState` or None.
        """
        return self.scale.nearest(draw_uniform(self.limits, n_samples, self.coordinates, random_state)).tolist()

    def inverse_transform(self, Xt: ArrayLike) -> list[int]:
        """Nearest ranks of the lattice, of thetas (n,) or where the transform is "identity" of real ranks (n,)."""
        return self.scale.nearest(np.asarray(self.transformer.inverse_transform(Xt), dtype=np.float64)).tolist()

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest rank."""
        return int(self.choices[0]), int(self.choices[-1])

    @property
    def transformed_bounds(self) -> tuple[float, float]:
        """The same after the transform."""
        return (0.0, 1.0) if self.transform_ == "normalize" else self.bounds

    @property
    def is_constant(self) -> bool:
        """Whether there is a single choice."""
        return len(self.choices) == 1

    def distance(self, a: int, b: int) -> int:
        """|a - b| in ranks.

        Raises:
            RuntimeError: one of them is not in the lattice.
        """
        if not (a in self and b in self):
            raise RuntimeError(f"can only compute distances of ranks in the lattice, not of {a} and {b}")
        return abs(int(a) - int(b))

    def __contains__(self, point: object) -> bool:
        return bool(np.isin(np.asarray(point), self.choices).all())

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RankDimension)
            and type(self) is type(other)
            and self.coordinates == other.coordinates
            and np.array_equal(self.choices, other.choices)
        )

    __hash__ = None  # type: ignore[assignment]  # as for skopt's dimensions

    def __repr__(self) -> str:
        low, high = self.bounds
        return f"{type(self).__name__}({low}..{high}, {len(self.choices)} choices, {self.coordinates!r}, {self.name!r})"


class SparsityDimension(RankDimension):
    """The share of zeros, by levels: a level is how many of `levels` equal parts of the weights are kept.

    Args:
        levels: the largest level, at which nothing is pruned.
        min_level: the smallest; fewer parts are never kept.
        coordinates: as for ranks.
        name: of the dimension.
    """

    def __init__(self, levels: int, min_level: int, coordinates: Coordinates = "log", name: str | None = None) -> None:
        super().__init__(np.arange(min_level, levels + 1), coordinates, name)
        self.fractions: Array = np.round(1.0 - np.arange(1, levels + 1) / levels, 2)

    def fraction(self, level: ArrayLike) -> Array:
        """The share of weights set to zero at levels (...,)."""
        return np.asarray(self.fractions[np.asarray(level) - 1])


def real_ranks(dense: int | Ranks, thetas: Thetas, coordinates: Coordinates) -> Array:
    """Real ranks, before they are rounded to whole ones.

    Args:
        dense: the largest rank of every layer, () or (d,).
        thetas: (...,) or (..., d), clipped to [0, 1].
        coordinates: on whose scale thetas are even.
    """
    clipped = np.clip(thetas, 0.0, 1.0)
    return np.asarray(dense**clipped if coordinates == "log" else 1 + clipped * (dense - 1))


def draw_uniform(
    limits: tuple[float | Array, float | Array],
    size: int | tuple[int, ...] | None,
    coordinates: Coordinates,
    random_state: Any,
) -> Array:
    """Real ranks, uniform on the coordinates' scale.

    Args:
        limits: the smallest and the largest rank, () or (d,).
        size: shape of the result; None for a single one.
        coordinates: on whose scale they are uniform.
        random_state: a seed or generator, of numpy's new or old kind.
    """
    rng = random_state if isinstance(random_state, np.random.Generator) else check_random_state(random_state)
    low, high = limits
    if coordinates == "log":
        return np.asarray(np.exp(rng.uniform(np.log(low), np.log(high), size=size)))
    return np.asarray(rng.uniform(low, high, size=size))
