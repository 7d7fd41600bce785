"""Refinement of the initial design's best plan: Gauss-Newton steps, each with a line search on other images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.linear_model import Linearize, LinearModel
from compressor.fidelity.losses import Losses
from compressor.search.evaluation.history import REFINEMENT, Evaluation, merge_losses
from compressor.search.evaluation.journal import Journal, StepRow
from compressor.search.expected_gain import ExpectedGain
from compressor.search.initial import gauss_newton
from compressor.search.initial.sensitivity import num_model_images
from compressor.search.objective import Objective
from compressor.search.space import RankSpace, alternatives
from compressor.streams import Stream, generator

NUM_STEPS = 2
# Images of the last step's linear model: per layer, and as multiples of one evaluation's at least 1 and at most this.
IMAGES_PER_LAYER, MAX_MODEL_EVALUATIONS = 7, 4
# Images of the models before: almost any step from the trade-off curve's best plan is a gain.
FIRST_IMAGES_PER_LAYER, FIRST_SHARE = 1.3, 0.4
MAX_LINE_SEARCH_EVALUATIONS = 2  # images of a line search at most, as a multiple of one evaluation's


@dataclass
class Refinement:
    """Takes steps from a plan to a better one.

    Only the losses of the plan that a step leads to are meant for the surrogate: from plans that are so similar it
    would learn that all noise is shared.

    Args:
        space: the ranks.
        linearize: gives the linear model around a plan; its passes are counted by the caller.
        observe: gives losses of evaluations; likewise.
        journal: answers the steps of an earlier run.
        num_images: size of the pool.
        samples: images of one evaluation.
        seed: of the division of images.
        gain: what reconstruction is expected to leave of losses by the linear model.

    Attributes:
        passes: image passes of all linear models.
        last: the last step; None where it had too few images.
        fitted_on: indices of the images that linear models used. They favour the plans that these led to.
    """

    space: RankSpace
    linearize: Linearize
    observe: Callable[[Sequence[Evaluation]], list[Losses]]
    journal: Journal
    num_images: int
    samples: int
    seed: int
    gain: ExpectedGain
    passes: int = 0
    last: StepRow | None = None
    fitted_on: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    _losses: dict[bytes, Losses] = field(default_factory=dict)
    _models: dict[bytes, LinearModel] = field(default_factory=dict)  # the last, by its plan and images
    _count: int = 0  # of steps so far; each uses other images

    def step(self, objective: Objective, plan: Ranks, known: Losses, per_norm: float) -> tuple[Ranks, Losses]:
        """One Gauss-Newton step with a line search, on images that the linear model did not use.

        Args:
            objective: J.
            plan: the plan (d,) to start from.
            known: its losses so far.
            per_norm: L per function norm.

        Returns:
            The best plan (d,) of the line search, and all its losses so far.
        """
        self.last = None
        self._remember(plan, known)
        for_model, for_line_search = self._divide(plan)
        self._count += 1
        if min(len(for_model), len(for_line_search)) < 2:
            return plan, known
        self.fitted_on = np.union1d(self.fitted_on, for_model)
        target = self._target(objective, plan, for_model, per_norm)
        return self._best_between(objective, plan, target, for_line_search)

    def step_by_last_model(
        self, objective: Objective, plan: Ranks, known: Losses, per_norm: float
    ) -> tuple[Ranks, Losses]:
        """A step to where the last linear model leads by the present gain; arguments and result as of `step`.

        A model takes the most passes of a search, and another gain moves few ranks.
        """
        self._remember(plan, known)
        if self.last is None:
            return plan, known
        around, of_model = (np.array(row, dtype=np.int64) for row in (self.last.step_from, self.last.images))
        images, count = self._in_random_order(plan), self._num_images()[1]
        for_line_search = images[~np.isin(images, of_model)][:count]
        self._count += 1
        if len(for_line_search) < 2:
            return plan, known
        target = self._target(objective, around, of_model, per_norm)
        return self._best_between(objective, plan, target, for_line_search)

    def _best_between(
        self, objective: Objective, plan: Ranks, target: Ranks, images: np.ndarray
    ) -> tuple[Ranks, Losses]:
        """The line search: the best plan (d,) from `plan` to `target`, and its losses so far."""
        plans = gauss_newton.line_search_plans(self.space, plan, target, objective.limit)
        if len(plans) < 2:
            return plan, self._losses[plan.tobytes()]
        self._evaluate(plans, images)
        values = [self._values(objective, ranks, images) for ranks in plans]
        chosen = plans[int(np.argmax([value.mean() for value in values]))]
        return chosen, self._losses[chosen.tobytes()]

    def use_gain(self, gain: ExpectedGain) -> None:
        """Take over another gain; losses by the one before are forgotten."""
        self.gain = gain
        self._losses.clear()

    def _divide(self, plan: Ranks) -> tuple[np.ndarray, np.ndarray]:
        """Indices of images for the linear model and for the line search, which first gets those new to the plan."""
        ordered = self._in_random_order(plan)
        for_model, for_line_search = self._num_images()
        return ordered[for_line_search:][:for_model], ordered[:for_line_search]

    def _in_random_order(self, plan: Ranks) -> np.ndarray:
        """Indices of all images, those new to the plan first."""
        images = generator(self.seed, Stream.REFINEMENT, self._count).permutation(self.num_images)
        seen = np.isin(images, self._losses[plan.tobytes()].indices)
        fresh = images[~seen] if (~seen).sum() > 1 else images[:0]  # of a single image there is no variance
        return np.concatenate([fresh, images[seen]])

    def _num_images(self) -> tuple[int, int]:
        """Numbers of images for the linear model and the line search; fewer for steps before the last."""
        num_dims, samples = self.space.num_dims, self.samples
        if self._count == NUM_STEPS - 1:
            for_model = min(max(IMAGES_PER_LAYER * num_dims, samples), MAX_MODEL_EVALUATIONS * samples)
            for_line_search = for_model
        else:
            for_model = max(num_model_images(FIRST_SHARE * samples, num_dims), int(FIRST_IMAGES_PER_LAYER * num_dims))
            for_line_search = for_model // 2
        lowest = min(samples, self.num_images) // 2
        for_line_search = min(max(for_line_search, lowest), MAX_LINE_SEARCH_EVALUATIONS * samples)
        return min(for_model, self.num_images // 2), for_line_search

    def _target(self, objective: Objective, plan: Ranks, images: np.ndarray, per_norm: float) -> Ranks:
        """The best plan (d,) by the linear model around `plan`: the journal's answer, if it has one."""
        row = self.journal.recall_step(plan, images)
        if row is None:
            row = self.journal.append_step(self._model_step(objective, plan, images, per_norm))
        self.passes += row.passes
        self.last = row
        return np.array(row.step_to, dtype=np.int64)

    def _model_step(self, objective: Objective, plan: Ranks, images: np.ndarray, per_norm: float) -> StepRow:
        key, passes = plan.tobytes() + images.tobytes(), 0
        if key not in self._models:
            self._models.clear()  # no two at once
            model = self.linearize(plan, alternatives(self.space, plan), images, gauss_newton.DIRECTIONS)
            self._models[key], passes = model, model.passes
        model = self._models[key]
        target = gauss_newton.coordinate_ascent(self.space, objective, plan, model, per_norm, self.gain)
        return StepRow(
            step_from=plan.tolist(),
            step_to=target.tolist(),
            norm=model.norm,
            single_layer_norms=model.single_layer_norms(),
            images=images.tolist(),
            passes=passes,
        )

    def _evaluate(self, plans: Sequence[Ranks], images: np.ndarray) -> None:
        """Evaluate the plans on those of the images that are new to them."""
        evaluations = []
        for ranks in plans:
            known = self._losses.get(ranks.tobytes())
            new = images if known is None else images[~np.isin(images, known.indices)]
            # At least two images: the journal keeps the variance of every evaluation.
            if len(new):
                evaluations.append(Evaluation(REFINEMENT, ranks, new if len(new) > 1 else images))
        for evaluation, losses in zip(evaluations, self.observe(evaluations), strict=True):
            self._remember(evaluation.ranks, losses)

    def _remember(self, ranks: Ranks, losses: Losses) -> None:
        known = self._losses.get(ranks.tobytes())
        self._losses[ranks.tobytes()] = merge_losses([losses] if known is None else [known, losses])  # in order

    def _values(self, objective: Objective, ranks: Ranks, images: np.ndarray) -> Array:
        """J (m,) of a plan on each of the images, in the order of their indices."""
        return objective.value(self._losses[ranks.tobytes()].on(images).values, self.space.ratio(ranks[None])[0])
