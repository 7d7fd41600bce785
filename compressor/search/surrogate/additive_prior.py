"""TODO docstring."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.losses import Losses

MIN_SHARE_LEFT = 0.01  # of a plan's loss, where one of its layers takes some away
MAX_TAKEN = 2.0  # times what a layer was seen to take away, at ranks still higher
LOSS_FLOOR = 1e-12
MIN_PER_NORM = 1e-6  # where compression seems to lower the risk


def falling(norms: Array) -> Array:
    """Losses (n,) at rising ranks, positive and never increasing."""
    return np.minimum.accumulate(np.maximum(norms, LOSS_FLOOR))


def interpolate(wanted: Ranks, ranks: Ranks, norms: Array) -> Array:
    """Losses at `wanted` (m,) from those at `ranks` (n,), rising: log-linear, never increasing with the rank."""
    return np.asarray(np.exp(np.interp(np.log(wanted), np.log(ranks), np.log(falling(norms)))))


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
    shares_left = [np.clip(1.0 + table / max(norm, LOSS_FLOOR), MIN_SHARE_LEFT, 1.0) for table in added]
    log_share_left = sum_of([np.log(share) for share in shares_left])
    return lambda ranks: norm * np.exp(log_share_left(ranks)) + more(ranks)


def _added_around(own: int, norm: float, near: Mapping[int, float], alone: Array) -> Array:
    known = np.array(sorted([own, *near]))
    lowest, highest, ranks = known[0], known[-1], np.arange(1, len(alone) + 1)
    added = interpolate(ranks, known, np.array([{own: norm, **near}[int(rank)] for rank in known])) - norm
    here, at_lowest, at_highest = alone[own - 1], alone[lowest - 1], alone[highest - 1]
    # Few images let a rank below seem no worse: further below it is at least as bad as alone.
    below = max(1.0, added[lowest - 1] / (at_lowest - here)) if at_lowest > here else 1.0
    above = np.clip((here - alone) / max(here - at_highest, LOSS_FLOOR), 1.0, MAX_TAKEN)
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


def loss_per_norm(all_losses: list[Losses], norms: Array | None = None) -> float:
    """How much L comes with a function norm of 1, over the half of the looks that lose least; 1 for the function norm.

    A destroyed network cannot be destroyed further, and would say little about a useful one. `norms` (n,) are those of
    the looks, or what is to stand for them.
    """
    found = np.array([losses.function_norm for losses in all_losses])
    means = np.array([losses.mean for losses in all_losses])
    least = found <= np.median(found)
    total = (found if norms is None else norms)[least].sum()
    return max(float(means[least].sum() / total), MIN_PER_NORM) if total > 0 else 1.0
