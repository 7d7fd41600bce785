"""Widths of all groups for a number of operations: Lagrangian allocation from measured single-group losses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from compressor.arrays import Array, Ranks
from compressor.channels.costs import ChannelCosts
from compressor.channels.factors import ChannelFactors
from compressor.network.surgery import build_candidate

SHARES = (0.5, 0.75, 0.9)  # of a group's units, at which its loss is measured
MIN_SHARE = 0.2  # of a group's units, that it keeps in any case
LOSS_FLOOR = 1e-6
MAX_SWEEPS = 20
BISECTIONS = 50


@dataclass(frozen=True)
class Curve:
    """The loss of one group alone at every width it may take.

    Attributes:
        widths: ascending (w,), the last one being all units.
        losses: function norm (w,) of the network with this group alone narrowed.
    """

    widths: Ranks
    losses: Array


def measure_curve(
    model: nn.Module, factors: ChannelFactors, loss: Callable[[nn.Module], float], multiple: int = 1
) -> Curve:
    """A group's curve: its first-order losses, scaled so that they meet those measured at SHARES of its units.

    Args:
        model: the original network.
        factors: of the group.
        loss: gives the function norm of a network.
        multiple: widths are multiples of it, but for that of all units.
    """
    units = factors.max_rank
    least = max(1, round(MIN_SHARE * units))
    widths = np.array([*(k for k in range(least, units) if k % multiple == 0), units], dtype=np.int64)
    measured = np.unique([max(1, min(units - 1, round(share * units))) for share in SHARES])
    expected = np.maximum(factors.losses, LOSS_FLOOR)
    candidates = (build_candidate(model, {"group": factors}, {"group": int(width)}) for width in measured)
    found = [max(loss(candidate), LOSS_FLOOR) for candidate in candidates]
    ratios = np.log(np.array(found) / expected[measured])
    losses = expected[widths] * np.exp(np.interp(widths, measured, ratios))
    losses[-1] = 0.0
    return Curve(widths, losses)


def allocate(curves: Sequence[Curve], costs: ChannelCosts, limit: float) -> Ranks:
    """The widths (d,) of least summed loss whose operations are at most `limit`.

    Costs are bilinear, so for every multiplier widths are chosen group by group, at what a unit costs beside the
    present widths of the others, until none changes; the multiplier is found by bisection.

    Args:
        curves: of every group.
        costs: of the same groups.
        limit: on the network's multiply-accumulates.
    """
    low, high = -10.0, 10.0  # logarithms of the loss that one part in a thousand of the operations is worth
    best = np.array([curve.widths[0] for curve in curves], dtype=np.int64)
    total = costs.macs(costs.num_units)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        widths = _minimize(curves, costs, 1e3 * np.exp(middle) / total)
        if costs.macs(widths) <= limit:
            best, high = widths, middle
        else:
            low = middle
    return _fill(best, curves, costs, limit)


def _fill(widths: Ranks, curves: Sequence[Curve], costs: ChannelCosts, limit: float) -> Ranks:
    """Widen one group after the other, the one that gains most first, as long as the limit allows.

    A multiplier finds only widths on the convex hull of losses and operations, and may leave some of these unused.
    """
    widths = widths.copy()
    while True:
        best, gain = widths, 0.0
        for number, curve in enumerate(curves):
            present = int(np.searchsorted(curve.widths, widths[number]))
            for position in range(present + 1, len(curve.widths)):
                wider = widths.copy()
                wider[number] = curve.widths[position]
                if costs.macs(wider) > limit:
                    break
                if curve.losses[present] - curve.losses[position] > gain:
                    best, gain = wider, curve.losses[present] - curve.losses[position]
        if best is widths:
            return widths
        widths = best


def _minimize(curves: Sequence[Curve], costs: ChannelCosts, price: float) -> Ranks:
    """The widths (d,) that minimize losses + price * operations, one group at a time."""
    widths = costs.num_units.copy()
    for _ in range(MAX_SWEEPS):
        before = widths.copy()
        for number, curve in enumerate(curves):
            slope = macs_per_unit(costs, widths)[number]
            widths[number] = curve.widths[np.argmin(curve.losses + price * slope * curve.widths)]
        if (widths == before).all():
            break
    return widths


def macs_per_unit(costs: ChannelCosts, widths: Ranks) -> Array:
    """Multiply-accumulates (d,) that one unit of each group costs where the others have these widths (d,)."""
    slopes, shares = np.zeros(len(costs.num_units)), np.asarray(widths) / costs.num_units
    for term in costs.macs_terms:
        for group in term.groups:
            others = np.prod([shares[other] for other in term.groups if other != group])
            slopes[group] += term.full * others / costs.num_units[group]
    return slopes
