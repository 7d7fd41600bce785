"""Second moments of a layer's inputs and output gradients: K-FAC's A and G (Martens and Grosse 2015).

Plain truncation treats a layer's inputs as white noise and its outputs as equally important. With the inputs'
covariance C (A about the mean) and the second moment G of the gradients at its outputs, the error of factors W~ of a
weight W is tr(G (W~ - W) C (W~ - W)^T): the mean squared change of the network's outputs, to first order and with C
and G taken as independent.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

# Added to the diagonals, as a share of their mean. Directions that no image shows keep a little weight, so that factors
# under a singular covariance stay close to those of the weight.
INPUT_FLOOR = 0.01
OUTPUT_FLOOR = 0.01


@dataclass(frozen=True)
class LayerMoments:
    """Second moments of a layer, per group, float64 but for the covariance.

    Attributes:
        covariance: of the inputs of one output position, (groups, n, n) with n = Ci/groups * kh * kw in the order of
            the weight; positive definite. K-FAC's A, about the mean. In single precision: it is by far the largest
            matrix of a layer, and what its rounding changes is far below the floor.
        mean: of these inputs, (groups, n); factors can make up for it by their bias.
        outputs: of the gradients of the network's outputs at the layer's outputs, (groups, Co/groups, Co/groups);
            positive definite. K-FAC's G.
    """

    covariance: Tensor
    mean: Tensor
    outputs: Tensor
    _crossed: list[Tensor] = field(default_factory=list, init=False, repr=False, compare=False)

    def crossed(self, kernel: Tensor) -> Tensor:
        """W C (groups, Co/groups, n), in the covariance's precision; kept, as every method asks for it.

        Args:
            kernel: the weight W (groups, Co/groups, ...) with n numbers an output.
        """
        weight = kernel.detach().flatten(2).to(self.covariance)
        if not self._crossed or not torch.equal(self._crossed[0], weight):
            self._crossed[:] = weight, weight @ self.covariance
        return self._crossed[1]


def with_floor(matrices: Tensor, share: float) -> Tensor:
    """Positive semi-definite matrices (groups, n, n) plus `share` of the mean diagonal (plus 1 where that is zero)."""
    raised = matrices.clone()
    raise_floor_(raised, share)
    return raised


def raise_floor_(matrices: Tensor, share: float) -> Tensor:
    """`with_floor` in place; returns what was added to the diagonals (groups,)."""
    level = matrices.diagonal(dim1=-2, dim2=-1).mean(-1)
    level = torch.where(level > 0, share * level, torch.ones_like(level))
    matrices.diagonal(dim1=-2, dim2=-1).add_(level[:, None])
    return level
