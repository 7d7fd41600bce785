"""Methods of two factors, svd and spatial: the first computes K features per position, the second combines them.

They treat a weight as a kernel (groups, Co/groups, a, kw): the first factor acts on the a = Ci/groups * kh inputs of
one column, the second on the features of kw columns. For linear layers and 1 x 1 convolutions kw is 1; of clips the
first has the kt frames, and kw stands for the kh * kw columns of one frame.
"""

from abc import abstractmethod
from typing import Self

import torch
from torch import Tensor, linalg, nn

from compressor.factorization.base import Factors, NestedFactors, split_grouped_matrices, svd_by_gram, tail_energy
from compressor.factorization.layers.kinds import Layer, weight_of
from compressor.factorization.least_squares import NestedRefit
from compressor.factorization.moments import LayerMoments


class TwoFactors(Factors):
    """First factors by singular value decomposition, second ones by truncation or least squares.

    Without moments both are the truncated decomposition of the weight. With moments the first factor holds the leading
    directions of C^(1/2) M G^(1/2), where C is the inputs' covariance within a column averaged over the columns, and
    the second factor and the bias are its least-squares fit.
    """

    def __init__(self, layer: Layer, moments: LayerMoments | None = None, limit: int | None = None) -> None:
        """Decompose `layer`.

        Args:
            layer: the layer.
            moments: its second moments; None for factors of the weight alone.
            limit: the largest rank that is needed, where known; refits for all ranks take memory.
        """
        self._layer = layer
        kernel = self.kernel(layer)
        if moments is not None:
            first = leading_directions(kernel, moments)
        else:
            left, right, squares = split_grouped_matrices(kernel.transpose(1, 2).flatten(2))
            first, self._tail = left.mT, tail_energy(squares)
            self._truncated = right.unflatten(-1, (kernel.shape[1], -1)).transpose(1, 2).contiguous()
        self._set(first, moments, limit)

    @classmethod
    def with_first(cls, layer: Layer, moments: LayerMoments, first: Tensor) -> Self:
        """Factors with a given first factor, and the second refitted.

        Args:
            layer: whose weight is decomposed.
            moments: its second moments, to which the second factor is fitted.
            first: the first factor (groups, K, a), on the a inputs of a column of the kernel.
        """
        factors = cls.__new__(cls)
        factors._layer = layer
        factors._set(first, moments, None)
        return factors

    def _set(self, first: Tensor, moments: LayerMoments | None, limit: int | None) -> None:
        self.max_rank = first.shape[1] if limit is None else min(limit, first.shape[1])
        self._first = first[:, : self.max_rank]
        self._refit = None
        if moments is not None:
            # As it will be built: the second factor makes up for its rounding, too.
            self._first, kernel = self._first.float().cpu(), self.kernel(self._layer).double().cpu()
            first = self._first.double()
            self._refit = NestedRefit(kernel, moments, first)
            mean = moments.mean.reshape(len(kernel), -1, kernel.shape[-1])
            self._mean_features = torch.einsum("gka,gaw->gkw", first, mean)
            self._mean_outputs = torch.einsum("goaw,gaw->go", kernel, mean)
            if self._layer.bias is not None:
                self._mean_outputs += self._layer.bias.detach().double().cpu().reshape(self._mean_outputs.shape)

    @staticmethod
    @abstractmethod
    def kernel(layer: Layer) -> Tensor:
        """The layer's weight as (groups, Co/groups, a, kw)."""

    @abstractmethod
    def assemble(self, first: Tensor, second: Tensor, bias: Tensor | None) -> nn.Sequential:
        """Modules that compute with the two factors.

        Args:
            first: (groups, K, a), on the a = Ci/groups * kh inputs of a column of the kernel.
            second: (groups, Co/groups, K, kw).
            bias: of the layer (Co,), if it has one.
        """

    def build(self, rank: int) -> nn.Sequential:
        """See `Factors.build`."""
        self.check_rank(rank)
        layer, first = self._layer, self._first[:, :rank]
        if self._refit is None:
            return self.assemble(first, self._truncated[:, :, :rank], layer.bias)
        second = self._refit.second(rank)
        # The layer's bias plus the mean of the factors' residual.
        bias = self._mean_outputs - torch.einsum("gokw,gkw->go", second, self._mean_features[:, :rank])
        return self.assemble(*(part.to(layer.weight) for part in (first, second, bias.flatten())))

    def nested(self, limit: int) -> NestedFactors:
        """Ranks 1 to `limit` at once.

        Second factors by least squares are no truncations of one another, but those on orthonormalized features are.
        """
        self.check_rank(limit)
        layer, first = self._layer, self._first[:, :limit]
        width = self.kernel(layer).shape[-1]
        centre = None
        if self._refit is None:
            combine = torch.eye(limit * width).expand(len(first), -1, -1)
            outputs, bias = self._truncated[:, :, :limit].flatten(2).mT, layer.bias
        else:
            combine, outputs = self._refit.orthonormal(limit)
            means = self._mean_features[:, :limit].flatten(1)
            centre = -torch.einsum("gst,gt->gs", combine, means.to(combine)).flatten().to(layer.weight)
            bias = self._mean_outputs.flatten().to(layer.weight)
        first, combine, outputs = (part.to(layer.weight) for part in (first, combine, outputs))
        features = self.assemble(first, combine.unflatten(-1, (limit, width)), centre)
        return NestedFactors(features, outputs, bias, width, channels_last=isinstance(layer, nn.Linear))

    def first(self, rank: int) -> Tensor:
        """The first factor (groups, rank, a)."""
        return self._first[:, :rank]

    def refitted(self, moments: LayerMoments, limit: int) -> Self:
        """The same first factors up to rank `limit`, with the second ones refitted to `moments`."""
        return self.with_first(self._layer, moments, self.first(min(limit, self.max_rank)))

    def squared_error(self, rank: int) -> float:
        """See `Factors.squared_error`."""
        return self._tail[rank] if self._refit is None else self._refit.squared_error(rank)


def leading_directions(kernel: Tensor, moments: LayerMoments) -> Tensor:
    """First factors (groups, K, a), largest share of the outputs' energy first; K = min(a, Co/groups * kw).

    Args:
        kernel: the weight as (groups, Co/groups, a, kw).
        moments: the layer's second moments.
    """
    width = kernel.shape[-1]
    root = linalg.cholesky(column_covariance(moments, width).double())
    outputs = linalg.cholesky(moments.outputs)
    weighted = root.mT @ torch.einsum("gop,goaw->gapw", outputs, kernel.double().cpu()).flatten(2)
    # The small ones need not be exact: eigenvectors, in single precision, of the shorter side take a tenth of the time.
    scale = weighted.abs().amax().clamp_min(torch.finfo(weighted.dtype).tiny)
    leading, _, _ = svd_by_gram((weighted / scale).float(), torch.float32)
    return linalg.solve_triangular(root.mT, leading.double(), upper=True).mT


def column_covariance(moments: LayerMoments, width: int) -> Tensor:
    """Covariance (groups, a, a) of the inputs of one column, averaged over the `width` columns of a patch."""
    groups, num_inputs, _ = moments.covariance.shape
    blocks = moments.covariance.reshape(groups, num_inputs // width, width, num_inputs // width, width)
    return torch.einsum("gawbw->gab", blocks) / width


def first_factor(module: nn.Sequential, groups: int) -> Tensor:
    """The first factor (groups, K, a) of a module that `TwoFactors.build` returned."""
    weight = weight_of(module[0])
    return weight.detach().reshape(groups, -1, weight[0].numel())
