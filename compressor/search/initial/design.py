"""The initial design: the first plans of a search, from sensitivities or at random, and their refinement."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.linear_model import Linearize
from compressor.fidelity.losses import Losses
from compressor.search.evaluation.evaluator import Evaluator
from compressor.search.evaluation.history import INITIAL, REFINEMENT, SENSITIVITY, Evaluation
from compressor.search.expected_gain import ExpectedGain
from compressor.search.fitting import SurrogateFitter
from compressor.search.initial import allocation
from compressor.search.initial.refinement import Refinement
from compressor.search.initial.sensitivity import (
    MODEL_IMAGES,
    SENSITIVITY_IMAGES,
    MeasureLosses,
    linear_sensitivities,
    measure_sensitivities,
    num_model_images,
    sensitivity_tables,
)
from compressor.search.limit import LimitUpdate
from compressor.search.objective import Objective
from compressor.search.surrogate.additive_prior import LOSS_FLOOR, loss_per_norm, sum_of
from compressor.streams import Stream, generator

OnIncumbent = Callable[[int, Ranks], None]
Step = Callable[[Objective, Ranks, Losses, float], tuple[Ranks, Losses]]


class BudgetSpent(Exception):
    """The budget was spent before the initial design was complete."""


class InitialDesign:
    """Makes the first plans of a search; `run` and `move_to_target` raise BudgetSpent where the budget is too small.

    Args:
        evaluator: evaluates the plans.
        fitter: gets the prior mean that follows from sensitivities.
        limits: keeps the limit of R for the target, if there is one.
        linearize: the linear model around a plan; None where losses are all there is.
        on_incumbent: called with the image passes so far and the plan (d,) that is then the best.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        fitter: SurrogateFitter,
        limits: LimitUpdate,
        linearize: Linearize | None,
        on_incumbent: OnIncumbent,
    ) -> None:
        self._evaluator = evaluator
        self._fitter = fitter
        self._limits = limits
        # What a risk gains by a step is smaller than its noise.
        self._linearize = linearize if evaluator.settings.refine and not evaluator.noise_spec.floor else None
        self._on_incumbent = on_incumbent
        self._refinement = self._make_refinement()
        self._sensitivities: list[Array] | None = None  # function norms of single layers
        self._saturation = np.inf
        self._best_observed = -np.inf

    @property
    def takes_steps(self) -> bool:
        """Whether there is a linear model to take Gauss-Newton steps by."""
        return self._refinement is not None

    def run(self, num_steps: int) -> Ranks | None:
        """Evaluate the initial plans.

        Args:
            num_steps: Gauss-Newton steps to take, where there is a linear model.

        Returns:
            The plan (d,) that the steps led to; None without steps, or where L is limited.
        """
        is_random = self._evaluator.settings.start == "random"
        best = self._random_plans() if is_random else self._plans_by_sensitivities()
        self._limits.set_unit(best)
        if self._refinement is not None:
            for _ in range(num_steps):
                best = self._refine(self._from(best))
            target = self._limits.target
            return None if target is not None and target.measure == "loss" else best
        if not is_random:
            for _ in range(allocation.NUM_REALLOCATIONS):
                best = self._reallocate(self._from(best))
                self._on_incumbent(self._evaluator.image_passes, best)
        return None

    def refine(self, plan: Ranks) -> Ranks:
        """The plan (d,) after a step by the last linear model; itself where there is none."""
        return plan if self._refinement is None else self._refine(plan, self._refinement.step_by_last_model)

    def _from(self, best: Ranks) -> Ranks:
        """The plan (d,) to go on from: the best so far, or where L is limited the best within the limit of R."""
        return self._limits.best_plan() if self._limits.is_learnt else best

    def move_to_target(self, num_steps: int, may_keep: bool) -> None:
        """After `run`, find the limit of R for another target, and take Gauss-Newton steps towards it.

        The prior mean around a plan is wrong where L is several times as large or small.

        Args:
            num_steps: how many, where there is a linear model.
            may_keep: keep the limit if the last step leads near a limit of L. Its plan is the best of the linear model
                within this one alone.
        """
        better = None
        if self._refinement is not None:
            for _ in range(num_steps):
                better = self._refine(self._limits.best_plan())
        with self._fitter.timed():
            if better is None or not may_keep or not self._limits.keep(better):
                self._limits.update()

    def use_gain(self, gain: ExpectedGain) -> None:
        """Take over what reconstruction is found to leave of losses."""
        if self._refinement is not None:
            self._refinement.use_gain(gain)

    @property
    def fitted_images(self) -> np.ndarray:
        """Indices (m,) of images that linear models used, which therefore favour some plans."""
        return np.zeros(0, dtype=np.int64) if self._refinement is None else self._refinement.fitted_on

    def _make_refinement(self) -> Refinement | None:
        """What takes Gauss-Newton steps; None without a linear model, which does not cover pruning."""
        evaluator = self._evaluator
        if self._linearize is None or evaluator.space.layers is not evaluator.space:
            return None
        return Refinement(
            evaluator.space,
            self._linearize,
            lambda evaluations: list(evaluator.observe(evaluations)),
            evaluator.journal,
            evaluator.num_images,
            evaluator.settings.samples,
            evaluator.settings.seed,
            evaluator.gain,
        )

    # Plans

    def _random_plans(self) -> Ranks:
        """The best by observation of random plans, as in the paper."""
        self._fitter.use_single_layer_prior(None)
        space = self._evaluator.space
        rng = generator(self._evaluator.settings.seed, Stream.INITIAL_DESIGN)
        plans, limit = space.sample(2 * space.num_dims + 2, rng), self._evaluator.objective.limit
        return max(plans if limit is None else space.fit(plans, limit), key=self._evaluate_first)

    def _plans_by_sensitivities(self) -> Ranks:
        """The best by observation of the plans along the trade-off curve of single-layer losses."""
        evaluator, space = self._evaluator, self._evaluator.space
        norms = sensitivity_tables(space.layers, self._measure_sensitivities())
        losses = [evaluator.noise_spec.per_norm * table for table in norms]
        if space.layers is space:
            self._fitter.use_single_layer_prior(losses)
        best = self._allocate([evaluator.gain.delivered(table) for table in losses])
        best = space.complete(best)
        saturation = self._largest(evaluator.history.norms)
        if space.layers is not space:
            best, added = self._choose_sparsity(best)
            norms, losses = [*norms, added], [*losses, evaluator.noise_spec.per_norm * added]
        self._sensitivities = norms
        self._saturation = self._largest(evaluator.history.function_norms)
        evaluator.norms.begin(sum_of(norms), self._saturation)
        self._fitter.use_single_layer_prior(losses, saturation)
        return best

    def _allocate(self, losses: list[Array]) -> Ranks:
        """The best by observation of plans allocated by these losses (r,) of single layers."""
        evaluator, target = self._evaluator, self._limits.target
        space = evaluator.space.layers

        def evaluate(ranks: Ranks) -> float:
            return self._evaluate_first(evaluator.space.complete(ranks))

        if target is None:
            return allocation.evaluate_along_curve(space, evaluator.objective, losses, evaluate)
        if target.measure == "ratio":
            return allocation.evaluate_within(space, target.upper, losses, evaluate)
        return allocation.evaluate_along_limits(space, losses, evaluate)

    def _largest(self, losses: Sequence[float]) -> float:
        """The loss of a destroyed network: the largest observed (n,), unknown where none was to be evaluated."""
        target = self._limits.target
        return np.inf if target is not None and target.measure == "ratio" else max(LOSS_FLOOR, *losses)

    def _measure_sensitivities(self) -> list[list[float]]:
        """Function norms of single layers at `sensitivity_ranks`, by the linear model where gradients pass."""
        norms: list[list[float]] = []
        evaluator = self._evaluator
        if self._linearize is not None:
            evaluator.log("measuring layers by a linear model")
            count = num_model_images(MODEL_IMAGES, evaluator.space.layers.num_dims)
            images = np.arange(min(count, evaluator.num_images))
            row = evaluator.journal.recall_sensitivities(images)
            if row is None:
                found = linear_sensitivities(evaluator.space.layers, self._linearize, images)
                row = evaluator.journal.append_sensitivities(found[0], images, found[1])
            evaluator.image_passes += row.passes
            norms = row.sensitivities
        return norms or measure_sensitivities(evaluator.space.layers, self._measure_layers)

    def _refine(self, plan: Ranks, step: Step | None = None) -> Ranks:
        """The plan (d,) after a Gauss-Newton step, by a new linear model if not told otherwise; its losses are kept."""
        assert self._refinement is not None
        evaluator = self._evaluator
        if evaluator.spent_budget():
            raise BudgetSpent
        evaluator.log("refining ranks by a linear model")
        steps, before = self._refinement, self._refinement.passes
        per_norm = loss_per_norm(evaluator.history.losses)
        known = evaluator.history.losses_of(plan)
        better, losses = (step or steps.step)(evaluator.objective, plan, known, per_norm)
        evaluator.image_passes += steps.passes - before
        if steps.last is not None and self._sensitivities is not None:
            around = np.array(steps.last.step_from, dtype=np.int64)
            self._fitter.use_local_prior(around, steps.last, self._sensitivities, self._saturation)
        evaluator.keep_new(REFINEMENT, better, losses)
        self._on_incumbent(evaluator.image_passes, better)
        return better

    def _choose_sparsity(self, plan: Ranks) -> tuple[Ranks, Array]:
        """`allocation.choose_sparsity` on images that are new to the plan, if there are any left."""
        evaluator = self._evaluator
        images = evaluator.images_for(plan)
        images = (images if len(images) else evaluator.sampler.draw(0))[: allocation.CONTEXT_IMAGES]
        per_norm = loss_per_norm(evaluator.history.losses)
        return allocation.choose_sparsity(
            evaluator.space, evaluator.objective, plan, self._measure_uncounted(images), per_norm
        )

    def _reallocate(self, plan: Ranks) -> Ranks:
        """`allocation.reallocate` on images that are new to the plan; the plan itself if there are none left."""
        evaluator = self._evaluator
        images = evaluator.images_for(plan)
        if not len(images):
            return plan

        def evaluate(ranks: Ranks) -> Losses:
            return self._evaluate_initial([Evaluation(INITIAL, ranks, images)])[0]

        measure = self._measure_uncounted(images[: allocation.CONTEXT_IMAGES])
        per_norm = loss_per_norm(evaluator.history.losses)
        return allocation.reallocate(evaluator.space, evaluator.objective, plan, evaluate, measure, per_norm)

    # Evaluations

    def _evaluate_first(self, ranks: Ranks) -> float:
        """The J observed of a plan (d,) on the next images, or how near it is to the target."""
        evaluator, target = self._evaluator, self._limits.target
        (losses,) = self._evaluate_initial([Evaluation(INITIAL, ranks, self._first_images())])
        value = evaluator.observed_objective(ranks, losses) if target is None else target.worth(losses.mean)
        if value > self._best_observed:
            self._best_observed = value
            self._on_incumbent(evaluator.image_passes, ranks)
        return value

    def _first_images(self) -> np.ndarray:
        """Indices (m,) of the images for the next initial plan.

        Where Gauss-Newton steps follow, half of one evaluation's images, the same for all plans, are enough to find
        the plan to start from.
        """
        evaluator = self._evaluator
        if self._refinement is not None:
            return evaluator.sampler.draw(0)[: max(2, evaluator.settings.samples // 2)]
        return evaluator.sampler.draw(len(evaluator.history.ranks))

    def _measure_uncounted(self, images: np.ndarray) -> MeasureLosses:
        """What gives losses of plans on these images (m,) by uncounted evaluations."""
        return lambda plans: self._evaluate_initial(
            [Evaluation(INITIAL, ranks, images, is_uncounted=True) for ranks in plans]
        )

    def _evaluate_initial(self, evaluations: Sequence[Evaluation]) -> list[Losses]:
        """Losses of evaluations, kept; raises BudgetSpent as soon as the budget is spent."""
        evaluator, all_losses = self._evaluator, []
        if evaluator.spent_budget():
            raise BudgetSpent
        for evaluation, losses in zip(evaluations, evaluator.observe(evaluations), strict=True):
            evaluator.keep(evaluation, losses)
            all_losses.append(losses)
            if len(all_losses) < len(evaluations) and evaluator.spent_budget():
                raise BudgetSpent
        return all_losses

    def _measure_layers(self, plans: list[Ranks]) -> Iterator[Losses]:
        evaluator = self._evaluator
        images, complete = np.arange(min(SENSITIVITY_IMAGES, evaluator.num_images)), evaluator.space.complete
        evaluations = [Evaluation(SENSITIVITY, complete(ranks), images) for ranks in plans]
        for number, losses in enumerate(evaluator.observe(evaluations), 1):
            evaluator.log(f"measuring layers one at a time, {number} evaluations so far")
            yield losses
