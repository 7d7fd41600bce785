"""One-at-a-time sensitivities: the function norm with a single layer compressed, for every layer at a few ranks."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.linear_model import Linearize
from compressor.fidelity.losses import Losses
from compressor.search.space import RankSpace, with_rank
from compressor.search.surrogate.additive_prior import LOSS_FLOOR, interpolate

SENSITIVITY_RANKS = 8  # per layer, at most
SENSITIVITY_SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9)
SENSITIVITY_IMAGES = 5
MODEL_IMAGES, MODEL_DIRECTIONS = 20, 3  # of the linear model around the dense network
MAX_IMAGES_PER_LAYER = 5  # of the first linear models: few images are enough to tell few layers apart
MeasureLosses = Callable[[list[Ranks]], Iterable[Losses]]
"""Losses of plans (d,), in their order."""


def num_model_images(max_images: float, num_layers: int) -> int:
    """Number of images for one of the first linear models: at least two."""
    return max(2, min(int(max_images), MAX_IMAGES_PER_LAYER * num_layers))


def measure_sensitivities(space: RankSpace, measure: MeasureLosses) -> list[list[float]]:
    """Function norms with one layer factorized and all others dense.

    Function norms are returned whatever the loss of the search is: what one layer adds to a risk is lost in the noise
    of a few images.

    Args:
        space: the ranks.
        measure: gives the losses of plans.

    Returns:
        Per layer, at its `sensitivity_ranks`.
    """
    grids, dense = sensitivity_ranks(space), space.break_even_ranks
    norms = iter(measure([with_rank(dense, layer, rank) for layer, grid in enumerate(grids) for rank in grid]))
    return [[next(norms).function_norm for _ in grid] for grid in grids]


def sensitivity_ranks(space: RankSpace) -> list[list[int]]:
    """Per layer the ranks at which it is measured, without dense: up to SENSITIVITY_RANKS, geometrically spaced.

    Widths are measured at SENSITIVITY_SHARES of all channels and at the largest that is less.
    """
    return [
        _by_share(choices) if number in space.widths else _geometric(choices, int(choices[-1]))
        for number, choices in enumerate(space.choices)
    ]


def sensitivity_tables(space: RankSpace, norms: Sequence[Sequence[float]]) -> list[Array]:
    """Per layer the sensitivities at ranks 1..break-even rank (r,), from those at `sensitivity_ranks`.

    They are log-linear in between and never increase with the rank.
    """
    rows = zip(sensitivity_ranks(space), norms, space.break_even_ranks, strict=True)
    return [interpolate_table(np.array(grid), np.array(known), int(last)) for grid, known, last in rows]


def linear_sensitivities(space: RankSpace, linearize: Linearize, images: np.ndarray) -> tuple[list[list[float]], int]:
    """`measure_sensitivities` to first order around the dense network.

    Args:
        space: the ranks.
        linearize: gives the linear model.
        images: indices (m,) of its images.

    Returns:
        The function norms, none where a layer changes nothing because the network passes no gradient; and the image
        passes that the model took.
    """
    model = linearize(space.break_even_ranks, sensitivity_ranks(space), images, MODEL_DIRECTIONS)
    norms = [list(row.values()) for row in model.single_layer_norms()]
    return (norms if all(max(row) > LOSS_FLOOR for row in norms) else []), model.passes


def interpolate_table(ranks: Ranks, norms: Array, break_even_rank: int) -> Array:
    """Losses (r,) at ranks 1 to the break-even rank r; zero at the last, which is the dense layer.

    Args:
        ranks: at which losses were measured (n,), ascending.
        norms: the losses there (n,).
        break_even_rank: r.
    """
    table = interpolate(np.arange(1, break_even_rank + 1), ranks, norms)
    table[-1] = 0.0
    return table


def _by_share(choices: Ranks) -> list[int]:
    narrower = choices[:-1]
    wanted = choices[-1] * np.array([*SENSITIVITY_SHARES, 1.0])
    return np.unique(narrower[np.abs(narrower[:, None] - wanted).argmin(0)]).tolist()


def _geometric(choices: Ranks, break_even_rank: int) -> list[int]:
    wanted = np.geomspace(1, break_even_rank, SENSITIVITY_RANKS + 1)
    nearest = choices[np.abs(choices[:, None] - wanted).argmin(0)]
    return [int(rank) for rank in np.unique(nearest[nearest < break_even_rank])]
