"""Where the search begins: plans from one-layer-at-a-time sensitivities, or at random as in the paper.

A Gaussian process over twenty ranks is lost without a start. A few images shared by all single-layer probes
rank the ranks well; the probes' trade-off curve is then looked at jointly, because losses of many compressed
layers exceed the sum of the single ones several times. Around the best of them the layers are measured once
more, each within the plan, and the ranks allocated anew.
"""

from collections.abc import Callable

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.losses import Losses
from compressor.search.initial.sensitivity import MeasureLayers, every_rank
from compressor.search.objective import Objective
from compressor.search.space import CONTEXT_STEPS, RankSpace, between, nearest, with_rank
from compressor.search.surrogate.additive_prior import LOSS_FLOOR, interpolate

LIGHTEST_WEIGHT = 4.0**-2
CURVE_WEIGHTS = np.array([*LIGHTEST_WEIGHT * 4.0 ** np.arange(6), 0.0])  # 0: rank 1 everywhere
NUM_REFINEMENTS = 3
NUM_REALLOCATIONS = 2
CONTEXT_IMAGES = 20
SPARSITY_LEVELS = (3, 5, 7, 10, 13, 16, 18)

Evaluation = Callable[[Ranks], float]


def allocate(space: RankSpace, sensitivities: list[Array], weight: float) -> Ranks:
    """Ranks (d,) minimizing R + weight * sum of single-layer losses, layer by layer (Lagrangian allocation)."""
    costs = [space.layer_ratio(i) + weight * table for i, table in enumerate(sensitivities)]
    best = [choices[np.argmin(cost[choices - 1])] for choices, cost in zip(space.choices, costs, strict=True)]
    return np.array(best, dtype=np.int64)


def evaluate_along_curve(
    space: RankSpace, objective: Objective, sensitivities: list[Array], evaluation: Evaluation
) -> Ranks:
    """Evaluation at plans along the trade-off curve, finer around the best; returns the best by observation."""
    seen: dict[bytes, tuple[float, float, Ranks]] = {}

    def visit(weight: float) -> None:
        ranks = allocate(space, sensitivities, weight * objective.gamma)
        if ranks.tobytes() not in seen:
            seen[ranks.tobytes()] = (evaluation(ranks), weight, ranks)

    for weight in CURVE_WEIGHTS:
        visit(weight)
    step = 2.0
    for _ in range(NUM_REFINEMENTS):
        _, best_weight, _ = max(seen.values(), key=lambda row: row[0])
        best_weight = best_weight or LIGHTEST_WEIGHT / step
        visit(best_weight * step)
        visit(best_weight / step)
        step **= 0.5
    return max(seen.values(), key=lambda row: row[0])[2]


def choose_sparsity(
    space: RankSpace, objective: Objective, plan: Ranks, evaluate_uncounted: MeasureLayers, per_norm: float = 1.0
) -> tuple[Ranks, Array]:
    """The plan (d,) with the best level of its last coordinate, and the function norm that every level adds (levels,).

    Pruning takes more from a network whose layers are compressed than from the original: it is looked at within the
    plan, at some levels on images that all glances share, log-linear in between.
    """
    levels = SPARSITY_LEVELS
    norms = [one.function_norm for one in evaluate_uncounted([plan, *(with_rank(plan, -1, level) for level in levels)])]
    here, break_even_rank = norms[0], int(space.break_even_ranks[-1])
    added = every_rank(np.array(levels), np.maximum(np.array(norms[1:]) - here, LOSS_FLOOR), break_even_rank)
    choices = space.choices[-1]
    plans = np.where(np.arange(space.num_dims) == space.num_dims - 1, choices[:, None], plan)
    values = objective.value(per_norm * (here + added[choices - 1]), space.ratio(plans))
    return plans[np.argmax(values)], added


def reallocate(
    space: RankSpace,
    objective: Objective,
    plan: Ranks,
    evaluation: Callable[[Ranks], Losses],
    evaluate_uncounted: MeasureLayers,
    per_norm: float = 1.0,
) -> Ranks:
    """Allocate ranks anew with the sensitivities that layers have within `plan` (d,); the best plan by observation.

    A layer's loss beside all others compressed is not its loss alone. Each layer is glanced at a step below and above
    its rank in the plan, on images that all glances share, and takes the best rank between; then plans on the way there
    are looked at, since the layers move together.

    Args:
        look: a plan's losses on images that all looks of this call share.
        glance: the same on the first CONTEXT_IMAGES of these images.
        per_norm: how much L comes with a function norm of 1; what one layer adds is seen in the function norm alone.
    """
    losses = {plan.tobytes(): evaluation(plan)}
    here = per_norm * float(losses[plan.tobytes()].distances[:CONTEXT_IMAGES].mean())
    around = [_around(choices, int(rank)) for choices, rank in zip(space.choices, plan, strict=True)]
    changed = [with_rank(plan, layer, rank) for layer, ranks in enumerate(around) for rank in ranks]
    norms = iter([per_norm * one.function_norm for one in evaluate_uncounted(changed)])
    target = plan.copy()
    for layer, others in enumerate(around):
        known = {int(plan[layer]): here} | {rank: next(norms) for rank in others}
        target[layer] = _best_in_context(space, objective, plan, layer, known)
    plans = {ranks.tobytes(): ranks for ranks in between(space, plan, target)}
    for key, ranks in plans.items():
        if key not in losses:
            losses[key] = evaluation(ranks)

    def observed(key: bytes) -> float:
        ratio = space.ratio(plans[key][None])[0]
        return float(objective.value(np.array(losses[key].mean), np.array(ratio)))

    return plans[max(plans, key=observed)]


def _around(choices: Ranks, rank: int) -> list[int]:
    """A layer's choices a step below and above its rank, without the rank itself."""
    return [other for other in dict.fromkeys(nearest(choices, rank, CONTEXT_STEPS)) if other != rank]


def _best_in_context(space: RankSpace, objective: Objective, plan: Ranks, layer: int, norms: dict[int, float]) -> int:
    """The rank of one layer that maximizes J between the ranks whose L is known, log L being linear in log rank."""
    choices = space.choices[layer]
    known = np.array(sorted(norms))
    between = choices[(choices >= known[0]) & (choices <= known[-1])]
    expected = interpolate(between, known, np.array([norms[int(value)] for value in known]))
    ratios = space.ratio(np.where(np.arange(space.num_dims) == layer, between[:, None], plan))
    return int(between[np.argmax(objective.value(expected, ratios))])
