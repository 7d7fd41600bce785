"""Ranks set anew by how the outputs move with every layer's rank, to first order: a Gauss-Newton step on the lattice.

With the residuals e = f~ - f* of a plan's network and the change a_l(r) of its outputs where layer l alone takes rank
r, both image by image, L of a plan that differs in many layers is near E||e + sum_l a_l(r_l)||^2: what layers do to one
another is in it, which losses of single layers cannot log. Changes that cancel residuals are found, too.
"""

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.linear_model import LinearModel
from compressor.search.objective import Objective
from compressor.search.space import RankSpace, between, with_rank

DIRECTIONS = 5
MAX_SWEEPS = 20
CAUTION = 1.0
MIN_GAIN = 1e-9


def descend(
    space: RankSpace,
    objective: Objective,
    plan: Ranks,
    model: LinearModel,
    per_norm: float = 1.0,
) -> Ranks:
    """The plan (d,) that is better than `plan` by the most, less chance, one layer after the other until none is better
    alone.

    Few images let layers seem to cancel one another's changes. What counts is therefore the mean gain in J over the
    model's images less CAUTION of its standard errors.

    Args:
        per_norm: how much L comes with a function norm of 1.
    """
    changes = [
        {int(rank): np.zeros_like(model.residuals), **rows} for rank, rows in zip(plan, model.changes, strict=True)
    ]
    plan, residuals, unchanged = plan.copy(), model.residuals, (model.residuals**2).sum(1)

    def value(ranks: Ranks, outputs: Array) -> float:
        losses = (outputs**2).sum(1)
        chance = (losses - unchanged).std(ddof=1) / np.sqrt(len(losses))
        return float(objective.value(per_norm * (losses.mean() + CAUTION * chance), space.ratio(ranks[None])[0]))

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


def on_the_way(space: RankSpace, plan: Ranks, target: Ranks) -> list[Ranks]:
    """The plan, others on the way to `target` (d,), and this: a model is trusted the less the farther it leads."""
    plans = between(space, plan, target)
    return list({ranks.tobytes(): ranks for ranks in plans}.values())
