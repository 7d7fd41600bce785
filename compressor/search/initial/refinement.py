"""Steps by the linear model from the start's plan, as far as looks on other images say that it is better."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.linear_model import Linearize
from compressor.fidelity.losses import Losses
from compressor.search.evaluation.history import Evaluation, merge_losses
from compressor.search.evaluation.journal import Journal, StepRow
from compressor.search.initial import gauss_newton as refine
from compressor.search.initial.sensitivity import few_images
from compressor.search.objective import Objective
from compressor.search.space import RankSpace, alternatives
from compressor.streams import Stream, generator

NUM_STEPS = 2
# Images for the last model, for every layer and in looks of the search: no fewer than one, and at most.
IMAGES_PER_LAYER, MAX_FOR_MODEL = 7, 4
# And for those before: from where the curve led, almost any step helps.
FIRST_PER_LAYER, FIRST_SHARE = 1.3, 0.4
MAX_FOR_EVALUATIONS = 2  # in looks of the search, at most: images to log by which plan is best


@dataclass
class Refinement:
    """From a plan to a better one.

    Its looks stay out of the Gaussian process but for the plan that they lead to: plans that are so alike teach it that
    all noise is shared.

    Args:
        linearize, observe: the linear model around a plan, and losses of looks; both are counted by who gives them.
        num_images: size of the pool, `samples` of which are a look's.

    Attributes:
        passes: that all models took.
        last: what the last step's model said; None where it had too few images.
        fitted_on: indices of the images that models knew, which flatter the plans that they led to.
    """

    space: RankSpace
    linearize: Linearize
    observe: Callable[[Sequence[Evaluation]], list[Losses]]
    journal: Journal
    num_images: int
    samples: int
    seed: int
    passes: int = 0
    last: StepRow | None = None
    fitted_on: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    _losses: dict[bytes, Losses] = field(default_factory=dict)
    _count: int = 0  # of steps so far; every one takes other images

    def step(self, objective: Objective, plan: Ranks, known: Losses, per_norm: float) -> tuple[Ranks, Losses]:
        """The best of `plan` (d,) and others on the way to where the model leads, with all that is known of its losses.

        The model knows its own images too well: the plans are looked at on others, which they share.

        Args:
            known: losses of `plan`.
            per_norm: how much L comes with a function norm of 1.
        """
        self.last = None
        self._remember(plan, known)
        for_model, for_evaluations = self._divide(plan)
        self._count += 1
        if min(len(for_model), len(for_evaluations)) < 2:
            return plan, known
        self.fitted_on = np.union1d(self.fitted_on, for_model)
        target = self._target(objective, plan, for_model, per_norm)
        plans = refine.on_the_way(self.space, plan, target)
        if len(plans) < 2:
            return plan, known
        self._look(plans, for_evaluations)
        values = [self._values(objective, ranks, for_evaluations) for ranks in plans]
        chosen = plans[int(np.argmax([value.mean() for value in values]))]
        return chosen, self._losses[chosen.tobytes()]

    def _divide(self, plan: Ranks) -> tuple[np.ndarray, np.ndarray]:
        """Images for the linear model, and others for looks: those that the plan has not been looked at with first."""
        images = generator(self.seed, Stream.REFINEMENT, self._count).permutation(self.num_images)
        seen = np.isin(images, self._losses[plan.tobytes()].indices)
        fresh = images[~seen] if (~seen).sum() > 1 else images[:0]  # of a single image there is no variance
        ordered = np.concatenate([fresh, images[seen]])
        for_model, evaluations = self._num_images()
        return ordered[evaluations:][:for_model], ordered[:evaluations]

    def _num_images(self) -> tuple[int, int]:
        """For the linear model, and for looks: half as many after the first models, which are soon left behind."""
        num_dims, samples = self.space.num_dims, self.samples
        if self._count == NUM_STEPS - 1:
            for_model = evaluations = min(max(IMAGES_PER_LAYER * num_dims, samples), MAX_FOR_MODEL * samples)
        else:
            for_model = max(few_images(FIRST_SHARE * samples, num_dims), int(FIRST_PER_LAYER * num_dims))
            evaluations = for_model // 2
        least = min(samples, self.num_images) // 2
        return min(for_model, self.num_images // 2), min(max(evaluations, least), MAX_FOR_EVALUATIONS * samples)

    def _target(self, objective: Objective, plan: Ranks, images: np.ndarray, per_norm: float) -> Ranks:
        """The plan (d,) that the model around `plan` holds for the best: the journal's answer, if it has one."""
        row = self.journal.recall_step(plan, images)
        if row is None:
            row = self.journal.append_step(self._model_step(objective, plan, images, per_norm))
        self.passes += row.passes
        self.last = row
        return np.array(row.step_to, dtype=np.int64)

    def _model_step(self, objective: Objective, plan: Ranks, images: np.ndarray, per_norm: float) -> StepRow:
        model = self.linearize(plan, alternatives(self.space, plan), images, refine.DIRECTIONS)
        target = refine.descend(self.space, objective, plan, model, per_norm)
        return StepRow(
            step_from=plan.tolist(),
            step_to=target.tolist(),
            norm=model.norm,
            norms_alone=model.norms_alone(),
            images=images.tolist(),
            passes=model.passes,
        )

    def _look(self, plans: Sequence[Ranks], images: np.ndarray) -> None:
        """Evaluator at the plans on those of the images that are new to them."""
        evaluations = []
        for ranks in plans:
            known = self._losses.get(ranks.tobytes())
            new = images if known is None else images[~np.isin(images, known.indices)]
            # Two images at least: the journal keeps every look's variance.
            if len(new):
                evaluations.append(Evaluation("refinement", ranks, new if len(new) > 1 else images))
        for evaluation, losses in zip(evaluations, self.observe(evaluations), strict=True):
            self._remember(evaluation.ranks, losses)

    def _remember(self, ranks: Ranks, losses: Losses) -> None:
        known = self._losses.get(ranks.tobytes())
        self._losses[ranks.tobytes()] = merge_losses([losses] if known is None else [known, losses])  # in order

    def _values(self, objective: Objective, ranks: Ranks, images: np.ndarray) -> Array:
        """J (m,) of a plan by each of the images, in the order of their indices."""
        return objective.value(self._losses[ranks.tobytes()].on(images).values, self.space.ratio(ranks[None])[0])
