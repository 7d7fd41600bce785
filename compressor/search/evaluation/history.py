"""The evaluations of a search: those to be made, and those made so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from compressor.arrays import Ranks
from compressor.fidelity.losses import Losses


@dataclass(frozen=True)
class Evaluation:
    """A plan to be evaluated on some images.

    Attributes:
        source: what asked for it: one of the names below.
        ranks: the plan (d,).
        images: indices (m,) into the pool.
        is_uncounted: no budget counts it: at a plan that differs in one layer from the initial design's best, of a
            Gauss-Newton step, or of the final racing.
    """

    source: str
    ranks: Ranks
    images: np.ndarray
    is_uncounted: bool = False


SENSITIVITY = "sensitivity"  # one layer compressed, all others dense; the journal alone keeps it
INITIAL = "initial"  # the initial design
REFINEMENT = "refinement"  # a Gauss-Newton step
CANDIDATE = "candidate"  # the acquisition function's choice
REMEASURE = "re-measure"  # the incumbent on more images
TARGET = "target"  # a plan that keeps to the target and may be better
RACING = "racing"  # the final racing


@dataclass(frozen=True)
class ParetoPlan:
    """Ranks (d,) with their R, and the posterior mean and standard deviation of their L."""

    ranks: Ranks
    ratio: float
    function_norm: float
    function_norm_sd: float


@dataclass
class History:
    """All evaluations so far, in order.

    Attributes:
        ranks: the plans, (d,) each.
        losses: their losses on the images of the evaluation.
        norms: estimates of L.
        function_norms: estimates of the function norm, which L is or is not.
        sources: what asked for each.
    """

    ranks: list[Ranks] = field(default_factory=list)
    losses: list[Losses] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    function_norms: list[float] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def add(self, evaluation: Evaluation, losses: Losses) -> None:
        """Append one evaluation with its losses."""
        self.ranks.append(evaluation.ranks)
        self.losses.append(losses)
        self.norms.append(losses.mean)
        self.function_norms.append(losses.function_norm)
        self.sources.append(evaluation.source)

    def seen(self, ranks: Ranks) -> np.ndarray:
        """Indices of all images on which a plan (d,) was evaluated."""
        none = np.zeros(0, dtype=np.int64)
        return np.concatenate([none, *(self.losses[index].indices for index in self._indices_of(ranks))])

    def losses_of(self, ranks: Ranks) -> Losses:
        """All losses of an evaluated plan (d,), one per image."""
        return merge_losses([self.losses[index] for index in self._indices_of(ranks)])

    def _indices_of(self, ranks: Ranks) -> list[int]:
        return (np.array(self.ranks).reshape(-1, len(ranks)) == ranks).all(1).nonzero()[0].tolist()


def merge_losses(parts: Sequence[Losses]) -> Losses:
    """Losses of one plan from several evaluations as one, every image once and in the order of the indices."""
    indices, first = np.unique(np.concatenate([part.indices for part in parts]), return_index=True)

    def merged(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
        known = [array for array in arrays if array is not None]
        return np.concatenate(known)[first] if len(known) == len(arrays) else None

    values = np.concatenate([part.values for part in parts])[first]
    return Losses(indices, values, merged([part.squares for part in parts]), merged([part.flips for part in parts]))
