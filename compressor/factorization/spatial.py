"""Spatial split of k x k convolutions (Tai et al. 2016, the paper's "tensor decomposition").

M = W reshaped to (Ci*kh) x (Co*kw) is truncated by SVD, in closed form: a vertical kh x 1 convolution to K
channels, then a horizontal 1 x kw convolution to Co. The split is exact at full rank for every stride,
padding (numbers, 'same', 'valid'), padding mode and dilation, because the vertical half acts on columns and
the horizontal half on rows. Groups are split one by one.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from compressor.factorization.base import Layer, chain, make_conv, one_axis_geometry
from compressor.factorization.two_factor import TwoFactors


class SpatialFactors(TwoFactors):
    """Factors of a k x k convolution."""

    @staticmethod
    def factor_params(shape: Sequence[int], groups: int, rank: int) -> tuple[int, ...]:
        """See `Factors.factor_params`."""
        num_out, num_in, height, width = shape
        return rank * groups * num_in * height, rank * num_out * width

    @staticmethod
    def full_rank(shape: Sequence[int], groups: int) -> int:
        """See `Factors.full_rank`."""
        num_out, num_in, height, width = shape
        return min(num_in * height, num_out // groups * width)

    @staticmethod
    def kernel(layer: Layer) -> Tensor:
        """See `TwoFactors.kernel`."""
        assert isinstance(layer, nn.Conv2d)
        num_out, num_in, height, width = layer.weight.shape
        return layer.weight.detach().reshape(layer.groups, num_out // layer.groups, num_in * height, width)

    def assemble(self, first: Tensor, second: Tensor, bias: Tensor | None) -> nn.Sequential:
        """See `TwoFactors.assemble`."""
        layer = self._layer
        assert isinstance(layer, nn.Conv2d)
        _, num_in, height, width = layer.weight.shape
        rank = first.shape[1]
        vertical = first.reshape(layer.groups * rank, num_in, height, 1)
        horizontal = second.reshape(-1, rank, 1, width)
        return chain(
            make_conv(vertical, None, layer, layer.groups, **one_axis_geometry(layer, axis=0)),
            make_conv(horizontal, bias, layer, layer.groups, **one_axis_geometry(layer, axis=1)),
        )
