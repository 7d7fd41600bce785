"""TODO docstring."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.linear_model import Linearize
from compressor.fidelity.losses import Losses
from compressor.search.space import RankSpace, with_rank
from compressor.search.surrogate.additive_prior import LOSS_FLOOR, interpolate

SENSITIVITY_RANKS = 8
SENSITIVITY_IMAGES = 5
MODEL_IMAGES, MODEL_DIRECTIONS = 20, 3  # of the linear model around the dense network
FEW_PER_LAYER = 5  # images, at most, of the first linear models: few layers are told apart by few images
MeasureLayers = Callable[[list[Ranks]], Iterable[Losses]]


def few_images(most: float, num_layers: int) -> int:
    """Images for a first linear model: at most so many, and fewer for few layers."""
    return max(2, min(int(most), FEW_PER_LAYER * num_layers))


def measure_sensitivities(space: RankSpace, probe: MeasureLayers) -> list[list[float]]:
    """Function norm with one layer factorized and all others dense, for every layer at `sensitivity_ranks`.

    Whatever the loss of the search is: what a layer alone adds to a risk is lost in the noise of a few images.
    """
    grids = sensitivity_ranks(space)
    norms = iter(
        probe([with_rank(space.break_even_ranks, layer, rank) for layer, grid in enumerate(grids) for rank in grid])
    )
    return [[next(norms).function_norm for _ in grid] for grid in grids]


def sensitivity_ranks(space: RankSpace) -> list[list[int]]:
    """The ranks at which every layer alone is measured, geometrically spaced."""
    return [
        _geometric(choices, break_even_rank)
        for choices, break_even_rank in zip(space.choices, space.break_even_ranks, strict=True)
    ]


def tables_of(space: RankSpace, norms: Sequence[Sequence[float]]) -> list[Array]:
    """Losses of single layers at ranks 1..cap (cap,) from those at `sensitivity_ranks`: log-linear in between, never
    increasing with the rank."""
    rows = zip(sensitivity_ranks(space), norms, space.break_even_ranks, strict=True)
    return [every_rank(np.array(grid), np.array(known), int(break_even_rank)) for grid, known, break_even_rank in rows]


def linear_sensitivities(space: RankSpace, linearize: Linearize, images: np.ndarray) -> tuple[list[list[float]], int]:
    """The same function norms at `sensitivity_ranks`, to first order around the dense network, and the image passes they
    took; no norms where a layer moves nothing, because the network lets no slope through."""
    model = linearize(space.break_even_ranks, sensitivity_ranks(space), images, MODEL_DIRECTIONS)
    norms = [list(row.values()) for row in model.norms_alone()]
    return (norms if all(max(row) > LOSS_FLOOR for row in norms) else []), model.passes


def every_rank(ranks: Ranks, norms: Array, break_even_rank: int) -> Array:
    """Losses at ranks 1..cap (cap,) from those at `ranks` (n,), rising; none at the cap, which is dense."""
    table = interpolate(np.arange(1, break_even_rank + 1), ranks, norms)
    table[-1] = 0.0
    return table


def _geometric(choices: Ranks, break_even_rank: int) -> list[int]:
    """Up to SENSITIVITY_RANKS of the lattice's ranks, geometrically spaced, without dense."""
    wanted = np.geomspace(1, break_even_rank, SENSITIVITY_RANKS + 1)
    nearest = choices[np.abs(choices[:, None] - wanted).argmin(0)]
    return [int(rank) for rank in np.unique(nearest[nearest < break_even_rank])]
