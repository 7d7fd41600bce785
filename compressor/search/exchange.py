"""Moves within a limit of R: a layer takes another rank alone where there is room, or in exchange with another layer.

At a limit, plans that differ in one layer are no way to a better one: higher ranks exceed the limit, lower ones lose.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.arrays import Array, Ranks

Indices = NDArray[np.int64]
NUM_PAIRS = 32  # the most promising are evaluated one by one
MAX_STEPS = 200
MAX_PAIRS = 256  # of which some are evaluated together


@dataclass(frozen=True)
class Moves:
    """Other ranks of single layers of a plan, within a limit.

    Attributes:
        layers: which layer each of them changes (m,).
        ranks: to what (m,).
        gains: what each alone is worth (m,); minus infinity for what may not be used.
        costs: how each alone changes R (m,).
        room: how much R may rise.
    """

    layers: Indices
    ranks: Ranks
    gains: Array
    costs: Array
    room: float

    def pairs(self) -> Indices:
        """Pairs (p, 2) of moves of two layers that together fit, the most promising first, by the sum of their gains.

        For every move that gains there is the move that makes room for it at the least loss, or itself where it fits.
        """
        rising = np.flatnonzero(self.gains > 0)
        partners = self._partners(rising)
        rising, partners = rising[partners >= 0], partners[partners >= 0]
        sums = self.gains[rising] + np.where(partners == rising, 0.0, self.gains[partners])
        order = np.argsort(-sums, kind="stable")
        order = order[sums[order] > 0]
        return np.stack([rising[order], partners[order]], axis=1)

    def _partners(self, rising: Indices) -> Indices:
        """For each of the moves `rising` (p,) the other of its pair; -1 where there is none."""
        freeing = np.flatnonzero((self.costs < 0) & np.isfinite(self.gains))
        freeing = freeing[np.argsort(self.costs[freeing], kind="stable")]
        # The first `counts` of them free enough.
        counts = np.searchsorted(self.costs[freeing], self.room - self.costs[rising], side="right")
        fits, partners = self.costs[rising] <= self.room, np.full(len(rising), -1)
        partners[fits] = rising[fits]
        open_ = np.flatnonzero(~fits & (counts > 0))
        partners[open_] = freeing[_running_best(self.gains[freeing])[counts[open_] - 1]] if len(open_) else -1
        clashing = open_[self.layers[partners[open_]] == self.layers[rising[open_]]]
        for layer in np.unique(self.layers[rising[clashing]]):
            own = clashing[self.layers[rising[clashing]] == layer]
            gains = np.where(self.layers[freeing] == layer, -np.inf, self.gains[freeing])
            found = _running_best(gains)[counts[own] - 1]
            partners[own] = np.where(np.isfinite(gains[found]), freeing[found], -1)
        return partners

    def plans(self, plan: Ranks) -> Ranks:
        """Plans (n, d) after one of the pairs, and after the first 2, 4, 8, ... that have no layer in common."""
        pairs = self.pairs()[:MAX_PAIRS]
        chosen = [pair[None] for pair in pairs[:NUM_PAIRS]]
        apart = self._apart(pairs)
        chosen += [apart[:count] for count in 2 ** np.arange(1, len(apart).bit_length())]
        plans = np.repeat(plan[None], len(chosen), axis=0)
        for row, part in enumerate(chosen):
            plans[row, self.layers[part]] = self.ranks[part]
        return plans

    def relief(self, plan: Ranks) -> Ranks:
        """The plan (d,) after the move that loses least for the R that it frees, of which no more counts than lacks."""
        freeing = np.flatnonzero((self.costs < 0) & np.isfinite(self.gains))
        if not len(freeing):
            return plan
        rates = self.gains[freeing] / np.minimum(-self.costs[freeing], -self.room)
        move, freed = freeing[rates.argmax()], plan.copy()
        freed[self.layers[move]] = self.ranks[move]
        return freed

    def _apart(self, pairs: Indices) -> Indices:
        """Those of the pairs (p, 2), in their order, that change layers of their own and fit together."""
        room, kept = self.room, []
        left = set(self.layers.tolist())
        costs = self.costs[pairs[:, 0]] + np.where(pairs[:, 0] == pairs[:, 1], 0.0, self.costs[pairs[:, 1]])
        for pair, cost, layers in zip(pairs, costs.tolist(), self.layers[pairs].tolist(), strict=True):
            if cost <= room and left.issuperset(layers):
                kept.append(pair)
                left.difference_update(layers)
                room -= cost
        return np.array(kept, dtype=np.int64).reshape(-1, 2)


def _running_best(gains: Array) -> Indices:
    """Index (n,) of the largest of the first 1, 2, ... gains."""
    best = np.maximum.accumulate(gains)
    is_new = np.concatenate([[True], best[1:] > best[:-1]]) if len(gains) else np.zeros(0, dtype=bool)
    return np.maximum.accumulate(np.where(is_new, np.arange(len(gains)), 0))


def exchange_until_best(
    plan: Ranks,
    moves: Callable[[Ranks], Moves],
    values: Callable[[Ranks], Array],
    min_gain: float = 0.0,
    keeping: Callable[[Ranks], Ranks] = lambda plans: plans,
) -> Ranks:
    """The plan (d,) after exchanges, each the best of those tried, until none gains more than `min_gain`.

    A plan beyond the limit is brought to it first, as far as the moves allow.

    Args:
        plan: where to start (d,).
        moves: gives what every layer's moves cost and gain at a plan.
        values: of plans (n, d), to be maximized (n,).
        min_gain: smaller gains in value do not count.
        keeping: gives those of several plans (n, d) that keep to the limit, where moves together cost more than the sum
            of theirs.
    """
    for _ in range(MAX_STEPS):
        possible = moves(plan)
        if possible.room < 0:
            plans, best = possible.relief(plan)[None], -np.inf
        else:
            plans, best = keeping(possible.plans(plan)), float(values(plan[None])[0]) + min_gain
        found = values(plans) if len(plans) else np.zeros(0)
        if not len(plans) or found.max() <= best or (plans == plan).all():
            break
        plan = plans[found.argmax()]
    return plan
