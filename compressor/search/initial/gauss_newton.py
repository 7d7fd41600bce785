"""A Gauss-Newton step on the lattice: new ranks by a linear model of how the outputs change with every layer's rank.

e = f~ - f* are the residuals of a plan's network, image by image, and a_l(r) is the change of its outputs where layer l
alone takes rank r. L of a plan that differs in many layers is then near E||e + sum_l a_l(r_l)||^2. Unlike a sum of
single-layer losses, this includes how layers interact: changes that cancel residuals are found, too.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.linear_model import LinearModel
from compressor.search.exchange import Moves, exchange_until_best
from compressor.search.expected_gain import ExpectedGain
from compressor.search.objective import Objective
from compressor.search.space import RankSpace, between, with_rank

DIRECTIONS = 5  # random combinations of outputs that the linear model follows
MAX_SWEEPS = 20
CAUTION = 1.0  # standard errors that a gain is reduced by
MIN_GAIN = 1e-9  # of J


def coordinate_ascent(
    space: RankSpace,
    objective: Objective,
    plan: Ranks,
    model: LinearModel,
    per_norm: float = 1.0,
    gain: ExpectedGain | None = None,
) -> Ranks:
    """The best plan (d,) by a linear model: one layer's rank after the other, until no single change is a gain.

    On few images layers seem to cancel one another's changes by chance. The gain in mean J over the model's images is
    therefore reduced by CAUTION of its standard errors. Within a limit of R, layers exchange ranks.

    Args:
        space: the ranks.
        objective: J.
        plan: the plan (d,) that the model is around.
        model: residuals of the plan, and changes by layer and rank.
        per_norm: L per function norm.
        gain: what reconstruction is expected to leave of L; None for all.
    """
    gain = gain or ExpectedGain()
    changes = [
        {int(rank): np.zeros_like(model.residuals), **rows} for rank, rows in zip(plan, model.changes, strict=True)
    ]
    plan, residuals, unchanged = plan.copy(), model.residuals, (model.residuals**2).sum(1)

    def value(ranks: Ranks, outputs: Array) -> float:
        losses = (outputs**2).sum(1)
        standard_error = (losses - unchanged).std(ddof=1) / np.sqrt(len(losses))
        loss = per_norm * (losses.mean() + CAUTION * standard_error)
        return float(objective.value(gain.delivered(loss), space.ratio(ranks[None])[0]))

    if objective.limit is not None:
        return _exchange(space, objective.limit, plan, model.residuals, changes, value)
    best = value(plan, residuals)
    for _ in range(MAX_SWEEPS):
        before = best
        for layer, rows in enumerate(changes):
            others = residuals - rows[int(plan[layer])]
            values = {rank: value(with_rank(plan, layer, rank), others + change) for rank, change in rows.items()}
            rank = max(values, key=lambda rank: values[rank])
            if values[rank] > best + MIN_GAIN:
                best, residuals, plan = values[rank], others + rows[rank], with_rank(plan, layer, rank)
        if best == before:
            break
    return plan


def _exchange(
    space: RankSpace,
    limit: float,
    plan: Ranks,
    residuals: Array,
    changes: Sequence[Mapping[int, Array]],
    value: Callable[[Ranks, Array], float],
) -> Ranks:
    """The best plan (d,) within a limit of R by exchanges between layers.

    Args:
        residuals: of the first plan (m, p).
        changes: by layer and rank, what is added to them; that of the first plan's own rank is zero.
        value: J of a plan (d,) by its residuals (m, p).
    """
    moved = [(layer, rank) for layer, rows in enumerate(changes) for rank in rows]
    layers, ranks = np.array(moved, dtype=np.int64).T

    def outputs(ranks: Ranks) -> Array:
        return residuals + sum(rows[int(rank)] for rows, rank in zip(changes, ranks, strict=True))

    def moves(plan: Ranks) -> Moves:
        here, own = outputs(plan), float(space.ratio(plan[None])[0])
        singles = [with_rank(plan, layer, rank) for layer, rank in moved]
        others = [here - rows[int(rank)] for rows, rank in zip(changes, plan, strict=True)]
        gains = [
            value(one, others[layer] + changes[layer][rank]) for one, (layer, rank) in zip(singles, moved, strict=True)
        ]
        costs = space.ratio(np.array(singles)) - own
        return Moves(layers, ranks, np.array(gains) - value(plan, here), costs, limit - own)

    return exchange_until_best(
        plan,
        moves,
        lambda plans: np.array([value(one, outputs(one)) for one in plans]),
        MIN_GAIN,
        lambda plans: space.keeping(plans, limit),
    )


def line_search_plans(space: RankSpace, plan: Ranks, target: Ranks, limit: float | None = None) -> list[Ranks]:
    """Plans (d,) from `plan` to `target`, both included: the farther away, the less exact a linear model is.

    Args:
        space: of the ranks.
        plan: where the model is exact (d,).
        target: the best plan by the model (d,).
        limit: of R, for plans between; None for none.
    """
    plans = between(space, plan, target, limit)
    return list({ranks.tobytes(): ranks for ranks in plans}.values())
