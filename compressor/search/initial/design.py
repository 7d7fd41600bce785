"""The start of one search: the looks that `start` asks for, the steps of refinement, and what they teach."""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.linear_model import Linearise
from compressor.fidelity.losses import Losses
from compressor.search.evaluation.evaluator import Looks
from compressor.search.evaluation.history import Look
from compressor.search.initial import allocation as start
from compressor.search.initial.refinement import Refinement
from compressor.search.initial.sensitivity import (
    MODEL_IMAGES,
    PROBE_IMAGES,
    few_images,
    linear_sensitivities,
    probe_sensitivities,
    tables_of,
)
from compressor.search.multiplier import Aim
from compressor.search.surrogate.additive_prior import LOSS_FLOOR, loss_per_norm, sum_of
from compressor.search.surrogate.fitting import Posterior
from compressor.search.target.target import first_gamma

START_STREAM = 3  # keeps its random numbers apart from the search's
OnIncumbent = Callable[[int, Ranks], None]


class BudgetSpent(Exception):
    """The budget ended before the start was complete."""


class Beginning:
    """Where the search begins; `run` and `move_to_target` raise BudgetSpent where the budget ends before they do.

    Args:
        aim: finds gamma for the target, if there is one.
        linearise: the linear model around a plan, None where losses are all there is.
        on_incumbent: told the image passes so far and the plan (d,) then best.
    """

    def __init__(
        self, looks: Looks, posterior: Posterior, aim: Aim, linearise: Linearise | None, on_incumbent: OnIncumbent
    ) -> None:
        self._looks = looks
        self._posterior = posterior
        self._aim = aim
        # What a risk gains by a step drowns in its noise.
        self._linearise = linearise if looks.settings.refine and not looks.law.floor else None
        self._on_incumbent = on_incumbent
        self._refinement = self._new_refinement()
        self._alone: list[Array] | None = None  # function norms of single layers
        self._saturation = np.inf
        self._best_look = -np.inf

    @property
    def takes_steps(self) -> bool:
        """Whether there is a linear model to take steps by."""
        return self._refinement is not None

    def run(self, num_steps: int) -> Ranks | None:
        """The plan (d,) that steps by the linear model led to, where nothing but J is asked for."""
        is_random, aim = self._looks.settings.start == "random", self._aim
        best = self._random_plans() if is_random else self._plans_by_sensitivities()
        if self._refinement is not None:
            for _ in range(num_steps):
                best = self._refine(aim.best_plan() if aim.target else best)
            return None if aim.target else best
        if not is_random:
            for _ in range(start.NUM_REALLOCATIONS):
                best = self._reallocate(aim.best_plan() if aim.target else best)
                self._on_incumbent(self._looks.image_passes, best)
        return None

    def move_to_target(self, num_steps: int, may_settle: bool) -> None:
        """After `run`, find gamma for another target, and go there by the linear model, if there is one: what is
        expected around a plan is off where L is several times as large or small.

        If it `may_settle` and the last step leads near a limit of L, the search is for that step's gamma: its plan is
        the best of the model's for no other.
        """
        better = None
        if self._refinement is not None:
            for _ in range(num_steps):
                better = self._refine(self._aim.best_plan())
        with self._posterior.thinking():
            if better is None or not may_settle or not self._aim.settle(better):
                self._aim.take()

    @property
    def flattering_images(self) -> np.ndarray:
        """Indices of images that the start knows too well to compare plans on."""
        return np.zeros(0, dtype=np.int64) if self._refinement is None else self._refinement.fitted_on

    def _new_refinement(self) -> Refinement | None:
        """What takes steps by the linear model; None where there is none: it knows of no pruning."""
        looks = self._looks
        if self._linearise is None or looks.space.layers is not looks.space:
            return None
        return Refinement(
            looks.space,
            self._linearise,
            lambda wanted: list(looks.observe(wanted)),
            looks.journal,
            looks.num_images,
            looks.settings.samples,
            looks.settings.seed,
        )

    # Plans

    def _random_plans(self) -> Ranks:
        """The best by observation of random plans."""
        self._posterior.expect_layers(None)
        space = self._looks.space
        rng = np.random.default_rng([self._looks.settings.seed, START_STREAM])
        return max(space.sample(2 * space.num_dims + 2, rng), key=self._first_look)

    def _plans_by_sensitivities(self) -> Ranks:
        """The best by observation of plans that single layers' losses lead to."""
        looks, space, target = self._looks, self._looks.space, self._aim.target
        alone = tables_of(space.layers, self._sensitivities())
        sensitivities = [looks.law.per_norm * table for table in alone]
        if target is not None:
            allocate = functools.partial(start.allocate, space, sensitivities)
            self._aim.set_gamma(first_gamma(target, space, allocate, sum_of(sensitivities)))
        if space.layers is space:
            self._posterior.expect_layers(sensitivities)
        best = start.look_along_curve(
            space.layers, looks.objective, sensitivities, lambda ranks: self._first_look(space.complete(ranks))
        )
        best = space.complete(best)
        saturation = max(LOSS_FLOOR, *looks.state.norms)
        if space.layers is not space:
            best, added = self._choose_sparsity(best)
            alone, sensitivities = [*alone, added], [*sensitivities, looks.law.per_norm * added]
        self._alone, self._saturation = alone, max(LOSS_FLOOR, *looks.state.function_norms)
        looks.norms.begin(sum_of(alone), self._saturation)
        self._posterior.expect_layers(sensitivities, saturation)
        return best

    def _sensitivities(self) -> list[list[float]]:
        """Losses of single layers at `start.probed_ranks`: by the linear model where slopes come through, or probed."""
        norms: list[list[float]] = []
        looks = self._looks
        if self._linearise is not None:
            looks.tell("measuring layers by a linear model")
            images = np.arange(min(few_images(MODEL_IMAGES, looks.space.layers.num_dims), looks.num_images))
            row = looks.journal.recall_sensitivities(images)
            if row is None:
                found = linear_sensitivities(looks.space.layers, self._linearise, images)
                row = looks.journal.append_sensitivities(found[0], images, found[1])
            looks.image_passes += row.passes
            norms = row.sensitivities
        return norms or probe_sensitivities(looks.space.layers, self._probe)

    def _refine(self, plan: Ranks) -> Ranks:
        """The plan (d,) after a step by the linear model, with all that was seen of it."""
        assert self._refinement is not None
        looks = self._looks
        if looks.spent_budget():
            raise BudgetSpent
        looks.tell("refining ranks by a linear model")
        steps, before = self._refinement, self._refinement.passes
        per_norm = loss_per_norm(looks.state.losses)
        better, losses = steps.step(looks.objective, plan, looks.state.losses_of(plan), per_norm)
        looks.image_passes += steps.passes - before
        if steps.last is not None and self._alone is not None:
            self._posterior.expect_around(plan, steps.last, self._alone, self._saturation)
        looks.keep_new("refinement", better, losses)
        self._on_incumbent(looks.image_passes, better)
        return better

    def _choose_sparsity(self, plan: Ranks) -> tuple[Ranks, Array]:
        """`start.choose_sparsity` on images that the plan has not been looked at with, if there are enough left."""
        looks = self._looks
        images = looks.images_for(plan)
        images = (images if len(images) else looks.sampler.draw(0))[: start.CONTEXT_IMAGES]
        per_norm = loss_per_norm(looks.state.losses)
        return start.choose_sparsity(looks.space, looks.objective, plan, self._glance(images), per_norm)

    def _reallocate(self, plan: Ranks) -> Ranks:
        """`start.reallocate` on images that the plan has not been looked at with, if there are any left."""
        looks = self._looks
        images = looks.images_for(plan)
        if not len(images):
            return plan

        def look(ranks: Ranks) -> Losses:
            return self._first_looks([Look("start", ranks, images)])[0]

        glance, per_norm = self._glance(images[: start.CONTEXT_IMAGES]), loss_per_norm(looks.state.losses)
        return start.reallocate(looks.space, looks.objective, plan, look, glance, per_norm)

    # Looks

    def _first_look(self, ranks: Ranks) -> float:
        """The J observed of a plan of the start on the next images, or how near it lies to the target."""
        looks, target = self._looks, self._aim.target
        (losses,) = self._first_looks([Look("start", ranks, self._first_images())])
        if target is None:
            value = looks.observed_objective(ranks, losses)
        else:
            value = target.nearness(looks.ratio(ranks), losses.mean)
        if value > self._best_look:
            self._best_look = value
            self._on_incumbent(looks.image_passes, ranks)
        return value

    def _first_images(self) -> np.ndarray:
        """Images for the next look of the start.

        Where steps follow, half a look's images, the same for all plans, tell which is the best to begin from.
        """
        looks = self._looks
        if self._refinement is not None:
            return looks.sampler.draw(0)[: max(2, looks.settings.samples // 2)]
        return looks.sampler.draw(len(looks.state.ranks))

    def _glance(self, images: np.ndarray) -> Callable[[list[Ranks]], list[Losses]]:
        """What looks at plans with these images (m,)."""
        return lambda plans: self._first_looks([Look("start", ranks, images, is_glance=True) for ranks in plans])

    def _first_looks(self, wanted: Sequence[Look]) -> list[Losses]:
        """Losses of looks of the start, as long as the budget lasts."""
        looks, all_losses = self._looks, []
        if looks.spent_budget():
            raise BudgetSpent
        for look, losses in zip(wanted, looks.observe(wanted), strict=True):
            looks.keep(look, losses)
            all_losses.append(losses)
            if len(all_losses) < len(wanted) and looks.spent_budget():
                raise BudgetSpent
        return all_losses

    def _probe(self, plans: list[Ranks]) -> Iterator[Losses]:
        looks = self._looks
        images, complete = np.arange(min(PROBE_IMAGES, looks.num_images)), looks.space.complete
        wanted = [Look("probe", complete(ranks), images) for ranks in plans]
        for number, losses in enumerate(looks.observe(wanted), 1):
            looks.tell(f"measuring layers one at a time, {number} looks so far")
            yield losses
