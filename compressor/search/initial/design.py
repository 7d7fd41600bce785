"""The start of one search: the looks that `start` asks for, the steps of refinement, and what they teach."""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.linear_model import Linearize
from compressor.fidelity.losses import Losses
from compressor.search.evaluation.evaluator import Evaluator
from compressor.search.evaluation.history import Evaluation
from compressor.search.initial import allocation as start
from compressor.search.initial.refinement import Refinement
from compressor.search.initial.sensitivity import (
    MODEL_IMAGES,
    SENSITIVITY_IMAGES,
    few_images,
    linear_sensitivities,
    measure_sensitivities,
    tables_of,
)
from compressor.search.multiplier import MultiplierUpdate
from compressor.search.surrogate.additive_prior import LOSS_FLOOR, loss_per_norm, sum_of
from compressor.search.surrogate.fitting import SurrogateFitter
from compressor.search.target.target import first_gamma
from compressor.streams import Stream, generator

OnIncumbent = Callable[[int, Ranks], None]


class BudgetSpent(Exception):
    """The budget ended before the start was complete."""


class InitialDesign:
    """Where the search begins; `run` and `move_to_target` raise BudgetSpent where the budget ends before they do.

    Args:
        aim: finds gamma for the target, if there is one.
        linearize: the linear model around a plan, None where losses are all there is.
        on_incumbent: told the image passes so far and the plan (d,) then best.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        posterior: SurrogateFitter,
        multiplier: MultiplierUpdate,
        linearize: Linearize | None,
        on_incumbent: OnIncumbent,
    ) -> None:
        self._evaluator = evaluator
        self._fitter = posterior
        self._multiplier = multiplier
        # What a risk gains by a step drowns in its noise.
        self._linearize = linearize if evaluator.settings.refine and not evaluator.noise_spec.floor else None
        self._on_incumbent = on_incumbent
        self._refinement = self._new_refinement()
        self._alone: list[Array] | None = None  # function norms of single layers
        self._saturation = np.inf
        self._best_observed = -np.inf

    @property
    def takes_steps(self) -> bool:
        """Whether there is a linear model to take steps by."""
        return self._refinement is not None

    def run(self, num_steps: int) -> Ranks | None:
        """The plan (d,) that steps by the linear model led to, where nothing but J is asked for."""
        is_random, multiplier = self._evaluator.settings.start == "random", self._multiplier
        best = self._random_plans() if is_random else self._plans_by_sensitivities()
        if self._refinement is not None:
            for _ in range(num_steps):
                best = self._refine(multiplier.best_plan() if multiplier.target else best)
            return None if multiplier.target else best
        if not is_random:
            for _ in range(start.NUM_REALLOCATIONS):
                best = self._reallocate(multiplier.best_plan() if multiplier.target else best)
                self._on_incumbent(self._evaluator.image_passes, best)
        return None

    def move_to_target(self, num_steps: int, may_fix: bool) -> None:
        """After `run`, find gamma for another target, and go there by the linear model, if there is one: what is
        expected around a plan is off where L is several times as large or small.

        If it `may_fix` and the last step leads near a limit of L, the search is for that step's gamma: its plan is
        the best of the model's for no other.
        """
        better = None
        if self._refinement is not None:
            for _ in range(num_steps):
                better = self._refine(self._multiplier.best_plan())
        with self._fitter.timed():
            if better is None or not may_fix or not self._multiplier.fix_multiplier(better):
                self._multiplier.take()

    @property
    def fitted_images(self) -> np.ndarray:
        """Indices of images that the start knows too well to compare plans on."""
        return np.zeros(0, dtype=np.int64) if self._refinement is None else self._refinement.fitted_on

    def _new_refinement(self) -> Refinement | None:
        """What takes steps by the linear model; None where there is none: it knows of no pruning."""
        evaluator = self._evaluator
        if self._linearize is None or evaluator.space.layers is not evaluator.space:
            return None
        return Refinement(
            evaluator.space,
            self._linearize,
            lambda wanted: list(evaluator.observe(wanted)),
            evaluator.journal,
            evaluator.num_images,
            evaluator.settings.samples,
            evaluator.settings.seed,
        )

    # Plans

    def _random_plans(self) -> Ranks:
        """The best by observation of random plans."""
        self._fitter.use_single_layer_prior(None)
        space = self._evaluator.space
        rng = generator(self._evaluator.settings.seed, Stream.INITIAL_DESIGN)
        return max(space.sample(2 * space.num_dims + 2, rng), key=self._evaluate_first)

    def _plans_by_sensitivities(self) -> Ranks:
        """The best by observation of plans that single layers' losses lead to."""
        evaluator, space, target = self._evaluator, self._evaluator.space, self._multiplier.target
        alone = tables_of(space.layers, self._sensitivities())
        sensitivities = [evaluator.noise_spec.per_norm * table for table in alone]
        if target is not None:
            allocate = functools.partial(start.allocate, space, sensitivities)
            self._multiplier.set_gamma(first_gamma(target, space, allocate, sum_of(sensitivities)))
        if space.layers is space:
            self._fitter.use_single_layer_prior(sensitivities)
        best = start.evaluate_along_curve(
            space.layers, evaluator.objective, sensitivities, lambda ranks: self._evaluate_first(space.complete(ranks))
        )
        best = space.complete(best)
        saturation = max(LOSS_FLOOR, *evaluator.state.norms)
        if space.layers is not space:
            best, added = self._choose_sparsity(best)
            alone, sensitivities = [*alone, added], [*sensitivities, evaluator.noise_spec.per_norm * added]
        self._alone, self._saturation = alone, max(LOSS_FLOOR, *evaluator.state.function_norms)
        evaluator.norms.begin(sum_of(alone), self._saturation)
        self._fitter.use_single_layer_prior(sensitivities, saturation)
        return best

    def _sensitivities(self) -> list[list[float]]:
        """Losses of single layers at `start.sensitivity_ranks`: by the linear model where slopes come through, or probed."""
        norms: list[list[float]] = []
        evaluator = self._evaluator
        if self._linearize is not None:
            evaluator.log("measuring layers by a linear model")
            images = np.arange(min(few_images(MODEL_IMAGES, evaluator.space.layers.num_dims), evaluator.num_images))
            row = evaluator.journal.recall_sensitivities(images)
            if row is None:
                found = linear_sensitivities(evaluator.space.layers, self._linearize, images)
                row = evaluator.journal.append_sensitivities(found[0], images, found[1])
            evaluator.image_passes += row.passes
            norms = row.sensitivities
        return norms or measure_sensitivities(evaluator.space.layers, self._measure_layers)

    def _refine(self, plan: Ranks) -> Ranks:
        """The plan (d,) after a step by the linear model, with all that was seen of it."""
        assert self._refinement is not None
        evaluator = self._evaluator
        if evaluator.spent_budget():
            raise BudgetSpent
        evaluator.log("refining ranks by a linear model")
        steps, before = self._refinement, self._refinement.passes
        per_norm = loss_per_norm(evaluator.state.losses)
        better, losses = steps.step(evaluator.objective, plan, evaluator.state.losses_of(plan), per_norm)
        evaluator.image_passes += steps.passes - before
        if steps.last is not None and self._alone is not None:
            self._fitter.use_local_prior(plan, steps.last, self._alone, self._saturation)
        evaluator.keep_new("refinement", better, losses)
        self._on_incumbent(evaluator.image_passes, better)
        return better

    def _choose_sparsity(self, plan: Ranks) -> tuple[Ranks, Array]:
        """`start.choose_sparsity` on images that the plan has not been looked at with, if there are enough left."""
        evaluator = self._evaluator
        images = evaluator.images_for(plan)
        images = (images if len(images) else evaluator.sampler.draw(0))[: start.CONTEXT_IMAGES]
        per_norm = loss_per_norm(evaluator.state.losses)
        return start.choose_sparsity(
            evaluator.space, evaluator.objective, plan, self._evaluate_uncounted(images), per_norm
        )

    def _reallocate(self, plan: Ranks) -> Ranks:
        """`start.reallocate` on images that the plan has not been looked at with, if there are any left."""
        evaluator = self._evaluator
        images = evaluator.images_for(plan)
        if not len(images):
            return plan

        def evaluation(ranks: Ranks) -> Losses:
            return self._evaluate_initial([Evaluation("start", ranks, images)])[0]

        evaluate_uncounted, per_norm = (
            self._evaluate_uncounted(images[: start.CONTEXT_IMAGES]),
            loss_per_norm(evaluator.state.losses),
        )
        return start.reallocate(evaluator.space, evaluator.objective, plan, evaluation, evaluate_uncounted, per_norm)

    # Evaluator

    def _evaluate_first(self, ranks: Ranks) -> float:
        """The J observed of a plan of the start on the next images, or how near it lies to the target."""
        evaluator, target = self._evaluator, self._multiplier.target
        (losses,) = self._evaluate_initial([Evaluation("start", ranks, self._first_images())])
        if target is None:
            value = evaluator.observed_objective(ranks, losses)
        else:
            value = target.nearness(evaluator.ratio(ranks), losses.mean)
        if value > self._best_observed:
            self._best_observed = value
            self._on_incumbent(evaluator.image_passes, ranks)
        return value

    def _first_images(self) -> np.ndarray:
        """Images for the next look of the start.

        Where steps follow, half a look's images, the same for all plans, log which is the best to begin from.
        """
        evaluator = self._evaluator
        if self._refinement is not None:
            return evaluator.sampler.draw(0)[: max(2, evaluator.settings.samples // 2)]
        return evaluator.sampler.draw(len(evaluator.state.ranks))

    def _evaluate_uncounted(self, images: np.ndarray) -> Callable[[list[Ranks]], list[Losses]]:
        """What looks at plans with these images (m,)."""
        return lambda plans: self._evaluate_initial(
            [Evaluation("start", ranks, images, is_uncounted=True) for ranks in plans]
        )

    def _evaluate_initial(self, wanted: Sequence[Evaluation]) -> list[Losses]:
        """Losses of looks of the start, as long as the budget lasts."""
        evaluator, all_losses = self._evaluator, []
        if evaluator.spent_budget():
            raise BudgetSpent
        for evaluation, losses in zip(wanted, evaluator.observe(wanted), strict=True):
            evaluator.keep(evaluation, losses)
            all_losses.append(losses)
            if len(all_losses) < len(wanted) and evaluator.spent_budget():
                raise BudgetSpent
        return all_losses

    def _measure_layers(self, plans: list[Ranks]) -> Iterator[Losses]:
        evaluator = self._evaluator
        images, complete = np.arange(min(SENSITIVITY_IMAGES, evaluator.num_images)), evaluator.space.complete
        wanted = [Evaluation("probe", complete(ranks), images) for ranks in plans]
        for number, losses in enumerate(evaluator.observe(wanted), 1):
            evaluator.log(f"measuring layers one at a time, {number} looks so far")
            yield losses
