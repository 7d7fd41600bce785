"""The search loop: look, fit, propose, test, until the certificate holds or the budget is spent."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_limits

from compressor.fidelity import ImageSampler, Losses, LossLaw, NoiseModel
from compressor.objective import Objective
from compressor.records import SearchRecord
from compressor.search import gp, recording, refine, start
from compressor.search.acquisition import maximise, measure_again
from compressor.search.belief import Belief, LogSurrogate, PlainSurrogate, Surrogate
from compressor.search.journal import Journal, StepRow
from compressor.search.linear_model import Linearise
from compressor.search.norms import NormModel
from compressor.search.refinement import Refinement
from compressor.search.settings import SearchSettings as SearchSettings
from compressor.search.space import Ranks, RankSpace
from compressor.search.state import FrontPlan, Look, SearchState
from compressor.search.stopping import NUM_ANCHORS, StopRule, StopTest
from compressor.search.target import LARGEST_GAMMA, SMALLEST_GAMMA, Landing, Target, first_gamma, solve_gamma
from compressor.search.workers import Evaluate, Workers

REFIT_GROWTH = 1.1  # hyperparameters are fitted again when there are this many times as many looks
FRESH_GROWTH = 1.5  # likewise from fixed first guesses beside the last fit
# A risk departs from what the function norm says, there are such departures even where noise hides them, and those of
# mild plans, which are known well, say little about others.
# Times the function norm, up and down, up to which a look of the start says something of a plan; some always do.
NEARBY, LEAST_LOOKS = 4.0, 5
# Departures from what the linear model says were 0.15 to 0.2 in log L (ResNet-18), a look's own noise 0.1 to 0.15.
LEAST_DEPARTURES = {"least_signal": 2.0}
DEPARTURES = {"least_signal": 0.1, "longest": 1.0}
START_STREAM, AIM_STREAM, LANDING_STREAM = 3, 6, 7  # keep the random streams of one seed apart
WORTH_A_LANDING = 0.5  # of delta
SHARE_OF_ANOTHER_TARGET = 0.15  # of the looks so far, at most


class BudgetSpent(Exception):
    """The budget ended before the start was complete."""


class Search:
    """One search; `run` returns the chosen ranks and the record of how they were found.

    Args:
        space, objective: what is searched and what for.
        evaluate: ranks (d,) and image indices (m,) in, per-image losses out.
        num_images: size of the pool the indices point into.
        journal: keeps every look, and answers the ones an earlier run made.
        on_look: told after each look how many there were and how the search stands.
        on_incumbent: told after each test the image passes so far and the ranks (d,) of the plan then best.
        workers: evaluate looks that do not depend on one another, None for one after the other.
        law: how the losses behave, None for those of the function norm.
        target: gamma is chosen to meet it; the objective's own then does not matter.
        linearise: the linear model around a plan, None where losses are all there is.
    """

    def __init__(
        self,
        space: RankSpace,
        objective: Objective,
        evaluate: Evaluate,
        num_images: int,
        settings: SearchSettings,
        journal: Journal,
        on_look: Callable[[int, str], None] = lambda count, text: None,
        on_incumbent: Callable[[int, Ranks], None] = lambda image_passes, ranks: None,
        workers: Workers | None = None,
        law: LossLaw | None = None,
        target: Target | None = None,
        linearise: Linearise | None = None,
    ) -> None:
        self._space = space
        self.objective = objective
        self._evaluate = evaluate
        self._num_images = num_images
        self._settings = settings
        self._journal = journal
        self._on_look = on_look
        self._on_incumbent = on_incumbent
        self._workers = workers or Workers()
        self._sampler = ImageSampler(num_images, settings.samples, settings.seed)
        self._state = SearchState()
        self._law = law or LossLaw()
        # What a risk gains by a step drowns in its noise.
        self._linearise = linearise if settings.refine and not self._law.floor else None
        self._noise = NoiseModel(num_images, self._law)
        self._norms = NormModel(space, num_images)
        self._image_passes = 0
        self._num_glances = 0
        self._started = False
        self._began = time.perf_counter()
        self._surrogate_seconds = 0.0
        self._rule = StopRule(settings, target)
        self._refinement = self._new_refinement()
        self._champion: Ranks | None = None
        self._alone: list[np.ndarray] | None = None  # function norms of single layers
        self._saturation = np.inf
        self._around: float | None = None  # function norm of the plan around which the prior mean was found
        self._surrogate: Surrogate = PlainSurrogate(space, objective)
        self._hyper: gp.Hyperparameters | None = None
        self._fitted_at = 0
        self._fitted_afresh_at = 0
        self._aimed, self._aimed_at = False, 0
        self._max_looks = settings.max_evaluations

    def run(self) -> tuple[Ranks, SearchRecord]:
        """Search until the certificate holds, `max_evaluations` or `max_seconds`; at least one plan is looked at."""
        self._began = time.perf_counter()
        with threadpool_limits(limits=1, user_api="blas"):
            with suppress(BudgetSpent):
                self._start()
                self._started = True
            return self._go_on()

    def aim_at(self, target: Target) -> tuple[Ranks, SearchRecord]:
        """After `run`, the same for another target: all looks so far count, and time goes on.

        The certificate speaks of this target alone, and its schedule of risks begins anew. It may not be met within
        the looks that are allowed for it, a share of those so far.
        """
        self._rule = StopRule(self._settings, target)
        self._max_looks = self._num_evaluations + int(np.ceil(SHARE_OF_ANOTHER_TARGET * self._num_evaluations))
        with threadpool_limits(limits=1, user_api="blas"):
            with self._thinking():
                self._aim()
            return self._go_on()

    def _go_on(self) -> tuple[Ranks, SearchRecord]:
        while True:
            test = self._test()
            self._on_incumbent(self._image_passes, test.score.incumbent if self._champion is None else self._champion)
            with self._thinking():
                following = self._next_look(test)
            reason = self._reason_to_stop(test, following)
            if reason or following is None:
                break
            self._look_at(self._with_fantasies(test, following))
        test = self._complete(test)
        final = self._settle(test.score.incumbent)
        if self._champion is not None:
            self._on_incumbent(self._image_passes, final)
        return final, self._record(test, final, reason)

    def _settle(self, incumbent: Ranks) -> Ranks:
        """The incumbent (d,) or the champion, whichever is better image by image.

        They are compared on images that are new to the incumbent, which leads by luck on the others, too. What the
        certificate says of the incumbent holds for a better plan.
        """
        champion = self._champion
        if champion is None or np.array_equal(champion, incumbent):
            return incumbent
        images = np.setdiff1d(self._state.seen(champion), self._state.seen(incumbent))[: 2 * self._settings.samples]
        if len(images) < 2 or self._spent_time():
            return champion
        # Not in the journal: a run with more to spend goes on from the look before.
        (losses,) = self._workers.run(self._evaluate, [(incumbent, images)])
        self._image_passes += len(images)
        self._keep(Look("challenge", incumbent, images, is_glance=True), losses)
        of_champion = self._state.losses_of(champion).on(images)
        values = [
            self.objective.value(one.values, self._space.ratio(ranks[None])[0])
            for one, ranks in ((losses, incumbent), (of_champion, champion))
        ]
        return incumbent if refine.is_better(values[0], values[1]) else champion

    # Looks

    def _first_look(self, ranks: Ranks) -> float:
        """The J observed of a plan of the start on the next images, or how near it lies to the target."""
        (losses,) = self._first_looks([Look("start", ranks, self._first_images())])
        if self._target is None:
            return self._observed_objective(ranks, losses)
        return self._target.nearness(self._ratio(ranks), losses.mean)

    def _first_images(self) -> np.ndarray:
        """Images for the next look of the start.

        Where steps follow, half a look's images, the same for all plans, tell which is the best to begin from. What a
        loss of accuracy or a risk is about takes more images.
        """
        if self._refinement is not None and not (self._target and self._target.measure == "loss"):
            return self._sampler.draw(0)[: max(2, self._settings.samples // 2)]
        return self._sampler.draw(len(self._state.ranks))

    def _first_looks(self, looks: Sequence[Look]) -> list[Losses]:
        """Losses of looks of the start, as long as the budget lasts."""
        if self._spent_budget():
            raise BudgetSpent
        return self._look_at(looks)

    def _look_at(self, looks: Sequence[Look]) -> list[Losses]:
        """Losses of plans that do not depend on one another."""
        all_losses = []
        for look, losses in zip(looks, self._observe(looks), strict=True):
            self._keep(look, losses)
            all_losses.append(losses)
            if len(all_losses) < len(looks) and not self._started and self._spent_budget():
                raise BudgetSpent
        return all_losses

    def _keep(self, look: Look, losses: Losses) -> None:
        self._state.ranks.append(look.ranks)
        self._state.losses.append(losses)
        self._state.norms.append(losses.mean)
        self._state.function_norms.append(losses.function_norm)
        self._state.sources.append(look.source)
        self._noise.add(losses)
        self._norms.add(losses)
        self._num_glances += look.is_glance
        observed = self._observed_objective(look.ranks, losses)
        self._on_look(self._num_evaluations, f"{look.source}: J {observed:.4f}, ratio {self._ratio(look.ranks):.3f}")

    def _probe(self, plans: list[Ranks]) -> Iterator[Losses]:
        images, complete = np.arange(min(start.PROBE_IMAGES, self._num_images)), self._space.complete
        for number, losses in enumerate(self._observe([Look("probe", complete(ranks), images) for ranks in plans]), 1):
            self._on_look(0, f"measuring layers one at a time, {number} looks so far")
            yield losses

    def _observe(self, looks: Sequence[Look]) -> Iterator[Losses]:
        """Losses in the looks' order: the journal's, as long as it has any, then new ones, which it gets."""
        missing = list(looks)
        while missing and (known := self._journal.recall(missing[0].ranks, missing[0].images)) is not None:
            self._image_passes += len(missing.pop(0).images)
            yield known
        found = self._workers.run(self._evaluate, [(look.ranks, look.images) for look in missing])
        for look, losses in zip(missing, found, strict=True):
            self._image_passes += len(look.images)
            observed = self._observed_objective(look.ranks, losses)
            self._journal.append(look.source, look.ranks, losses, self._ratio(look.ranks), observed)
            yield losses

    def _ratio(self, ranks: Ranks) -> float:
        return float(self._space.ratio(ranks[None])[0])

    def _observed_objective(self, ranks: Ranks, losses: Losses) -> float:
        return float(self.objective.value(np.array(losses.mean), np.array(self._ratio(ranks))))

    # Start

    def _start(self) -> None:
        best = self._random_start() if self._settings.start == "random" else self._start_by_sensitivities()
        if self._refinement is not None:
            for number in range(self._refinement.num_steps):
                best = self._refine(self._best_for_target() if self._target else best, number)
            self._champion = None if self._target else best
        elif self._settings.start != "random":
            for _ in range(start.NUM_REALLOCATIONS):
                best = self._reallocate(self._best_for_target() if self._target else best)

    def _random_start(self) -> Ranks:
        """The best by observation of random plans."""
        self._surrogate = self._choose_surrogate(None)
        rng = np.random.default_rng([self._settings.seed, START_STREAM])
        return max(self._space.sample(2 * self._space.num_dims + 2, rng), key=self._first_look)

    def _start_by_sensitivities(self) -> Ranks:
        """The best by observation of plans that single layers' losses lead to."""
        space = self._space
        alone = start.tables_of(space.layers, self._sensitivities())
        sensitivities = [self._law.per_norm * table for table in alone]
        if self._target is not None:
            allocate = functools.partial(start.allocate, space, sensitivities)
            self._set_gamma(first_gamma(self._target, space, allocate, start.sum_of(sensitivities)))
        if space.layers is space:
            self._surrogate = self._choose_surrogate(start.sum_of(sensitivities))
        best = start.look_along_curve(
            space.layers, self.objective, sensitivities, lambda ranks: self._first_look(space.complete(ranks))
        )
        best = space.complete(best)
        saturation = max(start.LOSS_FLOOR, *self._state.norms)
        if space.layers is not space:
            best, added = self._choose_sparsity(best)
            alone, sensitivities = [*alone, added], [*sensitivities, self._law.per_norm * added]
        self._alone, self._saturation = alone, max(start.LOSS_FLOOR, *self._state.function_norms)
        self._norms.begin(start.sum_of(alone), self._saturation)
        self._surrogate = self._choose_surrogate(start.sum_of(sensitivities), saturation)
        return best

    def _expect_around(self, plan: Ranks, step: StepRow) -> None:
        """What layers add in the company of the plan (d,) becomes the prior mean."""
        assert self._alone is not None
        if self._settings.surrogate == "plain":
            return
        around = start.around_plan(plan, step.norm, step.norms_alone, self._alone)
        self._around, self._hyper, self._fitted_afresh_at = step.norm, None, 0
        self._surrogate = self._choose_surrogate(around, self._saturation)

    def _sensitivities(self) -> list[list[float]]:
        """Losses of single layers at `start.probed_ranks`: by the linear model where slopes come through, or probed."""
        norms: list[list[float]] = []
        if self._linearise is not None:
            self._on_look(0, "measuring layers by a linear model")
            images = np.arange(min(start.MODEL_IMAGES, self._num_images))
            row = self._journal.recall_sensitivities(images)
            if row is None:
                found = start.linear_sensitivities(self._space.layers, self._linearise, images)
                row = self._journal.append_sensitivities(found[0], images, found[1])
            self._image_passes += row.passes
            norms = row.sensitivities
        return norms or start.probe_sensitivities(self._space.layers, self._probe)

    def _refine(self, plan: Ranks, number: int) -> Ranks:
        """The plan (d,) after a step by the linear model, with all that was seen of it."""
        assert self._refinement is not None
        if self._spent_budget():
            raise BudgetSpent
        self._on_look(self._num_evaluations, "refining ranks by a linear model")
        steps, before = self._refinement, self._refinement.passes
        per_norm = start.loss_per_norm(self._state.losses)
        better, losses = steps.step(self.objective, plan, self._state.losses_of(plan), number, per_norm)
        self._image_passes += steps.passes - before
        if steps.last is not None and self._alone is not None:
            self._expect_around(plan, steps.last)
        new = losses.without(self._state.seen(better))
        if len(new.indices) > 1:
            self._keep(Look("refinement", better, new.indices, is_glance=True), new)
        self._on_incumbent(self._image_passes, better)
        return better

    def _choose_sparsity(self, plan: Ranks) -> tuple[Ranks, np.ndarray]:
        """`start.choose_sparsity` on images that the plan has not been looked at with, if there are enough left."""
        images = self._images_for(plan)
        images = (images if len(images) else self._sampler.draw(0))[: start.CONTEXT_IMAGES]

        def glance(plans: list[Ranks]) -> list[Losses]:
            return self._first_looks([Look("start", ranks, images, is_glance=True) for ranks in plans])

        per_norm = start.loss_per_norm(self._state.losses)
        return start.choose_sparsity(self._space, self.objective, plan, glance, per_norm)

    def _reallocate(self, plan: Ranks) -> Ranks:
        """`start.reallocate` on images that the plan has not been looked at with, if there are any left."""
        images = self._images_for(plan)
        if not len(images):
            return plan

        def look(ranks: Ranks) -> Losses:
            return self._first_looks([Look("start", ranks, images)])[0]

        def glance(plans: list[Ranks]) -> list[Losses]:
            some = images[: start.CONTEXT_IMAGES]
            return self._first_looks([Look("start", ranks, some, is_glance=True) for ranks in plans])

        per_norm = start.loss_per_norm(self._state.losses)
        return start.reallocate(self._space, self.objective, plan, look, glance, per_norm)

    def _best_for_target(self) -> Ranks:
        """The plan (d,) looked at that the target prefers, gamma having been found for it."""
        with self._thinking():
            self._aim()
            return self._rule.rank(self._believe(), np.array(self._state.ranks))[0]

    def _choose_surrogate(
        self, expected: Callable[[Ranks], np.ndarray] | None, saturation: float = np.inf
    ) -> Surrogate:
        if self._settings.surrogate == "plain":
            return PlainSurrogate(self._space, self.objective)
        return LogSurrogate(self._space, self.objective, expected, saturation, self._law.floor)

    def _new_refinement(self) -> Refinement | None:
        """What takes steps by the linear model; None where there is none: it knows of no pruning."""
        if self._linearise is None or self._space.layers is not self._space:
            return None
        return Refinement(
            self._space,
            self._linearise,
            lambda looks: list(self._observe(looks)),
            self._journal,
            self._num_images,
            self._settings.samples,
            self._settings.seed,
        )

    # Target

    @property
    def _target(self) -> Target | None:
        return self._rule.target

    def _aim(self) -> None:
        """Choose gamma for the target by what is believed now."""
        assert self._target is not None
        if not (self._started and self._aimed):
            self._rule.target = self._target.learn(self._state.losses)
        self._aimed = True
        visited = np.array(self._state.ranks)
        belief = self._believe()
        rng = np.random.default_rng([self._settings.seed, AIM_STREAM, len(visited)])
        anchors = self._rule.rank(belief, visited)[:NUM_ANCHORS]
        self._set_gamma(solve_gamma(self._target, belief, anchors, rng))

    def _is_time_to_aim(self, target: Target) -> bool:
        """A loss gives gamma once, if there is one: one that moved would keep the certificate from being met."""
        settled = target.measure == "loss" and 10 * SMALLEST_GAMMA < self.objective.gamma < LARGEST_GAMMA / 10
        return not settled and len(self._state.ranks) >= REFIT_GROWTH * self._aimed_at

    def _set_gamma(self, gamma: float) -> None:
        self.objective = self._surrogate.objective = replace(self.objective, gamma=gamma)
        if isinstance(self._surrogate, PlainSurrogate):
            self._hyper, self._fitted_afresh_at = None, 0  # its targets are gamma times as large

    def _landing(self, test: StopTest) -> Ranks | None:
        """A plan (d,) that is expected to keep to a ratio and to be better than the incumbent, by what matters."""
        if self._target is None or self._target.measure == "loss":
            return None
        count = len(self._state.ranks)
        rng = np.random.default_rng([self._settings.seed, LANDING_STREAM, count])
        belief, landing = test.score.belief, Landing(self._target, test.score.belief)
        plan, value = maximise(landing, self._space, test.anchors, rng)
        incumbent = test.score.incumbent[None]
        of_plan, of_incumbent = self._target.of(belief, np.concatenate([plan[None], incumbent]))
        if of_plan > self._target.most or (np.array(self._state.ranks) == plan).all(1).any():
            return None
        wasteful = of_incumbent < self._target.least <= of_plan
        gain = value - landing(incumbent)[0]
        return plan if gain > (0.0 if wasteful else WORTH_A_LANDING * test.score.delta) else None

    # Surrogate and acquisition

    def _telling_looks(self) -> np.ndarray:
        """Indices (k,) of the looks that the process learns from: what is expected around a plan is off far away, and
        how far off would be taken for how far off it is nearby."""
        count = len(self._state.ranks)
        if self._around is None:
            return np.arange(count)
        distance = np.abs(np.log(np.maximum(self._state.function_norms, start.LOSS_FLOOR) / self._around))
        distance[[source != "start" for source in self._state.sources]] = 0.0
        return np.flatnonzero(distance <= max(np.log(NEARBY), np.sort(distance)[:LEAST_LOOKS][-1]))

    def _believe(self) -> Belief:
        state, told = self._state, self._telling_looks()
        ranks, function_norms = np.array(state.ranks), np.array(state.function_norms)
        per_norm = start.loss_per_norm(state.losses)
        if self._law.floor and self._settings.surrogate == "log":
            expected = self._norms.predict(ranks, function_norms, per_norm, self.objective)
            self._surrogate = LogSurrogate(self._space, self.objective, expected, floor=self._law.floor)
        noise, norms = self._noise.covariance(function_norms)[np.ix_(told, told)], np.array(state.norms)[told]
        targets = self._surrogate.targets(ranks[told], norms, noise, per_norm * function_norms[told])
        thetas = self._space.encode(ranks[told])
        if self._hyper is None or len(norms) >= REFIT_GROWTH * self._fitted_at:
            afresh = len(norms) >= FRESH_GROWTH * self._fitted_afresh_at
            limits = DEPARTURES if self._law.floor else {} if self._around is None else LEAST_DEPARTURES
            self._hyper = gp.fit(thetas, targets.values, targets.noise, self._hyper, 2 if afresh else 0, **limits)
            self._fitted_at = len(norms)
            self._fitted_afresh_at = len(norms) if afresh else self._fitted_afresh_at
        return self._surrogate.belief(gp.GaussianProcess(thetas, targets.values, targets.noise, self._hyper))

    def _test(self) -> StopTest:
        with self._thinking():
            if self._target is not None and (not self._aimed or self._is_time_to_aim(self._target)):
                self._aim()
                self._aimed_at = len(self._state.ranks)
            return self._rule.test(self._believe(), np.array(self._state.ranks), self._may_stop())

    def _complete(self, test: StopTest) -> StopTest:
        with self._thinking():
            return self._rule.complete(test, np.array(self._state.ranks), self._may_stop())

    @contextmanager
    def _thinking(self) -> Iterator[None]:
        """What runs within counts as the surrogate's time."""
        began = time.perf_counter()
        yield
        self._surrogate_seconds += time.perf_counter() - began

    def _next_look(self, test: StopTest, pending: Sequence[Look] = ()) -> Look | None:
        """What to look at next, beside what is under way; None where no plan has images that it has not seen."""
        landing = None if pending else self._landing(test)
        if landing is not None:
            return Look("target", landing, self._images_for(landing))
        candidate = self._candidate(test, pending)
        looks = [("re-measure", test.score.incumbent)]
        if candidate is not None:
            again = measure_again(test.score, candidate, self._expected_noise(test, candidate))
            looks.insert(int(again), ("candidate", candidate))
        for source, ranks in looks:
            images = self._images_for(ranks, pending)
            if len(images):
                return Look(source, ranks, images)
        return None

    def _candidate(self, test: StopTest, pending: Sequence[Look]) -> Ranks | None:
        """What the acquisition proposes among the plans that have images left."""
        if len(self._images_for(test.candidate, pending)):
            return test.candidate
        visited = np.unique([*self._state.ranks, *(look.ranks for look in pending)], axis=0)
        spent = np.array([ranks for ranks in visited if not len(self._images_for(ranks, pending))])
        return self._rule.elsewhere(test, spent, len(self._state.ranks))

    def _with_fantasies(self, test: StopTest, first: Look) -> list[Look]:
        """`first` and the looks to follow it, each proposed as if those before it had found what is expected of them.

        The first few of a batch do not depend on how many follow.
        """
        count = min(self._settings.candidates, self._settings.max_evaluations - self._num_evaluations)
        looks = [first]
        with self._thinking():
            while len(looks) < count:
                belief, last = test.score.belief, looks[-1]
                belief = self._surrogate.expect_look(belief, last.ranks, self._expected_variance(belief, last))
                test = self._rule.propose(belief, np.array([*self._state.ranks, *(look.ranks for look in looks)]))
                following = self._next_look(test, looks)
                if following is None:
                    break
                looks.append(following)
        return looks

    def _images_for(self, ranks: Ranks, pending: Sequence[Look] = ()) -> np.ndarray:
        """The next images of the pool, or for a plan looked at before, images that it has not seen."""
        number = len(self._state.ranks) + len(pending)
        under_way = [look.images for look in pending if np.array_equal(look.ranks, ranks)]
        seen = np.concatenate([self._state.seen(ranks), *under_way])
        return self._sampler.draw_unseen(number, seen) if len(seen) else self._sampler.draw(number)

    def _expected_noise(self, test: StopTest, candidate: Ranks) -> np.ndarray:
        """Variances of one more look at the candidate and at the incumbent."""
        plans = np.stack([candidate, test.score.incumbent])
        return self._look_noise(test.score.belief, plans, self._sampler.samples)

    def _expected_variance(self, belief: Belief, look: Look) -> float:
        return float(self._look_noise(belief, look.ranks[None], len(look.images))[0])

    def _look_noise(self, belief: Belief, ranks: Ranks, num_images: int) -> np.ndarray:
        """Expected noise variances (m,) of looks at ranks (m, d)."""
        expected = np.maximum(belief.function_norm(ranks)[0], min(self._state.norms))
        per_norm = start.loss_per_norm(self._state.losses)
        function_norms = np.maximum(expected / per_norm, min(self._state.function_norms))
        return self._surrogate.look_noise(self._noise.variance(function_norms) / num_images, expected)

    def _reason_to_stop(self, test: StopTest, following: Look | None) -> str:
        if test.met and not (following and following.source == "target"):
            return "certificate met"
        return self._spent_budget() or ("" if following else "no images left that could tell more")

    def _may_stop(self) -> bool:
        """The certificate speaks only after the whole start and a look at what the model itself proposed."""
        return self._started and any(source not in ("start", "refinement") for source in self._state.sources)

    def _spent_budget(self) -> str:
        """Which budget is spent, in words; empty while there is some left."""
        settings, looks = self._settings, self._num_evaluations
        if looks >= settings.max_evaluations:
            return f"{settings.max_evaluations} evaluations spent"
        if looks >= self._max_looks:
            return f"{looks} evaluations spent, as many as another target is worth"
        if looks and self._spent_time():
            return f"{settings.max_seconds:g} seconds spent"
        return ""

    def _spent_time(self) -> bool:
        return self._settings.max_seconds is not None and self._seconds() >= self._settings.max_seconds

    @property
    def _num_evaluations(self) -> int:
        """Looks at whole plans, without those at plans that differ in one layer from the start's best."""
        return len(self._state.ranks) - self._num_glances

    def _seconds(self) -> float:
        return time.perf_counter() - self._began

    # Record

    def believed_loss(self, ranks: Ranks) -> float:
        """The posterior mean of L of a plan (d,)."""
        return float(self._believe().function_norm(ranks[None])[0][0])

    def front(self) -> list[FrontPlan]:
        """Plans looked at that no other beats in both R and the posterior mean of L, smallest first."""
        ranks = np.unique(np.array(self._state.ranks), axis=0)
        norms, deviations = self._believe().function_norm(ranks)
        ratios = self._space.ratio(ranks)
        order = np.lexsort([norms, ratios])
        lowest = np.minimum.accumulate(np.concatenate([[np.inf], norms[order][:-1]]))
        return [
            FrontPlan(ranks[index], float(ratios[index]), float(norms[index]), float(deviations[index]))
            for index, other in zip(order, lowest, strict=True)
            if norms[index] < other
        ]

    def _record(self, test: StopTest, final: Ranks, reason: str) -> SearchRecord:
        belief, incumbent = self._believe(), final[None]
        return SearchRecord(
            evaluations=self._num_evaluations,
            image_passes=self._image_passes,
            seconds=self._seconds(),
            surrogate_seconds=self._surrogate_seconds,
            stopped_because=reason,
            objective=float(belief.mean(incumbent)[0]),
            objective_sd=float(belief.sd(incumbent)[0]),
            certificate=recording.certificate_record(test, self._settings),
            calibration=recording.calibrate(belief),
            history=recording.history(self._state, self._space, belief),
        )
