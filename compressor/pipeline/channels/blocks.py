"""Whether groups of layers lose channels or ranks, at a price of size in units of loss, from losses of single parts.

A price is what the search weighs: the least of loss + price * size over everything that channels and ranks offer is
what each can do for J. Sizes are shares of all compressible layers, losses are added up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.arrays import Array
from compressor.channels.groups import ChannelGroup

SHARES = np.array([0.02, 0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0])
MAX_SWEEPS = 20
PRICES, PRICE_STEP, BISECTIONS = (1e-9, 1e9), 1.5, 40
# Fewer channels than ranks take longer to find. They are left out where the search's own price would have to be so many
# times as high for them to pay, or where all of them together bring less than this share of loss + price * size.
MAX_RAISE, MIN_GAIN = 3.0, 0.01
WHOLE = 1e-6  # rounding of a size
# Below so many times what all layers keep at the least share of ranks, shares do not tell: that of two groups in one
# layer multiply, and are the last ones that keep to a limit, whatever they lose.
REACHED = 2.0


@dataclass(frozen=True)
class Division:
    """What layers lose at some price.

    Attributes:
        groups: those that lose channels; the layers in none of them have ranks.
        loss, size: of all layers together.
    """

    groups: list[ChannelGroup]
    loss: float
    size: float

    def value(self, price: float) -> float:
        """What the division costs, in units of loss."""
        return self.loss + price * self.size


@dataclass(frozen=True)
class Block:
    """Layers that are decided on together: groups that have layers in common, or one layer in no group.

    Attributes:
        groups: the groups whose channels may go.
        sizes: of all layers, by name.
        of_channels: losses (SHARES,) of every group at SHARES of its units, by name.
        of_ranks: losses (SHARES,) of each layer that has ranks, at SHARES of its size.
    """

    groups: Sequence[ChannelGroup]
    sizes: Mapping[str, float]
    of_channels: Mapping[str, Array]
    of_ranks: Mapping[str, Array]

    def choose(self, price: float, highest: float = PRICES[1]) -> list[ChannelGroup]:
        """The groups that lose channels: at this price or, where it leaves everything whole, at the lowest multiple
        that does not; none where that is above the `highest`."""
        division, whole = self.divide(price), sum(self.sizes.values())
        while division.size >= (1.0 - WHOLE) * whole and price < highest:
            price *= PRICE_STEP
            division = self.divide(price)
        return division.groups if division.size < (1.0 - WHOLE) * whole else []

    def by_ranks(self, price: float) -> Division:
        """All layers losing ranks."""
        return self._divide([], price)

    def divide(self, price: float) -> Division:
        """Channels of all groups or of none, whichever is worth more, then one group after the other changed to either
        while that is worth more."""
        best = min(
            (self._divide(groups, price) for groups in ([], list(self.groups))), key=lambda one: one.value(price)
        )
        is_better = bool(self.groups)
        while is_better:
            is_better = False
            for group in self.groups:
                others = [one for one in self.groups if (one in best.groups) != (one is group)]
                other = self._divide(others, price)
                if other.value(price) < best.value(price):
                    best, is_better = other, True
        return best

    def _divide(self, chosen: list[ChannelGroup], price: float) -> Division:
        """The shares that are worth most where these groups lose channels, and layers of none ranks."""
        inside = {name for group in chosen for name in group.layers}
        loss, size = self._fewest_channels(chosen, price)
        for name in set(self.sizes) - inside:
            sizes = self.sizes[name] * SHARES
            losses = self.of_ranks.get(name, np.append(np.full(len(SHARES) - 1, np.inf), 0.0))
            best = int((losses + price * sizes).argmin())
            loss, size = loss + losses[best], size + sizes[best]
        return Division(chosen, float(loss), float(size))

    def _fewest_channels(self, chosen: Sequence[ChannelGroup], price: float) -> tuple[float, float]:
        """Loss and size of the groups' layers, where the share of one group after the other is worth most."""
        shares, losses = {group.name: 1.0 for group in chosen}, {group.name: 0.0 for group in chosen}
        for _ in range(MAX_SWEEPS):
            before = dict(shares)
            for group in chosen:
                slope = self._size_of(group.layers, chosen, shares | {group.name: 1.0})
                own = self.of_channels[group.name]
                best = int((own + price * slope * SHARES).argmin())
                shares[group.name], losses[group.name] = float(SHARES[best]), float(own[best])
            if shares == before:
                break
        inside = {name for group in chosen for name in group.layers}
        return sum(losses.values()), self._size_of(inside, chosen, shares)

    def _size_of(
        self, names: Sequence[str] | set[str], chosen: Sequence[ChannelGroup], left: Mapping[str, float]
    ) -> float:
        """Size of these layers, in proportion to what is left of every group that they are in."""
        return sum(
            self.sizes[name] * float(np.prod([left[group.name] for group in chosen if name in group.layers]))
            for name in names
            if name in self.sizes
        )


def choose(
    blocks: Sequence[Block], price: float, limit: float | None, is_settled: bool = True
) -> list[list[ChannelGroup]]:
    """The groups of every block that lose channels, at the price, or where the size of all is limited, at the lowest
    price that keeps to the limit.

    Args:
        blocks: which compete for the size.
        price: the loss that a unit of size is worth.
        limit: on the size of all blocks, in the unit of theirs; None for none.
        is_settled: whether the search will weigh size by this price; it may be any other where not.
    """
    if limit is not None:
        least = sum(block.by_ranks(PRICES[1]).size for block in blocks)
        price = _price_within(blocks, max(limit, REACHED * least))
    if not is_settled:
        return [block.choose(price) for block in blocks]
    if limit is None and _gain(blocks, price) < MIN_GAIN:
        return [[] for _ in blocks]
    return [block.choose(price, MAX_RAISE * price) for block in blocks]


def _price_within(blocks: Sequence[Block], limit: float) -> float:
    low, high = np.log(PRICES)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        size = sum(block.divide(float(np.exp(middle))).size for block in blocks)
        low, high = (low, middle) if size <= limit else (middle, high)
    return float(np.exp(high))


def _gain(blocks: Sequence[Block], price: float) -> float:
    """What channels bring, as a share of what ranks alone come to."""
    by_ranks = sum(block.by_ranks(price).value(price) for block in blocks)
    return 1.0 - sum(block.divide(price).value(price) for block in blocks) / by_ranks
