"""Channels that come and go together, as a pass through the network finds them."""

from dataclasses import dataclass, field
from math import prod

from torch import Tensor


@dataclass(eq=False)
class Bundle:
    """Channels that come and go together in all tensors they appear in.

    Attributes:
        num_units: contiguous units of channels; every tensor has the same number per unit.
        producers: names of the layers that compute them.
        between: names of modules with weights that act unit by unit.
        readers: names of the layers that mix them.
        outputs: by reader the bundle of its outputs.
        blocked: whether something needs all of them.
        norms: batch norms passed so far.
        is_plain: whether nothing but batch norms and identities was passed.
        addition: number of the first addition to something older, and whether as second operand.
        created: when they were computed.
    """

    num_units: int
    producers: list[str]
    between: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    outputs: dict[str, "Bundle"] = field(default_factory=dict)
    blocked: bool = False
    norms: list[str] = field(default_factory=list)
    is_plain: bool = True
    addition: tuple[int, bool] | None = None
    created: int = 0
    _merged: "Bundle | None" = None

    def root(self) -> "Bundle":
        """The bundle that this one was merged into, or itself."""
        return self if self._merged is None else self._merged.root()

    def coarsen(self, units: int) -> None:
        """Make units of several channels where a layer needs them kept together."""
        smaller, larger = sorted((self.num_units, units))
        if larger % smaller:
            self.blocked = True
        self.num_units = smaller

    def merge(self, other: "Bundle") -> None:
        """From here on the channels of both come and go together."""
        if other is self:
            return
        self.coarsen(other.num_units)
        self.producers += other.producers
        self.between += other.between
        self.readers += other.readers
        self.outputs |= other.outputs
        self.blocked |= other.blocked
        self.is_plain = False
        other._merged = self


@dataclass(frozen=True)
class Tag:
    """Where a tensor has a bundle's channels.

    Attributes:
        bundle: the bundle.
        axis: the tensor's axis, counted from the front.
    """

    bundle: Bundle
    axis: int

    def moved(self, axis: int) -> "Tag":
        """The same channels along another axis."""
        return Tag(self.bundle, axis)


def flattened_axis(tag: Tag, before: Tensor, after: Tensor) -> int | None:
    """The axis along which a reshaped tensor has the channels, with what follows them flattened in or not.

    None where channels are split, or mixed with what precedes them.

    Args:
        tag: which channels the tensor has, and along which axis.
        before: the tensor.
        after: the same numbers in another shape.
    """
    axis, old, new = tag.axis, tuple(before.shape), tuple(after.shape)
    if len(new) <= axis or new[:axis] != old[:axis]:
        return None
    tail = prod(old[axis:])
    keeps_channels = new[axis] == old[axis]
    return axis if keeps_channels or (new[axis] == tail and prod(new[axis:]) == tail) else None
