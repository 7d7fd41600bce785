"""Second factors by least squares: the best combination of given features under a layer's second moments."""

import torch
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor, linalg

from compressor.factorization.layers.kinds import Layer, weight_of
from compressor.factorization.moments import LayerMoments

# Added to the features' covariance as a share of its mean diagonal, as features may be (nearly) dependent.
JITTER = {torch.float64: 1e-10, torch.float32: 1e-5}


class NestedRefit:
    """Least squares for second factors at every rank from one Cholesky decomposition.

    With features z = T x of a patch x the second factor is W C T^T (T C T^T)^-1. At a smaller rank it needs only the
    leading block of the triangular factor, so a rank costs one triangular solve. The output gradients do not enter:
    every output has its own least-squares problem. What is kept is in single precision: it takes most of a run's
    memory, and its rounding is far below the floor under the covariance.

    Args:
        kernel: the weight, (groups, Co/groups, a, kw).
        moments: with the covariance of the patches, (groups, a * kw, a * kw).
        first: the first factor, (groups, K, a).
    """

    def __init__(self, kernel: Tensor, moments: LayerMoments, first: Tensor) -> None:
        groups, num_out, num_in, self._width = kernel.shape
        self.max_rank = first.shape[1]
        size = self.max_rank * self._width
        large, exact = moments.covariance.dtype, moments.mean.dtype
        first = first.to(large)
        mixed = torch.einsum("gka,gawn->gkwn", first, moments.covariance.reshape(groups, num_in, self._width, -1))
        patches = mixed.reshape(groups, size, num_in, self._width)
        features = torch.einsum("gsbv,glb->gslv", patches, first).reshape(groups, size, size)
        del mixed, patches
        crossed = moments.crossed(kernel)
        columns = crossed.reshape(groups, num_out, num_in, self._width)
        products = torch.einsum("gka,goaw->gkwo", first, columns).reshape(groups, size, num_out)
        root = linalg.cholesky(regular(features).to(exact))
        self._root = root.float()
        projected = linalg.solve_triangular(root, products.to(exact), upper=False)
        self._projected = projected.float()
        self._exact = exact
        energy = (crossed * kernel.flatten(2).to(large)).sum(dtype=exact)
        self._errors = energy - projected.square().sum((0, 2)).unflatten(0, (-1, self._width)).sum(1).cumsum(0)

    def second(self, rank: int) -> Tensor:
        """Second factors (groups, Co/groups, rank, kw), of the type of their mean."""
        size = rank * self._width
        root, projected = self._root[:, :size, :size], self._projected[:, :size]
        solution = linalg.solve_triangular(root.mT, projected, upper=True).to(self._exact)
        return solution.reshape(len(root), rank, self._width, -1).permute(0, 3, 1, 2)

    def orthonormal(self, rank: int) -> tuple[Tensor, Tensor]:
        """The features made orthonormal under the inputs' covariance, each from itself and those before it.

        Returns:
            Coefficients (groups, rank * kw, rank * kw), float32, of the new features, and what each adds to the outputs
            (groups, rank * kw, Co/groups), the same at every rank.
        """
        size = rank * self._width
        root = self._root[:, :size, :size]
        combine = linalg.solve_triangular(root, torch.eye(size, dtype=root.dtype).expand_as(root), upper=False)
        return combine, self._projected[:, :size]

    def squared_error(self, rank: int) -> float:
        """Mean squared error of the layer's outputs about their mean, summed over outputs."""
        return max(0.0, float(self._errors[rank - 1]))

    def kept(self, outputs: Tensor) -> float:
        """Energy of the outputs that the features keep, weighted by `outputs` (groups, Co/groups, Co/groups).

        The weighted error is a constant less this.
        """
        projected = self._projected.to(outputs)
        return float(((projected @ outputs) * projected).sum())


def refit_of(layer: Layer, moments: LayerMoments, features: Tensor) -> NestedRefit:
    """Least squares of last factors on the first 1, 2, ... of some features of whole patches; for one group.

    Args:
        layer: whose outputs are to be met.
        moments: of its inputs and outputs.
        features: T (F, n), each a combination of the n inputs.
    """
    kernel = weight_of(layer).detach().flatten(1).double().cpu()
    return NestedRefit(kernel[None, :, :, None], moments, features[None])


def refit_layer(layer: Layer, moments: LayerMoments, features: Tensor, refit: NestedRefit) -> tuple[Tensor, Tensor]:
    """The best last factor and bias for `features`, for layers of one group.

    Args:
        layer: the layer to approximate.
        moments: its second moments.
        features: T (F, n).
        refit: the least squares of these features, or of more that begin with them.

    Returns:
        The factor (Co, F) and the bias (Co,), in the layer's type and on its device.
    """
    weight = weight_of(layer).detach().flatten(1).double().cpu()
    last = refit.second(len(features))[0, :, :, 0]
    bias = (weight - last @ features) @ moments.mean[0]
    if layer.bias is not None:
        bias = bias + layer.bias.detach().double().cpu()
    return last.to(layer.weight), bias.to(layer.weight)


def regular(covariance: Tensor) -> Tensor:
    """The covariance (..., n, n), also of (nearly) dependent features, made fit for a Cholesky decomposition."""
    level = JITTER[covariance.dtype] * covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)
    raised = covariance.clone()
    raised.diagonal(dim1=-2, dim2=-1).add_(level[..., None])
    return raised


def solve_in_place(matrix: Tensor, values: Tensor) -> Tensor:
    """The solution (n, m) for a positive definite matrix (n, n), which is overwritten: torch takes two more of them.

    Args:
        matrix: on the CPU.
        values: right sides (n, m), of the same precision.

    Raises:
        LinAlgError: SciPy's; the matrix is not positive definite.
    """
    # A symmetric matrix is its own transpose, and that has the order of LAPACK.
    factor = cho_factor(matrix.numpy().T, lower=True, overwrite_a=True, check_finite=False)
    return torch.from_numpy(cho_solve(factor, values.numpy(), check_finite=False))
