"""Initial plans from one-at-a-time sensitivities: a trade-off curve, then ranks allocated anew within its best plan.

A Gaussian process over twenty ranks needs good plans to start from. A few images shared by all single-layer evaluations
order the ranks well. Losses of many compressed layers, however, exceed the sum of the single ones several times. Plans
along the trade-off curve are therefore evaluated jointly. Around the best, layers are measured once more, each within
that plan, and the ranks allocated anew.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.losses import Losses
from compressor.search.exchange import Moves, exchange_until_best
from compressor.search.initial.sensitivity import MeasureLosses, interpolate_table
from compressor.search.objective import Objective
from compressor.search.space import CONTEXT_STEPS, RankSpace, between, nearest, with_rank
from compressor.search.surrogate.additive_prior import LOSS_FLOOR, interpolate

MIN_WEIGHT = 4.0**-2  # of the losses against the size, as a multiple of gamma
CURVE_WEIGHTS = np.array([*MIN_WEIGHT * 4.0 ** np.arange(6), 0.0])  # 0: rank 1 everywhere
NUM_CURVE_REFINEMENTS = 3
NUM_REALLOCATIONS = 2
CONTEXT_IMAGES = 20  # of the uncounted evaluations within a plan
CURVE_PLANS = 7  # evaluated first where positions along the curve are limits of R
POWERS = (1.0, 0.5, 2.0)  # of single-layer losses whose sum is least within a limit
CURVE_STEP = 2.0  # factor of a weight beside the best
MAX_SWEEPS = 20  # over layers, where they share costs
MIN_TOTAL_WEIGHT, NUM_HALVINGS = 1e-12, 50  # of the losses in all, and of the logarithm between it and its inverse
SPARSITY_LEVELS = (3, 5, 7, 10, 13, 16, 18)  # at which pruning is measured


Option = tuple[Ranks, Array]
"""Ranks of one layer (r,), and what each loses (r,)."""


def allocate(space: RankSpace, sensitivities: list[Array], weight: float) -> Ranks:
    """The plan (d,) that minimizes R + weight * sum of single-layer losses, layer by layer (Lagrangian allocation).

    Args:
        space: the ranks.
        sensitivities: per layer at ranks 1..break-even rank (r,).
        weight: of the losses.
    """
    return _minimize(space, options_of(space, sensitivities), weight)


def allocate_within(space: RankSpace, options: Sequence[Option], limit: float) -> Ranks:
    """The plan (d,) of least sum of losses with R at most `limit`; that of the lowest ranks where there is none.

    Lagrangian allocation at the largest weight that keeps to the limit, then exchanges between layers: where the
    trade-off is not convex, no weight leads to the best plan.

    Args:
        space: the ranks.
        options: per layer the ranks to choose from (r,), and what each loses (r,).
        limit: of R.
    """
    lowest, highest = np.log(MIN_TOTAL_WEIGHT), -np.log(MIN_TOTAL_WEIGHT)
    scale = max(sum(float(losses.max()) for _, losses in options), LOSS_FLOOR)
    chosen = _minimize(space, options, 0.0)
    for _ in range(NUM_HALVINGS):
        middle = (lowest + highest) / 2
        plan = _minimize(space, options, np.exp(middle) / scale)
        fits = space.ratio(plan[None])[0] <= limit
        chosen = plan if fits else chosen
        lowest, highest = (middle, highest) if fits else (lowest, middle)
    if space.ratio(chosen[None])[0] > limit:
        return chosen
    return _exchange_ranks(space, options, chosen, limit)


def _minimize(space: RankSpace, options: Sequence[Option], weight: float) -> Ranks:
    """The plan (d,) that minimizes R + weight * sum of losses, one layer after the other.

    Where groups of hidden channels share costs, it is found again beside the others' widths until none changes.
    """
    plan = space.break_even_ranks
    for _ in range(MAX_SWEEPS if space.shared else 1):
        before, plan = plan, plan.copy()
        for layer, (ranks, losses) in enumerate(options):
            plan[layer] = ranks[(space.layer_ratio(layer, plan)[ranks - 1] + weight * losses).argmin()]
        if (plan == before).all():
            break
    return plan


def _exchange_ranks(space: RankSpace, options: Sequence[Option], plan: Ranks, limit: float) -> Ranks:
    """The plan (d,) after exchanges between layers, until none lowers the sum of losses."""
    layers = np.repeat(np.arange(space.num_dims), [len(ranks) for ranks, _ in options])
    ranks, losses = (np.concatenate(part) for part in zip(*options, strict=True))
    tables = [dict(zip(ranks.tolist(), losses.tolist(), strict=True)) for ranks, losses in options]

    def moves(plan: Ranks) -> Moves:
        own = [int(np.flatnonzero(choices == rank)[0]) for (choices, _), rank in zip(options, plan, strict=True)]
        gains = np.array([losses[index] for (_, losses), index in zip(options, own, strict=True)])[layers] - losses
        ratios = [space.layer_ratio(layer, plan)[ranks - 1] for layer, (ranks, _) in enumerate(options)]
        costs = np.concatenate(ratios)
        changes = costs - np.array([ratio[index] for ratio, index in zip(ratios, own, strict=True)])[layers]
        return Moves(layers, ranks, gains, changes, limit - float(space.ratio(plan[None])[0]))

    def values(plans: Ranks) -> Array:
        return -np.array([sum(table[rank] for table, rank in zip(tables, row, strict=True)) for row in plans.tolist()])

    return exchange_until_best(plan, moves, values, keeping=lambda plans: space.keeping(plans, limit))


def evaluate_within(
    space: RankSpace, limit: float, sensitivities: list[Array], evaluate: Callable[[Ranks], float]
) -> Ranks:
    """Evaluate plans at a limit of R: of least sum of single-layer losses, and of POWERS of them.

    Joint losses are no sums.

    Args:
        space: the ranks.
        limit: of R.
        sensitivities: per layer at ranks 1..break-even rank (r,).
        evaluate: the value observed of a plan (d,), the larger the better.

    Returns:
        The plan (d,) of largest value.
    """
    plans = [allocate_within(space, options_of(space, sensitivities, power), limit) for power in POWERS]
    return max({ranks.tobytes(): ranks for ranks in plans}.values(), key=evaluate)


def evaluate_along_limits(space: RankSpace, sensitivities: list[Array], evaluate: Callable[[Ranks], float]) -> Ranks:
    """`evaluate_along_curve` by limits of R, from rank 1 everywhere on.

    Args:
        space: of the ranks.
        sensitivities: per layer, L with that layer alone compressed, at ranks 1, 2, ...
        evaluate: gives what a plan (d,) is worth, to be maximized.
    """
    options = options_of(space, sensitivities)
    lowest = float(space.ratio(np.ones((1, space.num_dims), dtype=np.int64))[0])
    limits = np.geomspace(lowest, 1.0, CURVE_PLANS, endpoint=False)
    step = float(limits[-1] ** -0.5)
    return _evaluate_closer(lambda limit: allocate_within(space, options, limit), limits.tolist(), step, evaluate)


def options_of(space: RankSpace, sensitivities: list[Array], power: float = 1.0) -> list[Option]:
    """The ranks of each layer, and their losses by a table of each (break-even rank,), to this power."""
    return [(choices, table[choices - 1] ** power) for choices, table in zip(space.choices, sensitivities, strict=True)]


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
    return _evaluate_closer(
        lambda weight: allocate(space, sensitivities, weight * objective.gamma),
        CURVE_WEIGHTS.tolist(),
        CURVE_STEP,
        evaluate,
    )


def _evaluate_closer(
    plan_at: Callable[[float], Ranks], positions: Sequence[float], step: float, evaluate: Callable[[Ranks], float]
) -> Ranks:
    """The best of the plans (d,) at the positions, then at a factor of `step`, and less, beside the best."""
    seen: dict[bytes, tuple[float, float, Ranks]] = {}

    def visit(position: float) -> None:
        ranks = plan_at(position)
        if ranks.tobytes() not in seen:
            seen[ranks.tobytes()] = (evaluate(ranks), position, ranks)

    for position in positions:
        visit(position)
    for _ in range(NUM_CURVE_REFINEMENTS):
        _, best, _ = max(seen.values(), key=lambda row: row[0])
        best = best or MIN_WEIGHT / step
        visit(best * step)
        visit(best / step)
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
    known = [
        {int(plan[layer]): unchanged} | {rank: next(norms) for rank in others} for layer, others in enumerate(around)
    ]
    target = _best_in_context(space, objective, plan, known)
    plans = {ranks.tobytes(): ranks for ranks in between(space, plan, target, objective.limit)}
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


def _best_in_context(
    space: RankSpace, objective: Objective, plan: Ranks, known: Sequence[Mapping[int, float]]
) -> Ranks:
    """The plan (d,) of the best ranks between those whose L is known; log L is linear in log rank.

    Every layer maximizes J by itself. Within a limit of R the sum of L is least.
    """
    options: list[Option] = []
    for choices, norms in zip(space.choices, known, strict=True):
        ranks = np.array(sorted(norms))
        inner = choices[(choices >= ranks[0]) & (choices <= ranks[-1])]
        options.append((inner, interpolate(inner, ranks, np.array([norms[int(value)] for value in ranks]))))
    if objective.limit is not None:
        return allocate_within(space, options, objective.limit)
    best = plan.copy()
    for layer, (inner, expected) in enumerate(options):
        ratios = space.ratio(np.where(np.arange(space.num_dims) == layer, inner[:, None], plan))
        best[layer] = inner[np.argmax(objective.value(expected, ratios))]
    return best
