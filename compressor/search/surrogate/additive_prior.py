"""A prior mean of L from measured sensitivities: sums over layers, and what layers add around a good plan."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.losses import Losses

MIN_SHARE_LEFT = 0.01  # of a plan's loss, after a layer at a higher rank takes some of it away
MAX_REDUCTION = 2.0  # beyond the highest rank measured, in multiples of the reduction there
LOSS_FLOOR = 1e-12
MIN_LOSS_PER_NORM = 1e-6  # where compression seems to lower the risk


def non_increasing(losses: Array) -> Array:
    """Losses (n,) at rising ranks, made positive and non-increasing."""
    return np.minimum.accumulate(np.maximum(losses, LOSS_FLOOR))


def interpolate(at: Ranks, ranks: Ranks, losses: Array) -> Array:
    """Losses (m,), log-linear between measured ones.

    Args:
        at: ranks (m,).
        ranks: where losses were measured (n,), rising.
        losses: measured there (n,); made non-increasing first.
    """
    return np.asarray(np.exp(np.interp(np.log(at), np.log(ranks), np.log(non_increasing(losses)))))


def around_plan(
    plan: Ranks, loss: float, conditional: Sequence[Mapping[int, float]], single_layer: Sequence[Array]
) -> Callable[[Ranks], Array]:
    """A prior mean of L around a plan, from conditional sensitivities: one layer's rank changed, all others the plan's.

    Between the ranks measured a layer's change of the loss is log-linear; beyond them it continues as the single-layer
    sensitivity does. Given the plan, a layer adds several times what it adds alone, or less where it cancels errors of
    others, and each layer alone could take away what several add together. So increases are summed, and reductions
    multiply, each a share of what the others leave.

    Args:
        plan: ranks (d,).
        loss: L of the plan.
        conditional: per layer, L of the plan with that layer at another rank, by rank.
        single_layer: per layer, L with that layer alone compressed, at ranks 1, 2, ...

    Returns:
        L (...,) as a function of ranks (..., d).
    """
    rows = zip(plan, conditional, single_layer, strict=True)
    changes = [_changes(int(rank), loss, measured, alone) for rank, measured, alone in rows]
    increase = sum_of([np.maximum(change, 0.0) for change in changes])
    shares_left = [np.clip(1.0 + change / max(loss, LOSS_FLOOR), MIN_SHARE_LEFT, 1.0) for change in changes]
    log_share_left = sum_of([np.log(share) for share in shares_left])
    return lambda ranks: loss * np.exp(log_share_left(ranks)) + increase(ranks)


def _changes(rank: int, loss: float, measured: Mapping[int, float], alone: Array) -> Array:
    """What a layer adds to the loss of a plan that has it at `rank`, at ranks 1, 2, ..."""
    known = np.array(sorted([rank, *measured]))
    lowest, highest, ranks = known[0], known[-1], np.arange(1, len(alone) + 1)
    losses = {rank: loss, **measured}
    change = interpolate(ranks, known, np.array([losses[int(one)] for one in known])) - loss
    here, at_lowest, at_highest = alone[rank - 1], alone[lowest - 1], alone[highest - 1]
    # On few images a lower rank may seem no worse: below the lowest, a layer adds at least what it adds alone.
    below = max(1.0, change[lowest - 1] / (at_lowest - here)) if at_lowest > here else 1.0
    above = np.clip((here - alone) / max(here - at_highest, LOSS_FLOOR), 1.0, MAX_REDUCTION)
    return np.select(
        [ranks < lowest, ranks > highest],
        [change[lowest - 1] + below * (alone - at_lowest), change[highest - 1] * above],
        change,
    )


def sum_of(tables: Sequence[Array]) -> Callable[[Ranks], Array]:
    """The sum over layers (...,) of values tabulated at ranks 1, 2, ... per layer, as a function of ranks (..., d)."""
    by_layer = tabulated(tables)
    return lambda ranks: np.asarray(by_layer(ranks).sum(-1))


def tabulated(tables: Sequence[Array]) -> Callable[[Ranks], Array]:
    """Values (..., d) tabulated at ranks 1, 2, ... per layer, as a function of ranks (..., d)."""
    table = np.concatenate(tables)
    offsets = np.cumsum([-1, *(len(entries) for entries in tables[:-1])])
    return lambda ranks: np.asarray(table[ranks + offsets])


def loss_per_norm(all_losses: list[Losses]) -> float:
    """L at a function norm of 1, by the half of the evaluations that lose least; 1 where L is the function norm.

    Destroyed networks are left out: their losses saturate and are no guide to those of useful ones.

    Args:
        all_losses: of every evaluation.
    """
    found = np.array([losses.function_norm for losses in all_losses])
    means = np.array([losses.mean for losses in all_losses])
    least = found <= np.median(found)
    total = found[least].sum()
    return max(float(means[least].sum() / total), MIN_LOSS_PER_NORM) if total > 0 else 1.0
