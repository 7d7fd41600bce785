"""The best of a few plans too alike for the process to log apart: looks at all of them on the same images.

Differences between like plans vary far less from image to image than their losses do. Those that fall behind the best
are dropped, so that later images are spent on what is still open (Maron and Moore 1994, "Hoeffding races").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.losses import Losses
from compressor.search.evaluation.evaluator import Evaluator
from compressor.search.evaluation.history import Evaluation, merge_losses
from compressor.search.evaluation.journal import FINAL_RACING
from compressor.search.space import alternatives, with_rank
from compressor.search.surrogate.posterior import Posterior
from compressor.streams import Stream, generator

NUM_CHALLENGERS = 8
NUM_ROUNDS = 8
EVALUATIONS_WORTH = 4  # images at most, in looks of the search
DOUBT = 1.0  # standard errors behind the best at which a plan is dropped


def challengers_of(initial_best: Ranks, posterior: Posterior, visited: Ranks) -> list[Ranks]:
    """The plans (d,) of highest posterior mean among those `visited` (n, d) and those with one other rank than the
    champion (d,)."""
    others = alternatives(posterior.space, initial_best)
    around = [with_rank(initial_best, layer, rank) for layer, ranks in enumerate(others) for rank in ranks]
    plans = np.unique(np.array([*around, *visited]), axis=0)
    plans = plans[(plans != initial_best).any(1)]
    return list(plans[np.argsort(-posterior.mean(plans), kind="stable")[:NUM_CHALLENGERS]])


@dataclass(frozen=True)
class Racing:
    """A race between plans on images of the search.

    Its looks stay out of the process, but for the winner's.

    Args:
        flattering: indices of images that are taken last, because some plans were chosen by them.
    """

    evaluator: Evaluator
    fitted_on: np.ndarray

    def run(self, plans: Sequence[Ranks]) -> Ranks:
        """The plan (d,) with the highest mean J; of equal ones the first."""
        found: list[list[Losses]] = [[] for _ in plans]
        left = list(range(len(plans)))
        images = self._images()
        for part in np.array_split(images, max(1, min(NUM_ROUNDS, len(images) // 2))):
            if self.evaluator.spent_time():
                break
            evaluations = self.evaluator.observe([Evaluation(FINAL_RACING, plans[index], part) for index in left])
            for index, losses in zip(left, evaluations, strict=True):
                found[index].append(losses)
            left = self._still_open(plans, found, left)
            if len(left) == 1:
                break
        winner = plans[left[0]]
        if found[left[0]]:
            self.evaluator.keep_new(FINAL_RACING, winner, merge_losses(found[left[0]]))
        return winner

    def _images(self) -> np.ndarray:
        settings, count = self.evaluator.settings, self.evaluator.num_images
        images = generator(settings.seed, Stream.RACING).permutation(count)
        flatter = np.isin(images, self.fitted_on)
        return np.concatenate([images[~flatter], images[flatter]])[: EVALUATIONS_WORTH * settings.samples]

    def _still_open(self, plans: Sequence[Ranks], found: list[list[Losses]], left: list[int]) -> list[int]:
        """Indices of the plans that are not behind the best by more than chance; the best comes first."""
        values = {index: self._values(plans[index], found[index]) for index in left}
        order = sorted(left, key=lambda index: -values[index].mean())
        best = values[order[0]]
        return [index for index in order if index == order[0] or not is_better(best, values[index])]

    def _values(self, ranks: Ranks, losses: Sequence[Losses]) -> Array:
        """J (m,) by image, in the order of the looks."""
        norms = np.concatenate([one.values for one in losses])
        return self.evaluator.objective.value(norms, np.array(self.evaluator.ratio(ranks)))


def is_better(values: Array, others: Array) -> bool:
    """Whether J (m,) is greater than another plan's on the same images by more than chance would have it."""
    gains = values - others
    return len(gains) > 1 and bool(gains.mean() > DOUBT * gains.std(ddof=1) / np.sqrt(len(gains)))
