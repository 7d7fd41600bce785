"""The factorizations by name: what each applies to, where it competes and how the report explains it.

A new one is a file with a subclass of `Factors` and an entry here. This module does not import torch: names and words
serve the command line and the report, and an entry loads its class when it first factorizes or counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from compressor.lazy import load_named

if TYPE_CHECKING:
    from compressor.factorization.base import Factors
    from compressor.factorization.layers.kinds import Layer
    from compressor.factorization.moments import LayerMoments
    from compressor.factorization.two_factor import TwoFactors

# Choices under which methods compete for a layer by measurement; `auto` leaves out what is slow to run.
COMPETITIONS = ("auto", "auto+cp")
# The method that is of no layer by itself: groups of layers lose some of the channels between them.
CHANNELS = "channels"
CHANNELS_EXPLANATION = (
    "some of the channels between layers removed, which makes these smaller, and the layers that read them refitted"
)


@dataclass(frozen=True)
class Factorization:
    """One method of factorizing layers.

    Attributes:
        name: as `--method`, plans and reports spell it.
        implementation: its subclass of `Factors`, or where that is, as "module:class".
        applies_to: whether it factorizes a weight of shape (Co, Ci/groups, ...) in so many groups.
        explanation: what it makes of a layer, for the report.
        competes_under: those of `COMPETITIONS` in which it takes part, for layers whose default method does, too.
    """

    name: str
    implementation: "str | type[Factors]"
    applies_to: Callable[[Sequence[int], int], bool]
    explanation: str
    competes_under: tuple[str, ...] = ()

    @cached_property
    def factors(self) -> "type[Factors]":
        """The class of its factors."""
        if not isinstance(self.implementation, str):
            return self.implementation
        found: type[Factors] = load_named(self.implementation)
        return found

    @property
    def two_factors(self) -> "type[TwoFactors] | None":
        """The class of its factors where there are two, which can be refitted in turn; else None."""
        from compressor.factorization.two_factor import TwoFactors  # loads torch

        return self.factors if issubclass(self.factors, TwoFactors) else None

    def factorize(self, layer: "Layer", moments: "LayerMoments | None" = None, **options: Any) -> "Factors":
        """The layer's factors at all ranks.

        Args:
            layer: of a weight to which the method applies.
            moments: the layer's second moments; None for factors of the weight alone.
            options: more arguments of the class, such as the `limit` of two factors.
        """
        return self.factors(layer, moments, **options)

    def factor_params(self, shape: Sequence[int], groups: int, rank: int) -> tuple[int, ...]:
        """Parameters of each factor; arguments as of `Factors.factor_params`."""
        return self.factors.factor_params(shape, groups, rank)

    def num_params(self, shape: Sequence[int], groups: int, rank: int) -> int:
        """Parameters of all factors; arguments as of `Factors.factor_params`."""
        return sum(self.factor_params(shape, groups, rank))

    def max_rank(self, shape: Sequence[int], groups: int) -> int:
        """Rank at which the factors of a weight of `shape` (Co, Ci/groups, ...) are exact."""
        return self.factors.full_rank(shape, groups)


def is_pointwise(shape: Sequence[int]) -> bool:
    """Whether a weight (Co, Ci/groups, ...) is that of a linear layer or a 1 x 1 convolution."""
    return prod(shape[2:]) == 1


def has_two_axes(shape: Sequence[int]) -> bool:
    """Whether a kernel can be split between its axes: that of an image, or of a clip with two axes above 1."""
    kernel = shape[2:]
    return not is_pointwise(shape) and (len(kernel) == 2 or sum(size > 1 for size in kernel) > 1)


# In order: where the user chooses none, the first that applies is a layer's method.
METHODS: dict[str, Factorization] = {
    entry.name: entry
    for entry in (
        Factorization(
            name="svd",
            implementation="compressor.factorization.svd:SvdFactors",
            applies_to=lambda shape, groups: not has_two_axes(shape),
            explanation="a linear or 1 × 1 layer, or one along a single axis, in two, K features between them",
        ),
        Factorization(
            name="spatial",
            implementation="compressor.factorization.spatial:SpatialFactors",
            applies_to=lambda shape, groups: has_two_axes(shape),
            explanation="a k × k convolution in two, one along columns and one along rows; of clips, one along time "
            "and one within frames",
            competes_under=("auto", "auto+cp"),
        ),
        Factorization(
            name="tucker",
            implementation="compressor.factorization.tucker:TuckerFactors",
            applies_to=lambda shape, groups: not is_pointwise(shape) and groups == 1,
            explanation="a k × k convolution on fewer channels, between two 1 × 1 convolutions (Tucker-2)",
            competes_under=("auto", "auto+cp"),
        ),
        Factorization(
            name="cp",
            implementation="compressor.factorization.cp:CpFactors",
            applies_to=lambda shape, groups: len(shape) == 4 and not is_pointwise(shape) and groups == 1,
            explanation="two 1 × 1 convolutions round two that act on each channel alone, along columns and along rows",
            # Its four thin convolutions take up to twice the time of two with as many parameters (docs/results.md), so
            # it competes only where size alone matters.
            competes_under=("auto+cp",),
        ),
        Factorization(
            name="interpolative",
            implementation="compressor.factorization.interpolative:InterpolativeFactors",
            applies_to=lambda shape, groups: groups == 1,
            explanation="some of the layer’s own outputs kept, the others combined from them",
            competes_under=("auto", "auto+cp"),
        ),
    )
}


def register(entry: Factorization) -> None:
    """Adds a factorization from outside the package, after those that are known.

    Raises:
        ValueError: its name is taken, or it competes under a choice that does not exist.
    """
    if entry.name in (*METHODS, *COMPETITIONS, CHANNELS):
        raise ValueError(f"there already is a method {entry.name!r}")
    if unknown := set(entry.competes_under) - set(COMPETITIONS):
        raise ValueError(f"{entry.name} competes under {', '.join(sorted(unknown))}, not {' or '.join(COMPETITIONS)}")
    METHODS[entry.name] = entry


def applicable_methods(shape: Sequence[int], groups: int) -> tuple[str, ...]:
    """Names of the methods that apply to a weight of `shape` (Co, Ci/groups, ...), the default first."""
    return tuple(name for name, entry in METHODS.items() if entry.applies_to(shape, groups))


def competing_methods(choice: str) -> tuple[str, ...]:
    """Names of the methods that compete for a layer under `choice`; none where it names a factorization."""
    choice = "auto" if choice == CHANNELS else choice
    return tuple(name for name, entry in METHODS.items() if choice in entry.competes_under)


def explanations() -> dict[str, str]:
    """What each method makes of a layer, by its name, for the report."""
    return {**{name: entry.explanation for name, entry in METHODS.items()}, CHANNELS: CHANNELS_EXPLANATION}


def removes_channels(choice: str) -> bool:
    """Whether hidden channels are removed under `choice`, in competition or wherever there are some."""
    return choice in (*COMPETITIONS, CHANNELS)


def method_choices() -> tuple[str, ...]:
    """The choices of `--method`: the competitions, what k x k convolutions can become, and hidden channels."""
    return (*COMPETITIONS, *applicable_methods((1, 1, 3, 3), groups=1), CHANNELS)


def find_break_even_rank(method: str, shape: Sequence[int], groups: int, dense_params: int) -> int:
    """Largest rank at which the factors hold no more than `dense_params` parameters (Sec. 3.3); 0 if none.

    Args:
        method: a key of `METHODS`.
        shape: of the weight, (Co, Ci/groups, ...).
        groups: of the convolution, else 1.
        dense_params: parameters of the weight.
    """
    entry = METHODS[method]
    ranks = range(1, entry.max_rank(shape, groups) + 1)
    return max((rank for rank in ranks if entry.num_params(shape, groups, rank) <= dense_params), default=0)


def num_params_table(
    method: str, shape: Sequence[int], groups: int, break_even_rank: int, dense_params: int
) -> list[int]:
    """Parameters at every choice for a layer: the ranks that make it smaller, and last the layer as it was.

    The last choice is break-even rank + 1, or the break-even rank itself where the factors are then exactly as large as
    the layer.

    Args:
        method: a key of `METHODS`.
        shape: of the weight, (Co, Ci/groups, ...).
        groups: of the convolution, else 1.
        break_even_rank: as `find_break_even_rank` gives it.
        dense_params: parameters of the weight.
    """
    counts = [METHODS[method].num_params(shape, groups, rank) for rank in range(1, break_even_rank + 1)]
    return [*(count for count in counts if count < dense_params), dense_params]
