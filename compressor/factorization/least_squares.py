"""Second factors by least squares: the best combination of given features, in a layer's own metric."""

import torch
from torch import Tensor, linalg

from compressor.factorization.base import Layer
from compressor.factorization.moments import LayerMoments

# Added to the features' covariance as a share of its mean diagonal: features may be (nearly) dependent.
JITTER = {torch.float64: 1e-10, torch.float32: 1e-5}


class NestedRefit:
    """Least squares for second factors at every rank from one Cholesky decomposition.

    With features z = T x of a patch x the second factor is W C T^T (T C T^T)^-1. Its leading block at a smaller rank
    needs only the leading block of the triangular factor, so a rank costs one triangular solve. How much the outputs
    weigh makes no difference here: every output has its own least-squares problem.

    Args:
        kernel: (groups, Co/groups, a, kw), float64.
        metric: covariance of the patches, (groups, a * kw, a * kw).
        first: (groups, K, a), float64.
    """

    def __init__(self, kernel: Tensor, moments: LayerMoments, first: Tensor) -> None:
        groups, _num_out, num_in, self._width = kernel.shape
        self.max_rank = first.shape[1]
        size = self.max_rank * self._width
        covariance = moments.covariance.reshape(groups, num_in, self._width, -1)
        seen = torch.einsum("gka,gawn->gkwn", first, covariance)
        patches = seen.reshape(groups, size, num_in, self._width)
        features = torch.einsum("gsbv,glb->gslv", patches, first).reshape(groups, size, size)
        wanted = seen.reshape(groups, size, -1) @ kernel.flatten(2).mT
        self._root = linalg.cholesky(regular(features))
        self._projected = linalg.solve_triangular(self._root, wanted, upper=False)
        flat = kernel.flatten(2)
        self._energy = float(((flat @ moments.covariance) * flat).sum())

    def second(self, rank: int) -> Tensor:
        """Second factors (groups, Co/groups, rank, kw), float64."""
        size = rank * self._width
        root, projected = self._root[:, :size, :size], self._projected[:, :size]
        solution = linalg.solve_triangular(root.mT, projected, upper=True)
        return solution.reshape(len(root), rank, self._width, -1).permute(0, 3, 1, 2)

    def orthonormal(self, rank: int) -> tuple[Tensor, Tensor]:
        """Combinations (groups, rank * kw, rank * kw) of the features, each of itself and those before it, that make
        them orthonormal in the metric, and what these add to the outputs (groups, rank * kw, Co/groups), which is the
        same at every rank; float64."""
        size = rank * self._width
        root = self._root[:, :size, :size]
        combine = linalg.solve_triangular(root, torch.eye(size, dtype=root.dtype).expand_as(root), upper=False)
        return combine, self._projected[:, :size]

    def squared_error(self, rank: int) -> float:
        """Mean squared error of the layer's outputs in the metric, summed over outputs."""
        kept = float(self._projected[:, : rank * self._width].square().sum())
        return max(0.0, self._energy - kept)

    def kept(self, outputs: Tensor) -> float:
        """What the features keep of the outputs' energy, outputs weighing (groups, Co/groups, Co/groups); the error is
        a constant less this."""
        return float(((self._projected @ outputs) * self._projected).sum())


def refit_of(layer: Layer, moments: LayerMoments, features: Tensor) -> NestedRefit:
    """Last factors for the first 1, 2, ... of `features` T (F, n) of whole patches; for layers of one group."""
    kernel = layer.weight.detach().flatten(1).double().cpu()
    return NestedRefit(kernel[None, :, :, None], moments, features[None])


def refit_layer(layer: Layer, moments: LayerMoments, features: Tensor, refit: NestedRefit) -> tuple[Tensor, Tensor]:
    """The last factor (Co, F) and bias (Co,) that make the best of `features` T (F, n); for layers of one group.

    Both in the layer's own type and on its device. `refit` is that of these features, or of more that begin with them.
    """
    weight = layer.weight.detach().flatten(1).double().cpu()
    last = refit.second(len(features))[0, :, :, 0]
    bias = (weight - last @ features) @ moments.mean[0]
    if layer.bias is not None:
        bias = bias + layer.bias.detach().double().cpu()
    return last.to(layer.weight), bias.to(layer.weight)


def regular(covariance: Tensor) -> Tensor:
    """A covariance (..., n, n) that a Cholesky decomposition will take, its features being (nearly) dependent."""
    level = JITTER[covariance.dtype] * covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)
    return covariance + level[..., None, None] * torch.eye(covariance.shape[-1], dtype=covariance.dtype)
