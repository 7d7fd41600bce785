"""What every factorization offers, and the small pieces they share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Layer = nn.Conv2d | nn.Linear
L = TypeVar("L", nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class NestedFactors:
    """A layer's factors at all ranks 1..K at once: what they give at one is the bias and a sum over features, of which
    a lower rank leaves out the last.

    Attributes:
        features: modules from the layer's inputs to groups * K * width features per place.
        outputs: what each adds to its group's outputs (groups, K * width, Co/groups).
        bias: (Co,), None for none.
        width: features per rank.
        channels_last: whether channels are the last axis of inputs, features and outputs, as in linear layers.
    """

    features: nn.Module
    outputs: Tensor
    bias: Tensor | None
    width: int
    channels_last: bool


class Factors(ABC):
    """The factors of one layer at every rank; where they are nested, one computation of which a rank is a slice.

    Factors of a rank depend on the weight and the rank alone, never on what was asked before: a resumed search sees
    the same candidates. `max_rank` is the rank at which they reproduce the layer (to float32 rounding).
    """

    max_rank: int

    @abstractmethod
    def build(self, rank: int) -> nn.Module:
        """Modules that stand in for the layer at `rank` (1 to `max_rank`)."""

    def nested(self, limit: int) -> NestedFactors | None:
        """Ranks 1 to `limit` at once; None where a rank is no truncation of a higher one."""
        return None

    @abstractmethod
    def squared_error(self, rank: int) -> float:
        """||W - W_rank||_F^2, the energy of the weight that `rank` gives up; it does not grow with the rank."""

    def check_rank(self, rank: int) -> None:
        """Raises ValueError unless 1 <= rank <= max_rank."""
        if not 1 <= rank <= self.max_rank:
            raise ValueError(f"rank must lie in 1..{self.max_rank}, got {rank}")


def split_grouped_matrices(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of one matrix per group, with the singular values shared evenly between both sides.

    Args:
        matrices: (groups, H, W), any float dtype.

    Returns:
        left (groups, H, K), right (groups, K, W) and the squared singular values (groups, K), K = min(H, W),
        such that left[..., :k] @ right[:, :k] is the best rank-k approximation of each matrix.
    """
    U, S, Vh = torch.linalg.svd(matrices.detach().float(), full_matrices=False)
    root = S.sqrt()
    return U * root.unsqueeze(-2), root.unsqueeze(-1) * Vh, S.double().square()


def tail_energy(squared_singular_values: Tensor) -> list[float]:
    """Energy that truncation gives up at ranks 0..K, from squared singular values (groups, K)."""
    energies = squared_singular_values.sum(0)
    tails = energies.flip(0).cumsum(0).flip(0)
    return [*tails.tolist(), 0.0]


class _EmptyConv2d(nn.Conv2d):
    """A convolution whose weights are about to be given: to draw some, even on the meta device, takes four times as
    long as all the rest, and a candidate network has dozens."""

    def reset_parameters(self) -> None:
        """Draws nothing."""


class _EmptyLinear(nn.Linear):
    """A linear layer likewise."""

    def reset_parameters(self) -> None:
        """Draws nothing."""


def make_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer around existing tensors; `weight` is (Co, Ci)."""
    layer = _EmptyLinear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.__class__ = nn.Linear  # type: ignore[assignment]
    return _adopt(layer, weight, bias)


def make_conv(weight: Tensor, bias: Tensor | None, like: nn.Conv2d, groups: int, **geometry: Any) -> nn.Conv2d:
    """A convolution around existing tensors; `weight` is (Co, Ci/groups, kh, kw).

    `geometry` gives stride, padding and dilation; the padding mode is that of `like`.
    """
    layer = _EmptyConv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        groups=groups,
        bias=bias is not None,
        padding_mode=like.padding_mode,
        device="meta",
        **geometry,
    )
    layer.__class__ = nn.Conv2d  # type: ignore[assignment]
    return _adopt(layer, weight, bias)


def _adopt(layer: L, weight: Tensor, bias: Tensor | None) -> L:
    layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer.eval()


def chain(*layers: nn.Module) -> nn.Sequential:
    """The factors in order, in eval mode as a whole."""
    return nn.Sequential(*layers).eval()


def untouched_geometry() -> dict[str, Any]:
    """Stride, padding and dilation of a 1 x 1 convolution that changes no position."""
    return {"stride": 1, "padding": 0, "dilation": 1}


def one_axis_geometry(layer: nn.Conv2d, axis: int) -> dict[str, Any]:
    """The layer's stride, padding and dilation along one axis (0: rows, 1: columns), and none along the other."""
    padding = layer.padding
    return {
        "stride": _only(layer.stride, axis, 1),
        "padding": padding if isinstance(padding, str) else _only(padding, axis, 0),
        "dilation": _only(layer.dilation, axis, 1),
    }


def _only(values: Sequence[int], axis: int, neutral: int) -> tuple[int, int]:
    return (values[0], neutral) if axis == 0 else (neutral, values[1])
