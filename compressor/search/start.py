"""Where the search begins: plans from one-layer-at-a-time sensitivities, or at random as in the paper.

A Gaussian process over twenty ranks is lost without a start. A few images shared by all single-layer probes
rank the ranks well; the probes' trade-off curve is then looked at jointly, because losses of many compressed
layers exceed the sum of the single ones several times. Around the best of them the layers are measured once
more, each within the plan, and the ranks allocated anew.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from compressor.fidelity import Losses
from compressor.objective import Objective
from compressor.search.gp import Array
from compressor.search.linear_model import Linearise
from compressor.search.space import Ranks, RankSpace

PROBE_RANKS = 8
PROBE_IMAGES = 5
MODEL_IMAGES, MODEL_DIRECTIONS = 20, 3  # of the linear model around the dense network
FEW_PER_LAYER = 5  # images, at most, of the first linear models: few layers are told apart by few images
LIGHTEST_WEIGHT = 4.0**-2
CURVE_WEIGHTS = np.array([*LIGHTEST_WEIGHT * 4.0 ** np.arange(6), 0.0])  # 0: rank 1 everywhere
NUM_REFINEMENTS = 3
NUM_REALLOCATIONS = 2
CONTEXT_IMAGES = 20
CONTEXT_STEP = 1.4  # in rank, up and down
CONTEXT_STEPS = (1 / CONTEXT_STEP, CONTEXT_STEP)
SHARES_OF_THE_WAY = (0.35, 0.7)
LEAST_SHARE_LEFT = 0.01  # of a plan's loss, where one of its layers takes some away
MOST_TAKEN = 2.0  # times what a layer was seen to take away, at ranks still higher
SPARSITY_LEVELS = (3, 5, 7, 10, 13, 16, 18)
LOSS_FLOOR = 1e-12
LEAST_PER_NORM = 1e-6  # where compression seems to lower the risk

Probe = Callable[[list[Ranks]], Iterable[Losses]]
Look = Callable[[Ranks], float]


def few_images(most: float, num_layers: int) -> int:
    """Images for a first linear model: at most so many, and fewer for few layers."""
    return max(2, min(int(most), FEW_PER_LAYER * num_layers))


def probe_sensitivities(space: RankSpace, probe: Probe) -> list[list[float]]:
    """Function norm with one layer factorised and all others dense, for every layer at `probed_ranks`.

    Whatever the loss of the search is: what a layer alone adds to a risk is lost in the noise of a few images.
    """
    grids = probed_ranks(space)
    norms = iter(probe([with_rank(space.caps, layer, rank) for layer, grid in enumerate(grids) for rank in grid]))
    return [[next(norms).function_norm for _ in grid] for grid in grids]


def probed_ranks(space: RankSpace) -> list[list[int]]:
    """The ranks at which every layer alone is measured, geometrically spaced."""
    return [_geometric(choices, cap) for choices, cap in zip(space.choices, space.caps, strict=True)]


def tables_of(space: RankSpace, norms: Sequence[Sequence[float]]) -> list[Array]:
    """Losses of single layers at ranks 1..cap (cap,) from those at `probed_ranks`: log-linear in between, never
    increasing with the rank."""
    rows = zip(probed_ranks(space), norms, space.caps, strict=True)
    return [every_rank(np.array(grid), np.array(known), int(cap)) for grid, known, cap in rows]


def linear_sensitivities(space: RankSpace, linearise: Linearise, images: np.ndarray) -> tuple[list[list[float]], int]:
    """The same function norms at `probed_ranks`, to first order around the dense network, and the image passes they
    took; no norms where a layer moves nothing, because the network lets no slope through."""
    model = linearise(space.caps, probed_ranks(space), images, MODEL_DIRECTIONS)
    norms = [list(row.values()) for row in model.norms_alone()]
    return (norms if all(max(row) > LOSS_FLOOR for row in norms) else []), model.passes


def with_rank(plan: Ranks, layer: int, rank: int) -> Ranks:
    """The plan (d,) with another rank of one layer."""
    changed = plan.copy()
    changed[layer] = rank
    return changed


def every_rank(ranks: Ranks, norms: Array, cap: int) -> Array:
    """Losses at ranks 1..cap (cap,) from those at `ranks` (n,), rising; none at the cap, which is dense."""
    table = interpolate(np.arange(1, cap + 1), ranks, norms)
    table[-1] = 0.0
    return table


def falling(norms: Array) -> Array:
    """Losses (n,) at rising ranks, positive and never increasing."""
    return np.minimum.accumulate(np.maximum(norms, LOSS_FLOOR))


def interpolate(wanted: Ranks, ranks: Ranks, norms: Array) -> Array:
    """Losses at `wanted` (m,) from those at `ranks` (n,), rising: log-linear, never increasing with the rank."""
    return np.asarray(np.exp(np.interp(np.log(wanted), np.log(ranks), np.log(falling(norms)))))


def _geometric(choices: Ranks, cap: int) -> list[int]:
    """Up to PROBE_RANKS of the lattice's ranks, geometrically spaced, without dense."""
    wanted = np.geomspace(1, cap, PROBE_RANKS + 1)
    nearest = choices[np.abs(choices[:, None] - wanted).argmin(0)]
    return [int(rank) for rank in np.unique(nearest[nearest < cap])]


