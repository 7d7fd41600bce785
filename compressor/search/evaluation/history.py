"""What a search has looked at so far, and what it wants to look at."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from compressor.arrays import Ranks
from compressor.fidelity.losses import Losses


@dataclass(frozen=True)
class Evaluation:
    """A plan to look at, ranks (d,), on the images with these indices (m,), and who asked for it.

    `is_uncounted`: at a plan that differs in one layer from the start's best, by refinement, or at the
    end; no budget counts it.
    """

    source: str
    ranks: Ranks
    images: np.ndarray
    is_uncounted: bool = False


@dataclass(frozen=True)
class ParetoPlan:
    """Ranks (d,) with their R, and what is believed of their L."""

    ranks: Ranks
    ratio: float
    function_norm: float
    function_norm_sd: float


@dataclass
class History:
    """All looks so far, in order; `ranks` (n, d) and their losses on the images seen."""

    ranks: list[Ranks] = field(default_factory=list)
    losses: list[Losses] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)  # estimates of L
    function_norms: list[float] = field(default_factory=list)  # the same where L is the function norm
    sources: list[str] = field(default_factory=list)

    def add(self, evaluation: Evaluation, losses: Losses) -> None:
        """One more look."""
        self.ranks.append(evaluation.ranks)
        self.losses.append(losses)
        self.norms.append(losses.mean)
        self.function_norms.append(losses.function_norm)
        self.sources.append(evaluation.source)

    def seen(self, ranks: Ranks) -> np.ndarray:
        """Indices of all images that a plan (d,) has been looked at with."""
        return np.concatenate(
            [
                np.zeros(0, dtype=np.int64),
                *(self.losses[evaluation].indices for evaluation in self._evaluations_of(ranks)),
            ]
        )

    def losses_of(self, ranks: Ranks) -> Losses:
        """All losses of a plan (d,) that has been looked at, one for each image."""
        return merge_losses([self.losses[evaluation] for evaluation in self._evaluations_of(ranks)])

    def _evaluations_of(self, ranks: Ranks) -> list[int]:
        return (np.array(self.ranks).reshape(-1, len(ranks)) == ranks).all(1).nonzero()[0].tolist()


def merge_losses(evaluations: Sequence[Losses]) -> Losses:
    """All looks at one plan as one, every image once."""
    indices, first = np.unique(np.concatenate([evaluation.indices for evaluation in evaluations]), return_index=True)

    def merged(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
        known = [part for part in parts if part is not None]
        return np.concatenate(known)[first] if len(known) == len(parts) else None

    values = np.concatenate([evaluation.values for evaluation in evaluations])[first]
    return Losses(
        indices,
        values,
        merged([evaluation.squares for evaluation in evaluations]),
        merged([evaluation.flips for evaluation in evaluations]),
    )
