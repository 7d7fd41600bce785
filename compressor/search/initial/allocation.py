"""Initial plans from one-at-a-time sensitivities: a trade-off curve, then ranks allocated anew within its best plan.

A Gaussian process over twenty ranks needs good plans to start from. A few images shared by all single-layer evaluations
order the ranks well. Losses of many compressed layers, however, exceed the sum of the single ones several times. Plans
along the trade-off curve are therefore evaluated jointly. Around the best, layers are measured once more, each within
that plan, and the ranks allocated anew.
"""

from collections.abc import Callable

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.losses import Losses
from compressor.search.initial.sensitivity import MeasureLosses, interpolate_table
from compressor.search.objective import Objective
from compressor.search.space import CONTEXT_STEPS, RankSpace, between, nearest, with_rank
from compressor.search.surrogate.additive_prior import LOSS_FLOOR, interpolate

MIN_WEIGHT = 4.0**-2  # of the losses against the size, as a multiple of gamma
CURVE_WEIGHTS = np.array([*MIN_WEIGHT * 4.0 ** np.arange(6), 0.0])  # 0: rank 1 everywhere
NUM_CURVE_REFINEMENTS = 3
NUM_REALLOCATIONS = 2
CONTEXT_IMAGES = 20  # of the uncounted evaluations within a plan
SPARSITY_LEVELS = (3, 5, 7, 10, 13, 16, 18)  # at which pruning is measured


def allocate(space: RankSpace, sensitivities: list[Array], weight: float) -> Ranks:
    """The plan (d,) that minimizes R + weight * sum of single-layer losses, layer by layer (Lagrangian allocation).

    Args:
        space: the ranks.
        sensitivities: per layer at ranks 1..break-even rank (r,).
        weight: of the losses.
    """
    costs = [space.layer_ratio(i) + weight * table for i, table in enumerate(sensitivities)]
    best = [choices[np.argmin(cost[choices - 1])] for choices, cost in zip(space.choices, costs, strict=True)]
    return np.array(best, dtype=np.int64)


def evaluate_along_curve(
    space: RankSpace, objective: Objective, sensitivities: list[Array], evaluate: Callable[[Ranks], float]
) -> Ranks:
    """Evaluate plans along the trade-off curve, closer together around the best.

    Args:
        space: the ranks.
        objective: J, whose gamma scales the weights.
        sensitivities: per layer at ranks 1..break-even rank (r,).
        evaluate: the value observed of a plan (d,), the larger the better.

    Returns:
        The plan (d,) of largest value.
    """
    seen: dict[bytes, tuple[float, float, Ranks]] = {}

    def visit(weight: float) -> None:
        ranks = allocate(space, sensitivities, weight * objective.gamma)
        if ranks.tobytes() not in seen:
            seen[ranks.tobytes()] = (evaluate(ranks), weight, ranks)

    for weight in CURVE_WEIGHTS:
        visit(weight)
    step = 2.0
    for _ in range(NUM_CURVE_REFINEMENTS):
        _, best_weight, _ = max(seen.values(), key=lambda row: row[0])
        best_weight = best_weight or MIN_WEIGHT / step
        visit(best_weight * step)
        visit(best_weight / step)
        step **= 0.5
    return max(seen.values(), key=lambda row: row[0])[2]


def choose_sparsity(
    space: RankSpace, objective: Objective, plan: Ranks, measure: MeasureLosses, per_norm: float = 1.0
) -> tuple[Ranks, Array]:
    """Choose the level of sparsity within a plan: pruning harms a compressed network more than the original.

    Args:
        space: whose last dimension is sparsity.
        objective: J.
        plan: the plan (d,).
        measure: gives losses of plans on images that are the same for all.
        per_norm: L per function norm.

    Returns:
        The plan (d,) with the best level, and the function norm that every level adds (levels,), log-linear between
        those measured.
    """
    levels = SPARSITY_LEVELS
    norms = [one.function_norm for one in measure([plan, *(with_rank(plan, -1, level) for level in levels)])]
    unpruned, last = norms[0], int(space.break_even_ranks[-1])
    added = interpolate_table(np.array(levels), np.maximum(np.array(norms[1:]) - unpruned, LOSS_FLOOR), last)
    choices = space.choices[-1]
    plans = np.where(np.arange(space.num_dims) == space.num_dims - 1, choices[:, None], plan)
    values = objective.value(per_norm * (unpruned + added[choices - 1]), space.ratio(plans))
    return plans[np.argmax(values)], added


def reallocate(
    space: RankSpace,
    objective: Objective,
    plan: Ranks,
    evaluate: Callable[[Ranks], Losses],
    measure: MeasureLosses,
    per_norm: float = 1.0,
) -> Ranks:
    """Allocate ranks anew with the sensitivities that layers have within a plan.

    Beside other compressed layers, a layer's loss is not its loss alone. Each layer is measured one step below and
    above its rank and takes the best rank between. As layers move together, plans on the way to these ranks are
    evaluated.

    Args:
        space: the ranks.
        objective: J.
        plan: the plan (d,).
        evaluate: losses of a plan (d,), on images that are the same in this call.
        measure: losses of plans on the first CONTEXT_IMAGES of these images.
        per_norm: L per function norm; what one layer adds shows in the function norm alone.

    Returns:
        The plan (d,) of largest observed J.
    """
    losses = {plan.tobytes(): evaluate(plan)}
    unchanged = per_norm * float(losses[plan.tobytes()].distances[:CONTEXT_IMAGES].mean())
    around = [_around(choices, int(rank)) for choices, rank in zip(space.choices, plan, strict=True)]
    changed = [with_rank(plan, layer, rank) for layer, ranks in enumerate(around) for rank in ranks]
    norms = iter([per_norm * one.function_norm for one in measure(changed)])
    target = plan.copy()
    for layer, others in enumerate(around):
        known = {int(plan[layer]): unchanged} | {rank: next(norms) for rank in others}
        target[layer] = _best_in_context(space, objective, plan, layer, known)
    plans = {ranks.tobytes(): ranks for ranks in between(space, plan, target)}
    for key, ranks in plans.items():
        if key not in losses:
            losses[key] = evaluate(ranks)

    def observed(key: bytes) -> float:
        ratio = space.ratio(plans[key][None])[0]
        return float(objective.value(np.array(losses[key].mean), np.array(ratio)))

    return plans[max(plans, key=observed)]


def _around(choices: Ranks, rank: int) -> list[int]:
    """A layer's choices one step below and above its rank, without the rank itself."""
    return [other for other in dict.fromkeys(nearest(choices, rank, CONTEXT_STEPS)) if other != rank]


def _best_in_context(space: RankSpace, objective: Objective, plan: Ranks, layer: int, norms: dict[int, float]) -> int:
    """The rank of one layer that maximizes J between the ranks whose L is known; log L is linear in log rank."""
    choices = space.choices[layer]
    known = np.array(sorted(norms))
    inner = choices[(choices >= known[0]) & (choices <= known[-1])]
    expected = interpolate(inner, known, np.array([norms[int(value)] for value in known]))
    ratios = space.ratio(np.where(np.arange(space.num_dims) == layer, inner[:, None], plan))
    return int(inner[np.argmax(objective.value(expected, ratios))])
