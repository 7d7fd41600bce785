"""The interface of a layer's factors, and the decompositions that they are made by."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d

from compressor.factorization.layers.kinds import Layer
from compressor.factorization.moments import LayerMoments

COLUMNS_AT_ONCE = 4096  # of a matrix that is decomposed


class AllRanks(Protocol):
    """A layer at ranks 1..K at once."""

    def along(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """Inner products of gradients with the layer's outputs at every rank.

        Args:
            inputs: of the layer (b, ...).
            gradients: by its outputs (p, b, ...).

        Returns:
            (p, b, K), for ranks 1 to K.
        """


class LayerByRank(Protocol):
    """What replaces a layer at each of its ranks; `Factors` are that."""

    def build(self, rank: int) -> nn.Module:
        """See `Factors.build`."""

    def nested(self, limit: int) -> AllRanks | None:
        """See `Factors.nested`."""


@dataclass(frozen=True)
class NestedFactors:
    """A layer's factors at all ranks 1..K at once: the layer's output is the bias plus a sum over features, and a lower
    rank leaves out the last features.

    Attributes:
        features: modules from the layer's inputs to groups * K * width features per position.
        outputs: what each feature adds to its group's outputs (groups, K * width, Co/groups).
        bias: (Co,), None for none.
        width: features per rank.
        channels_last: whether channels are the last axis of inputs, features and outputs, as in linear layers.
    """

    features: nn.Module
    outputs: Tensor
    bias: Tensor | None
    width: int
    channels_last: bool

    def along(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """See `AllRanks.along`."""
        features = self._by_position(self.features(inputs))
        is_long = len(self.outputs) == 1 and features.shape[-1] > self.outputs.shape[-1]
        by_feature = self._by_products_over_positions if is_long else self._by_features_of_gradients
        features, sums = features if is_long else features.contiguous(), []
        for gradient in gradients:  # one by one: along the features of a large layer, all of them take gigabytes
            gradient = self._by_position(gradient)
            by_rank = by_feature(features, gradient).cumsum(-1)[..., self.width - 1 :: self.width]
            sums.append(by_rank if self.bias is None else by_rank + (gradient.sum(-1) @ self.bias)[:, None])
        return torch.stack(sums)

    def _by_products_over_positions(self, features: Tensor, gradient: Tensor) -> Tensor:
        """Inner products (b, F) of a gradient (b, Co, n) with what each of the features (b, F, n) adds to the outputs.

        Sums over positions come first: with more positions than outputs, that leaves the fewer numbers.
        """
        return (features @ gradient.mT).mul_(self.outputs[0]).sum(-1)

    def _by_features_of_gradients(self, features: Tensor, gradient: Tensor) -> Tensor:
        """The same for few positions, and for groups: sums (b, F) over these."""
        groups, weight = len(self.outputs), self.outputs.flatten(0, 1)[..., None]
        # For few positions a convolution is faster than products of matrices.
        by_feature = conv1d(gradient, weight, groups=groups).mul_(features).sum(-1)
        return by_feature.unflatten(-1, (groups, -1)).sum(-2)

    def _by_position(self, values: Tensor) -> Tensor:
        """Features or outputs (b, ...) as (b, channels, positions), a view of them."""
        last = values if self.channels_last else values.movedim(1, -1)
        return last.reshape(len(last), -1, last.shape[-1]).mT


class Factors(ABC):
    """The factors of one layer at every rank, made from the layer and, where given, its second moments.

    The factors at a rank depend on layer, moments and rank alone, never on which ranks were built before, so that a
    resumed search evaluates the same candidates.

    Attributes:
        max_rank: the rank at which the factors reproduce the layer (to float32 rounding).
    """

    max_rank: int

    @abstractmethod
    def __init__(self, layer: Any, moments: LayerMoments | None = None) -> None:
        """Factorize `layer`, with `moments` by what its outputs lose, else by its weight alone."""

    @staticmethod
    @abstractmethod
    def factor_params(shape: Sequence[int], groups: int, rank: int) -> tuple[int, ...]:
        """Parameters of each factor of a weight of `shape` (Co, Ci/groups, ...) at `rank` per group.

        Their sum must not fall with the rank.

        Args:
            shape: of the weight, (Co, Ci/groups, ...).
            groups: of the convolution, else 1.
            rank: of every group.
        """

    @staticmethod
    @abstractmethod
    def full_rank(shape: Sequence[int], groups: int) -> int:
        """Rank at which the factors of a weight of `shape` (Co, Ci/groups, ...) are exact."""

    @abstractmethod
    def build(self, rank: int) -> nn.Module:
        """The modules that replace the layer at `rank` (1 to `max_rank`).

        A chain of convolutions and linear layers is saved, refitted and exported without further code; another module,
        like `Interpolated`, must be known to `network.serialization` and `recovery.reconstruction`.
        """

    def nested(self, limit: int) -> AllRanks | None:
        """Ranks 1 to `limit` at once; None where a rank is no truncation of a higher one."""
        return None

    @abstractmethod
    def squared_error(self, rank: int) -> float:
        """||W - W_rank||_F^2, or the outputs' mean squared error where there are moments; never grows with the rank."""

    def check_rank(self, rank: int) -> None:
        """Refuse a rank outside 1 to `max_rank`.

        Raises:
            ValueError: it is outside.
        """
        if not 1 <= rank <= self.max_rank:
            raise ValueError(f"rank must lie in 1..{self.max_rank}, got {rank}")