def around_plan(
    plan: Ranks, norm: float, norms_alone: Sequence[Mapping[int, float]], sensitivities: Sequence[Array]
) -> Callable[[Ranks], Array]:
    """The loss expected of ranks (..., d) in the neighbourhood of a plan (d,) whose loss is `norm`.

    What a layer adds at another rank it was found to add in the plan's company: at ranks near the plan's, log-linear in
    between; beyond these as its loss alone goes on (`sensitivities`). In company a layer adds several times what it
    does alone, or less where it cancels what others do. So each would take away what several add together: what layers
    add is summed, what they take away are shares of what the others leave.
    """
    rows = zip(plan, norms_alone, sensitivities, strict=True)
    added = [_added_around(int(rank), norm, near, alone) for rank, near, alone in rows]
    more = sum_of([np.maximum(table, 0.0) for table in added])
    shares_left = [np.clip(1.0 + table / max(norm, LOSS_FLOOR), LEAST_SHARE_LEFT, 1.0) for table in added]
    log_share_left = sum_of([np.log(share) for share in shares_left])
    return lambda ranks: norm * np.exp(log_share_left(ranks)) + more(ranks)


def _added_around(own: int, norm: float, near: Mapping[int, float], alone: Array) -> Array:
    known = np.array(sorted([own, *near]))
    lowest, highest, ranks = known[0], known[-1], np.arange(1, len(alone) + 1)
    added = interpolate(ranks, known, np.array([{own: norm, **near}[int(rank)] for rank in known])) - norm
    here, at_lowest, at_highest = alone[own - 1], alone[lowest - 1], alone[highest - 1]
    # Few images let a rank below seem no worse: further below it is at least as bad as alone.
    below = max(1.0, added[lowest - 1] / (at_lowest - here)) if at_lowest > here else 1.0
    above = np.clip((here - alone) / max(here - at_highest, LOSS_FLOOR), 1.0, MOST_TAKEN)
    return np.select(
        [ranks < lowest, ranks > highest],
        [added[lowest - 1] + below * (alone - at_lowest), added[highest - 1] * above],
        added,
    )


def sum_of(sensitivities: Sequence[Array]) -> Callable[[Ranks], Array]:
    """The sum over the layers (...,) of their single-layer losses, as a function of ranks (..., d)."""
    by_layer = looked_up(sensitivities)
    return lambda ranks: np.asarray(by_layer(ranks).sum(-1))


def looked_up(tables: Sequence[Array]) -> Callable[[Ranks], Array]:
    """Every layer's entry (..., d) of its table (cap,), as a function of ranks (..., d)."""
    table = np.concatenate(tables)
    offsets = np.cumsum([-1, *(len(entries) for entries in tables[:-1])])
    return lambda ranks: np.asarray(table[ranks + offsets])


def allocate(space: RankSpace, sensitivities: list[Array], weight: float) -> Ranks:
    """Ranks (d,) minimising R + weight * sum of single-layer losses, layer by layer (Lagrangian allocation)."""
    costs = [space.layer_ratio(i) + weight * table for i, table in enumerate(sensitivities)]
    best = [choices[np.argmin(cost[choices - 1])] for choices, cost in zip(space.choices, costs, strict=True)]
    return np.array(best, dtype=np.int64)


