"""Truncated SVD of linear layers and 1 x 1 convolutions (Sec. 3.3; Denton et al. 2014).

W (Co x Ci) becomes two layers of K (Ci + Co) parameters; grouped convolutions are split group by group.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from compressor.factorization.base import Layer, chain, make_conv, make_linear, untouched_geometry
from compressor.factorization.two_factor import TwoFactors


class SvdFactors(TwoFactors):
    """Factors of a linear layer or a 1 x 1 convolution."""

    @staticmethod
    def factor_params(shape: Sequence[int], groups: int, rank: int) -> tuple[int, ...]:
        """See `Factors.factor_params`."""
        return rank * groups * shape[1], rank * shape[0]

    @staticmethod
    def full_rank(shape: Sequence[int], groups: int) -> int:
        """See `Factors.full_rank`."""
        return min(shape[0] // groups, shape[1])

    @staticmethod
    def kernel(layer: Layer) -> Tensor:
        """See `TwoFactors.kernel`."""
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        num_out = layer.weight.shape[0]
        return layer.weight.detach().reshape(groups, num_out // groups, -1, 1)

    def assemble(self, first: Tensor, second: Tensor, bias: Tensor | None) -> nn.Sequential:
        """See `TwoFactors.assemble`."""
        layer = self._layer
        reduce, expand = first.flatten(0, 1), second.flatten(0, 1)[..., 0]
        if isinstance(layer, nn.Linear):
            return chain(make_linear(reduce, None), make_linear(expand, bias))
        geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        return chain(
            make_conv(reduce[..., None, None], None, layer, layer.groups, **geometry),
            make_conv(expand[..., None, None], bias, layer, layer.groups, **untouched_geometry()),
        )