class JointFactors(ABC):
    """What several layers become at once, at every rank, such as the readers of hidden channels at every width.

    Attributes:
        layers: those that are replaced, by name.
        max_rank: the rank at which they are left as they are.
    """

    layers: Mapping[str, Layer]
    max_rank: int

    @abstractmethod
    def build(self, rank: int) -> Mapping[str, nn.Module]:
        """The modules that replace the layers at `rank` (1 to `max_rank`), by name."""

    @abstractmethod
    def nested(self, name: str, limit: int) -> AllRanks:
        """One layer at ranks 1 to `limit` at once."""


def built(name: str, factors: LayerByRank | JointFactors, rank: int) -> Mapping[str, nn.Module]:
    """The modules of some factors at a rank, by the names of the layers that they replace.

    Args:
        name: of the layer, or of what `JointFactors` are of.
        factors: its factors.
        rank: the rank.
    """
    return factors.build(rank) if isinstance(factors, JointFactors) else {name: factors.build(rank)}


def split_grouped_matrices(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of one matrix per group, with the singular values shared evenly between both sides.

    Args:
        matrices: (groups, H, W), any float dtype.

    Returns:
        left (groups, H, K), right (groups, K, W) and the squared singular values (groups, K), K = min(H, W),
        such that left[..., :k] @ right[:, :k] is the best rank-k approximation of each matrix.
    """
    left, values, right = svd_by_gram(matrices.detach())
    root = values.sqrt()
    left = left.mul_(root[..., None, :]).float()
    return left, right.mul_(root[..., None]).float(), values.square()


def svd_by_gram(matrices: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD from the eigenvectors of the shorter side's Gram matrix (Golub and Van Loan, Sec. 8.6).

    Ten times as fast as an SVD of the matrices. Singular values below 1e-8 of the largest are rounding, 3e-4 of it in
    single precision, and the longer side's vectors are orthonormal above that; the product is exact at full rank all
    the same.

    Args:
        matrices: (..., H, W).
        dtype: what is computed in.

    Returns:
        left (..., H, K), the singular values (..., K), largest first, and right (..., K, W); K = min(H, W). The vectors
        of the longer side are of the matrices' type, the others and the values of `dtype`.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        left, values, right = svd_by_gram(matrices.mT, dtype)
        return right.mT, values, left.mT
    columns = matrices.split(COLUMNS_AT_ONCE, -1)  # some at a time: of a large layer, a copy takes a gigabyte
    gram = matrices.new_zeros(*matrices.shape[:-1], matrices.shape[-2], dtype=dtype)
    for some in columns:
        gram += some.to(dtype) @ some.to(dtype).mT
    left = torch.linalg.eigh(gram)[1].flip(-1)
    right, squares = torch.empty_like(matrices), left.new_zeros(left.shape[:-1])
    for some, into in zip(columns, right.split(COLUMNS_AT_ONCE, -1), strict=True):
        product = left.mT @ some.to(dtype)
        squares += product.square().sum(-1)
        into.copy_(product)
    values = squares.sqrt()
    return left, values, right.div_(values.clamp_min(torch.finfo(right.dtype).tiny)[..., None])


def tail_energy(squared_singular_values: Tensor) -> list[float]:
    """Energy that truncation discards at ranks 0..K, K + 1 numbers, from squared singular values (groups, K)."""
    energies = squared_singular_values.sum(0)
    tails = energies.flip(0).cumsum(0).flip(0)
    return [*tails.tolist(), 0.0]