def look_along_curve(space: RankSpace, objective: Objective, sensitivities: list[Array], look: Look) -> Ranks:
    """Look at plans along the trade-off curve, finer around the best; returns the best by observation."""
    seen: dict[bytes, tuple[float, float, Ranks]] = {}

    def visit(weight: float) -> None:
        ranks = allocate(space, sensitivities, weight * objective.gamma)
        if ranks.tobytes() not in seen:
            seen[ranks.tobytes()] = (look(ranks), weight, ranks)

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
    space: RankSpace, objective: Objective, plan: Ranks, glance: Probe, per_norm: float = 1.0
) -> tuple[Ranks, Array]:
    """The plan (d,) with the best level of its last coordinate, and the function norm that every level adds (levels,).

    Pruning takes more from a network whose layers are compressed than from the original: it is looked at within the
    plan, at some levels on images that all glances share, log-linear in between.
    """
    levels = SPARSITY_LEVELS
    norms = [one.function_norm for one in glance([plan, *(with_rank(plan, -1, level) for level in levels)])]
    here, cap = norms[0], int(space.caps[-1])
    added = every_rank(np.array(levels), np.maximum(np.array(norms[1:]) - here, LOSS_FLOOR), cap)
    choices = space.choices[-1]
    plans = np.where(np.arange(space.num_dims) == space.num_dims - 1, choices[:, None], plan)
    values = objective.value(per_norm * (here + added[choices - 1]), space.ratio(plans))
    return plans[np.argmax(values)], added


def loss_per_norm(all_losses: list[Losses], norms: Array | None = None) -> float:
    """How much L comes with a function norm of 1, over the half of the looks that lose least; 1 for the function norm.

    A destroyed network cannot be destroyed further, and would say little about a useful one. `norms` (n,) are those of
    the looks, or what is to stand for them.
    """
    found = np.array([losses.function_norm for losses in all_losses])
    means = np.array([losses.mean for losses in all_losses])
    least = found <= np.median(found)
    total = (found if norms is None else norms)[least].sum()
    return max(float(means[least].sum() / total), LEAST_PER_NORM) if total > 0 else 1.0


def reallocate(
    space: RankSpace,
    objective: Objective,
    plan: Ranks,
    look: Callable[[Ranks], Losses],
    glance: Probe,
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
    losses = {plan.tobytes(): look(plan)}
    here = per_norm * float(losses[plan.tobytes()].distances[:CONTEXT_IMAGES].mean())
    around = [_around(choices, int(rank)) for choices, rank in zip(space.choices, plan, strict=True)]
    changed = [with_rank(plan, layer, rank) for layer, ranks in enumerate(around) for rank in ranks]
    norms = iter([per_norm * one.function_norm for one in glance(changed)])
    target = plan.copy()
    for layer, others in enumerate(around):
        known = {int(plan[layer]): here} | {rank: next(norms) for rank in others}
        target[layer] = _best_in_context(space, objective, plan, layer, known)
    plans = {ranks.tobytes(): ranks for ranks in between(space, plan, target)}
    for key, ranks in plans.items():
        if key not in losses:
            losses[key] = look(ranks)

    def observed(key: bytes) -> float:
        ratio = space.ratio(plans[key][None])[0]
        return float(objective.value(np.array(losses[key].mean), np.array(ratio)))

    return plans[max(plans, key=observed)]


def nearest(choices: Ranks, rank: int, strides: Sequence[float]) -> list[int]:
    """A layer's choices about these many times as large as a rank."""
    return [int(choices[np.abs(np.log(choices) - np.log(rank * stride)).argmin()]) for stride in strides]


def _around(choices: Ranks, rank: int) -> list[int]:
    """A layer's choices a step below and above its rank, without the rank itself."""
    return [other for other in dict.fromkeys(nearest(choices, rank, CONTEXT_STEPS)) if other != rank]


def _best_in_context(space: RankSpace, objective: Objective, plan: Ranks, layer: int, norms: dict[int, float]) -> int:
    """The rank of one layer that maximises J between the ranks whose L is known, log L being linear in log rank."""
    choices = space.choices[layer]
    known = np.array(sorted(norms))
    between = choices[(choices >= known[0]) & (choices <= known[-1])]
    expected = interpolate(between, known, np.array([norms[int(value)] for value in known]))
    ratios = space.ratio(np.where(np.arange(space.num_dims) == layer, between[:, None], plan))
    return int(between[np.argmax(objective.value(expected, ratios))])


def between(space: RankSpace, plan: Ranks, target: Ranks) -> list[Ranks]:
    """The plan (d,), plans on the way to `target` (d,), and this: layers move together."""
    thetas = space.encode(np.stack([plan, target]))
    on_the_way = [space.decode((1 - share) * thetas[:1] + share * thetas[1:])[0] for share in SHARES_OF_THE_WAY]
    return [plan, *on_the_way, target]
