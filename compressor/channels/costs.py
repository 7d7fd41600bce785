"""What groups cost at every width: parameters and multiply-accumulates, without building a network.

A layer between two groups computes the channels of one and reads those of the other, so its cost is bilinear in their
widths: c * (u / U) * (v / V), with c its cost in the original. Modules of one group alone are linear in its width.
Costs of all widths are therefore a quadratic form without squares, and exact integers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from compressor.arrays import Ranks
from compressor.channels.groups import ChannelGroup
from compressor.network.macs import count_macs

Widths = Ranks | Sequence[int]
"""Units of every group (d,)."""


@dataclass(frozen=True)
class Term:
    """A cost that is proportional to the widths of at most two groups, by number: `full` when both have all units."""

    full: int
    groups: tuple[int, ...]


class ChannelCosts:
    """Parameters and multiply-accumulates of a network at any widths of its groups.

    Args:
        model: the network, in eval mode.
        groups: groups of it.
        example: one input batch (N, ...), of which the first sample is used.

    Attributes:
        num_units: of every group (d,).
        params_terms, macs_terms: what makes up both.
        weights_terms: the weights of convolutions and linear layers among the parameters.
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup], example: Tensor) -> None:
        self.num_units = np.array([group.num_units for group in groups], dtype=np.int64)
        outputs, inputs = _groups_by_module(groups)
        total, macs = count_macs(model, example)
        every = sum(parameter.numel() for parameter in model.parameters())
        self.macs_terms, self.params_terms = [Term(total, ())], [Term(every, ())]
        self.weights_terms: list[Term] = []
        for name in dict.fromkeys([*outputs, *inputs]):
            both = tuple(sides[name] for sides in (outputs, inputs) if name in sides)
            module = model.get_submodule(name)
            weights, others = _parameters(module)
            self.macs_terms += _replacing(macs.get(name, 0), both)
            self.params_terms += _replacing(weights, both)
            if name in outputs:
                self.params_terms += _replacing(others, (outputs[name],))
            if isinstance(module, nn.Conv2d | nn.Linear):
                self.weights_terms += _replacing(module.weight.numel(), both)

    def params(self, widths: Widths) -> int:
        """Parameters of the network at these widths (d,) in units."""
        return self._sum(self.params_terms, widths)

    def macs(self, widths: Widths) -> int:
        """Multiply-accumulates for one image at these widths (d,) in units."""
        return self._sum(self.macs_terms, widths)

    def _sum(self, terms: Iterable[Term], widths: Widths) -> int:
        units = [int(width) for width in widths]
        return sum(self._at(term, units) for term in terms)

    def _at(self, term: Term, units: Sequence[int]) -> int:
        cost = term.full
        whole = 1
        for group in term.groups:
            cost *= units[group]
            whole *= int(self.num_units[group])
        assert cost % whole == 0, "units have whole numbers of channels"
        return cost // whole


def _replacing(full: int, groups: tuple[int, ...]) -> list[Term]:
    """A part of the total by the groups it depends on, instead of as a constant."""
    return [Term(full, groups), Term(-full, ())] if full else []


def _groups_by_module(groups: Sequence[ChannelGroup]) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """By module name the group of its outputs, and that of its inputs where it mixes them."""
    outputs = {name: i for i, group in enumerate(groups) for name in (*group.producers, *group.between)}
    inputs = {name: i for i, group in enumerate(groups) for name in group.reader_names}
    return outputs, inputs


def _parameters(module: nn.Module) -> tuple[int, int]:
    """Parameters that depend on both of a layer's sides, and those that depend on its outputs alone.

    A module between, a grouped convolution as well, has the second kind only: its inputs per group stay.
    """
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
        return module.weight.numel(), 0 if module.bias is None else module.bias.numel()
    per_unit = [value for value in module.parameters(recurse=False) if value.dim()]
    return 0, sum(value.numel() for value in per_unit)
