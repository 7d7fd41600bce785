"""Truncated SVD of linear layers and 1 x 1 convolutions (Sec. 3.3; Denton et al. 2014), and of kernels along one axis.

W (Co x Ci) becomes two layers of K (Ci + Co) parameters; grouped convolutions are split group by group. Where a kernel
has k values along its one axis, in signals or along the time of clips, the first layer keeps them: K (k Ci + Co).
"""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from compressor.factorization.layers.kinds import Layer, groups_of, weight_of
from compressor.factorization.layers.making import chain, geometry_of, make_conv, make_linear, untouched_geometry
from compressor.factorization.two_factor import TwoFactors


class SvdFactors(TwoFactors):
    """Factors of a linear layer, a 1 x 1 convolution, or one whose kernel has one axis."""

    @staticmethod
    def factor_params(shape: Sequence[int], groups: int, rank: int) -> tuple[int, ...]:
        """See `Factors.factor_params`."""
        return rank * groups * prod(shape[1:]), rank * shape[0]

    @staticmethod
    def full_rank(shape: Sequence[int], groups: int) -> int:
        """See `Factors.full_rank`."""
        return min(shape[0] // groups, prod(shape[1:]))

    @staticmethod
    def kernel(layer: Layer) -> Tensor:
        """See `TwoFactors.kernel`."""
        groups, weight = groups_of(layer), weight_of(layer).detach()
        return weight.reshape(groups, len(weight) // groups, -1, 1)

    def assemble(self, first: Tensor, second: Tensor, bias: Tensor | None) -> nn.Sequential:
        """See `TwoFactors.assemble`."""
        layer = self._layer
        reduce, expand = first.flatten(0, 1), second.flatten(0, 1)[..., 0]
        if isinstance(layer, nn.Linear):
            return chain(make_linear(reduce, None), make_linear(expand, bias))
        _, num_in, *kernel = weight_of(layer).shape
        reduce, expand = reduce.reshape(-1, num_in, *kernel), expand.reshape(*expand.shape, *[1] * len(kernel))
        return chain(
            make_conv(reduce, None, layer, layer.groups, **geometry_of(layer)),
            make_conv(expand, bias, layer, layer.groups, **untouched_geometry()),
        )
