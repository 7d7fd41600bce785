"""What counts as close for one layer: its real inputs, and how much the network's outputs feel each of its outputs.

Plain truncation treats a layer's inputs as white noise. With the inputs' covariance C and the outputs' weight G the
error of factors W~ of a weight W is tr(G (W~ - W) C (W~ - W)^T): the mean squared change of the network's outputs,
to first order and with C and G taken as independent (K-FAC; Martens and Grosse 2015).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Added to the diagonals as a share of their mean: directions never seen keep a little weight, so that factors of a
# singular covariance stay those of the layer. The outputs' floor is higher, being estimated from fewer passes.
INPUT_FLOOR = 0.01
OUTPUT_FLOOR = 0.01


@dataclass(frozen=True)
class LayerMoments:
    """Second moments of what enters one output of a layer, per group, and the weight of its outputs; float64.

    Attributes:
        covariance: (groups, n, n), n = Ci/groups * kh * kw in the order of the weight; positive definite.
        mean: (groups, n), which a bias can make up for.
        outputs: (groups, Co/groups, Co/groups), positive definite.
    """

    covariance: Tensor
    mean: Tensor
    outputs: Tensor


def identity_moments(groups: int, num_inputs: int, num_outputs: int) -> LayerMoments:
    """The metric of plain truncation: independent inputs of unit variance, all outputs alike."""
    return LayerMoments(
        covariance=torch.eye(num_inputs, dtype=torch.float64).expand(groups, -1, -1),
        mean=torch.zeros(groups, num_inputs, dtype=torch.float64),
        outputs=torch.eye(num_outputs, dtype=torch.float64).expand(groups, -1, -1),
    )


def with_floor(matrices: Tensor, share: float) -> Tensor:
    """Symmetric positive semi-definite (groups, n, n) plus `share` of the mean diagonal (1 if all is zero)."""
    level = matrices.diagonal(dim1=-2, dim2=-1).mean(-1)
    level = torch.where(level > 0, share * level, torch.ones_like(level))
    return matrices + level[:, None, None] * torch.eye(matrices.shape[-1], dtype=matrices.dtype)
