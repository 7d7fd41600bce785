"""Spatial split of k x k convolutions (Tai et al. 2016, the paper's "tensor decomposition").

M = W reshaped to (Ci*kh) x (Co*kw) is truncated by SVD, in closed form: a vertical kh x 1 convolution to K
channels, then a horizontal 1 x kw convolution to Co. The split is exact at full rank for every stride,
padding (numbers, 'same', 'valid'), padding mode and dilation, because the vertical half acts on columns and
the horizontal half on rows. Groups are split one by one.

Kernels of clips, kt x kh x kw, are split between time and frame, (Ci*kt) x (Co*kh*kw): the (2+1)-dimensional split
(Tran et al. 2018), time first. Where kt is 1 they are split as those of images.
"""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from compressor.factorization.layers.kinds import Convolution, Layer, weight_of
from compressor.factorization.layers.making import chain, make_conv, part_of_geometry
from compressor.factorization.two_factor import TwoFactors


def split_kernel(shape: Sequence[int]) -> int:
    """How many axes of the kernel of a weight (Co, Ci/groups, ...) the first factor has; the second has the others."""
    kernel = shape[2:]
    return 1 if len(kernel) == 2 or kernel[0] > 1 else 2


class SpatialFactors(TwoFactors):
    """Factors of a k x k or k x k x k convolution."""

    @staticmethod
    def factor_params(shape: Sequence[int], groups: int, rank: int) -> tuple[int, ...]:
        """See `Factors.factor_params`."""
        cut = 2 + split_kernel(shape)
        return rank * groups * prod(shape[1:cut]), rank * shape[0] * prod(shape[cut:])

    @staticmethod
    def full_rank(shape: Sequence[int], groups: int) -> int:
        """See `Factors.full_rank`."""
        cut = 2 + split_kernel(shape)
        return min(prod(shape[1:cut]), shape[0] // groups * prod(shape[cut:]))

    @staticmethod
    def kernel(layer: Layer) -> Tensor:
        """See `TwoFactors.kernel`."""
        assert isinstance(layer, Convolution)
        weight = weight_of(layer).detach()
        return weight.reshape(
            layer.groups, len(weight) // layer.groups, prod(weight.shape[1 : 2 + split_kernel(weight.shape)]), -1
        )

    def assemble(self, first: Tensor, second: Tensor, bias: Tensor | None) -> nn.Sequential:
        """See `TwoFactors.assemble`."""
        layer = self._layer
        assert isinstance(layer, Convolution)
        _, num_in, *kernel = shape = weight_of(layer).shape
        rank, count = first.shape[1], split_kernel(shape)
        before, after = kernel[:count], kernel[count:]
        vertical = first.reshape(layer.groups * rank, num_in, *before, *[1] * len(after))
        horizontal = second.reshape(-1, rank, *[1] * len(before), *after)
        axes = range(len(kernel))
        return chain(
            make_conv(vertical, None, layer, layer.groups, **part_of_geometry(layer, axes[:count])),
            make_conv(horizontal, bias, layer, layer.groups, **part_of_geometry(layer, axes[count:])),
        )
