"""The final racing: the best of a few plans that the posterior cannot tell apart, all evaluated on the same images.

Differences between similar plans vary far less from image to image than their losses do. Plans that fall behind the
best are dropped, so that later images are spent on those that remain (Maron and Moore 1994, "Hoeffding races").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.losses import Losses
from compressor.search.evaluation.evaluator import Evaluator
from compressor.search.evaluation.history import RACING, Evaluation, merge_losses
from compressor.search.space import alternatives, with_rank
from compressor.search.surrogate.posterior import Posterior
from compressor.streams import Stream, generator

NUM_CHALLENGERS = 8
NUM_ROUNDS = 8
MAX_EVALUATIONS = 4  # images at most, as a multiple of those of one evaluation
DROP_DEVIATIONS = 1.0  # standard errors behind the best at which a plan is dropped


def challengers_of(initial_best: Ranks, posterior: Posterior, visited: Ranks) -> list[Ranks]:
    """The NUM_CHALLENGERS plans (d,) of highest posterior mean beside the best initial plan.

    Args:
        initial_best: the best initial plan (d,); plans that differ from it in one rank are considered.
        posterior: over J.
        visited: evaluated plans (n, d), which are considered, too.
    """
    others = alternatives(posterior.space, initial_best)
    around = [with_rank(initial_best, layer, rank) for layer, ranks in enumerate(others) for rank in ranks]
    plans = np.unique(np.array([*around, *visited]), axis=0)
    is_allowed = posterior.objective.allows(posterior.space.ratio(plans))
    plans = plans[is_allowed & (plans != initial_best).any(1)]
    return list(plans[np.argsort(-posterior.mean(plans), kind="stable")[:NUM_CHALLENGERS]])


@dataclass(frozen=True)
class Racing:
    """A racing between plans. The surrogate learns of the winner's losses alone.

    Args:
        evaluator: evaluates the plans.
        fitted_on: indices of images that were used to choose some of the plans; these images come last.
    """

    evaluator: Evaluator
    fitted_on: np.ndarray

    def run(self, plans: Sequence[Ranks]) -> Ranks:
        """The plan (d,) with the highest mean J; of equal ones the first."""
        found: list[list[Losses]] = [[] for _ in plans]
        left = list(range(len(plans)))
        images = self._images()
        for part in np.array_split(images, max(1, min(NUM_ROUNDS, len(images) // 2))):
            if self.evaluator.is_out_of_time():
                break
            all_losses = self.evaluator.observe([Evaluation(RACING, plans[index], part) for index in left])
            for index, losses in zip(left, all_losses, strict=True):
                found[index].append(losses)
            left = self._remaining(plans, found, left)
            if len(left) == 1:
                break
        winner = plans[left[0]]
        if found[left[0]]:
            self.evaluator.keep_new(RACING, winner, merge_losses(found[left[0]]))
        return winner

    def _images(self) -> np.ndarray:
        settings, count = self.evaluator.settings, self.evaluator.num_images
        images = generator(settings.seed, Stream.RACING).permutation(count)
        is_fitted = np.isin(images, self.fitted_on)
        return np.concatenate([images[~is_fitted], images[is_fitted]])[: MAX_EVALUATIONS * settings.samples]

    def _remaining(self, plans: Sequence[Ranks], found: list[list[Losses]], left: list[int]) -> list[int]:
        """Indices of the plans that are not behind the best by more than chance, the best first."""
        values = {index: self._values(plans[index], found[index]) for index in left}
        order = sorted(left, key=lambda index: -values[index].mean())
        best = values[order[0]]
        return [index for index in order if index == order[0] or not is_better(best, values[index])]

    def _values(self, ranks: Ranks, losses: Sequence[Losses]) -> Array:
        """J (m,) by image, in the order of the evaluations."""
        norms = np.concatenate([one.values for one in losses])
        return self.evaluator.objective.value(norms, np.array(self.evaluator.ratio(ranks)))


def is_better(values: Array, others: Array) -> bool:
    """Whether J (m,) exceeds another plan's J (m,) on the same images by more than DROP_DEVIATIONS standard errors."""
    gains = values - others
    return len(gains) > 1 and bool(gains.mean() > DROP_DEVIATIONS * gains.std(ddof=1) / np.sqrt(len(gains)))
