"""The search loop: look, fit, propose, test, until the certificate holds or the budget is spent."""

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from threadpoolctl import threadpool_limits

from compressor.arrays import Array, Ranks
from compressor.fidelity.linear_model import Linearize
from compressor.fidelity.losses import NoiseSpecification
from compressor.search import result as recording
from compressor.search.acquisition.optimize import should_remeasure
from compressor.search.evaluation.evaluator import Evaluator
from compressor.search.evaluation.history import Evaluation, ParetoPlan
from compressor.search.evaluation.journal import Journal
from compressor.search.evaluation.parallel import Evaluate, Workers
from compressor.search.initial.design import BudgetSpent, InitialDesign
from compressor.search.initial.refinement import NUM_STEPS
from compressor.search.multiplier import MultiplierUpdate
from compressor.search.objective import Objective
from compressor.search.racing import Racing, challengers_of
from compressor.search.records import SearchRecord
from compressor.search.settings import SearchSettings as SearchSettings
from compressor.search.space import RankSpace
from compressor.search.stopping.criterion import StopRule, StopTest
from compressor.search.surrogate.energy_prior import EnergyPrior
from compressor.search.surrogate.fitting import SurrogateFitter
from compressor.search.target.target import SearchTarget

# For another target, at most; what is believed holds nearby, and the plan is looked at that it says is the best.
EVALUATIONS_NEARBY, EVALUATIONS_FAR_AWAY = 2, 20


class Search:
    """One search; `run` returns the chosen ranks and the record of how they were found.

    Args:
        space, objective: what is searched and what for.
        evaluate: ranks (d,) and image indices (m,) in, per-image losses out.
        num_images: size of the pool the indices point into.
        journal: keeps every look, and answers the ones an earlier run made.
        on_evaluation: told after each look how many there were and how the search stands.
        on_incumbent: told in the start and after each test the image passes so far and the ranks (d,) of the plan then
            best.
        workers: evaluate looks that do not depend on one another, None for one after the other.
        law: how the losses behave, None for those of the function norm.
        target: gamma is chosen to meet it; the objective's own then does not matter.
        linearize: the linear model around a plan, None where losses are all there is.
        energies: for every layer the share of the weight's squared norm that each rank gives up (cap,), where the
            settings' prior mean is theirs.
    """

    def __init__(
        self,
        space: RankSpace,
        objective: Objective,
        evaluate: Evaluate,
        num_images: int,
        settings: SearchSettings,
        journal: Journal,
        on_evaluation: Callable[[int, str], None] = lambda count, text: None,
        on_incumbent: Callable[[int, Ranks], None] = lambda image_passes, ranks: None,
        workers: Workers | None = None,
        noise_spec: NoiseSpecification | None = None,
        target: SearchTarget | None = None,
        linearize: Linearize | None = None,
        energies: Sequence[Array] = (),
    ) -> None:
        self._space = space
        self._settings = settings
        self._on_incumbent = on_incumbent
        self._evaluator = Evaluator(
            space,
            objective,
            evaluate,
            num_images,
            settings,
            journal,
            on_evaluation,
            workers or Workers(),
            noise_spec or NoiseSpecification(),
        )
        self._fitter = SurrogateFitter(
            self._evaluator, EnergyPrior(energies) if settings.prior_mean == "energies" else None
        )
        self._multiplier = MultiplierUpdate(self._evaluator, self._fitter, StopRule(settings, target))
        self._initial_design = InitialDesign(self._evaluator, self._fitter, self._multiplier, linearize, on_incumbent)
        self._initial_best: Ranks | None = None
        self._has_only_begun = False

    @property
    def objective(self) -> Objective:
        """J, with the gamma found where there is a target."""
        return self._evaluator.objective

    def run(self) -> tuple[Ranks, SearchRecord]:
        """Search until the certificate holds, `max_evaluations` or `max_seconds`; at least one plan is looked at."""
        return self._start(NUM_STEPS)

    @property
    def target(self) -> SearchTarget | None:
        """What gamma is found for, as far as it is learnt."""
        return self._multiplier.target

    @property
    def takes_steps(self) -> bool:
        """Whether the start takes steps by a linear model."""
        return self._initial_design.takes_steps

    def begin(self) -> tuple[Ranks, SearchRecord]:
        """The start without its last step, in place of `run`: where the target leads, before it is known well.

        `continue_for` takes the last step and searches.
        """
        self._has_only_begun = True
        return self._start(NUM_STEPS - 1)

    def continue_for(self, target: SearchTarget) -> tuple[Ranks, SearchRecord]:
        """After `run` or `begin`, the same for another target: all looks so far count, and time goes on.

        The certificate speaks of this target alone, and its schedule of risks begins anew. After `run` it may not be
        met within the looks that are allowed for it.
        """
        begun, self._has_only_begun, self._initial_best = self._has_only_begun, False, None
        if not begun:
            target = target.after(self.target)
        self._multiplier.rule = StopRule(self._settings, target)
        evaluations = EVALUATIONS_NEARBY if target.is_near else EVALUATIONS_FAR_AWAY
        self._evaluator.most = self._settings.max_evaluations if begun else self._evaluator.count + evaluations
        with threadpool_limits(limits=1, user_api="blas"):
            with suppress(BudgetSpent):
                self._initial_design.move_to_target(1 if begun else 0 if target.is_near else NUM_STEPS, may_fix=begun)
            return self._go_on()

    def _start(self, num_steps: int) -> tuple[Ranks, SearchRecord]:
        self._evaluator.start_clock()
        with threadpool_limits(limits=1, user_api="blas"):
            with suppress(BudgetSpent):
                self._initial_best = self._initial_design.run(num_steps)
                self._multiplier.is_started = True
            if self._has_only_begun:
                self._evaluator.most = self._evaluator.count
            return self._go_on()

    def _go_on(self) -> tuple[Ranks, SearchRecord]:
        evaluator, timed = self._evaluator, self._fitter.timed
        while True:
            with timed():
                test = self._test()
            self._on_incumbent(
                evaluator.image_passes, test.incumbent if self._initial_best is None else self._initial_best
            )
            with timed():
                following = self._next_evaluation(test)
            reason = self._reason_to_stop(test, following)
            if reason or following is None:
                break
            with timed():
                batch = self._with_fantasies(test, following)
            evaluator.take(batch)
        with timed():
            test = self._rule.complete(test, np.array(evaluator.state.ranks), self._may_stop())
        final = self._settle(test)
        if self._initial_best is not None:
            self._on_incumbent(evaluator.image_passes, final)
        return final, self._record(test, final, reason)

    def _settle(self, test: StopTest) -> Ranks:
        """The plan (d,) that wins the race of the champion, the incumbent and others that the process holds for good.

        What the certificate says of the incumbent holds for a better plan.
        """
        evaluator, initial_best, incumbent = self._evaluator, self._initial_best, test.incumbent
        if initial_best is None or evaluator.spent_time():
            return incumbent if initial_best is None else initial_best
        visited = np.array(evaluator.state.ranks)
        plans = [initial_best, incumbent, *challengers_of(initial_best, test.posterior, visited)]
        plans = list({ranks.tobytes(): ranks for ranks in plans}.values())
        evaluator.log("comparing the best plans")
        return Racing(evaluator, self._initial_design.fitted_images).run(plans)

    # What to look at, and when to stop

    @property
    def _rule(self) -> StopRule:
        return self._multiplier.rule

    def _test(self) -> StopTest:
        self._multiplier.keep()
        return self._rule.test(self._fitter.posterior(), np.array(self._evaluator.state.ranks), self._may_stop())

    def _next_evaluation(self, test: StopTest, pending: Sequence[Evaluation] = ()) -> Evaluation | None:
        """What to look at next, beside what is under way; None where no plan has images that it has not seen."""
        target_candidate = None if pending else self._multiplier.target_candidate(test)
        if target_candidate is not None:
            return Evaluation("target", target_candidate, self._evaluator.images_for(target_candidate))
        candidate = self._candidate(test, pending)
        proposals = [("re-measure", test.incumbent)]
        if candidate is not None:
            again = should_remeasure(test.posterior, test.incumbent, candidate, self._expected_noise(test, candidate))
            proposals.insert(int(again), ("candidate", candidate))
        for source, ranks in proposals:
            images = self._evaluator.images_for(ranks, pending)
            if len(images):
                return Evaluation(source, ranks, images)
        return None

    def _candidate(self, test: StopTest, pending: Sequence[Evaluation]) -> Ranks | None:
        """What the acquisition proposes among the plans that have images left."""
        evaluator = self._evaluator
        if len(evaluator.images_for(test.candidate, pending)):
            return test.candidate
        visited = np.unique([*evaluator.state.ranks, *(evaluation.ranks for evaluation in pending)], axis=0)
        spent = np.array([ranks for ranks in visited if not len(evaluator.images_for(ranks, pending))])
        return self._rule.propose_without(test, spent, len(evaluator.state.ranks))

    def _expected_noise(self, test: StopTest, candidate: Ranks) -> Array:
        """Variances of one more look at the candidate and at the incumbent."""
        plans = np.stack([candidate, test.incumbent])
        return self._fitter.evaluation_noise(test.posterior, plans, self._evaluator.sampler.samples)

    def _with_fantasies(self, test: StopTest, first: Evaluation) -> list[Evaluation]:
        """`first` and the looks to follow it, each proposed as if those before it had found what is expected of them.

        The first few of a batch do not depend on how many follow.
        """
        left = min(self._settings.max_evaluations, self._evaluator.most) - self._evaluator.count
        count = min(self._settings.candidates, left)
        batch = [first]
        while len(batch) < count:
            posterior = self._fitter.fantasize(test.posterior, batch[-1])
            visited = np.array([*self._evaluator.state.ranks, *(evaluation.ranks for evaluation in batch)])
            test = self._rule.propose(posterior, visited)
            following = self._next_evaluation(test, batch)
            if following is None:
                break
            batch.append(following)
        return batch

    def _reason_to_stop(self, test: StopTest, following: Evaluation | None) -> str:
        if test.met and not (following and following.source == "target"):
            return "certificate met"
        return self._evaluator.spent_budget() or ("" if following else "no images left that could log more")

    def _may_stop(self) -> bool:
        """The certificate speaks only after the whole start and a look at what the model itself proposed."""
        proposed = any(source not in ("start", "refinement") for source in self._evaluator.state.sources)
        return self._multiplier.is_started and proposed

    # Record

    def posterior_loss(self, ranks: Ranks) -> float:
        """The posterior mean of L of a plan (d,)."""
        return float(self._fitter.posterior().loss(ranks[None])[0][0])

    def pareto_front(self) -> list[ParetoPlan]:
        """Plans looked at that no other beats in both R and the posterior mean of L, smallest first."""
        ranks = np.unique(np.array(self._evaluator.state.ranks), axis=0)
        norms, deviations = self._fitter.posterior().loss(ranks)
        ratios = self._space.ratio(ranks)
        order = np.lexsort([norms, ratios])
        lowest = np.minimum.accumulate(np.concatenate([[np.inf], norms[order][:-1]]))
        return [
            ParetoPlan(ranks[index], float(ratios[index]), float(norms[index]), float(deviations[index]))
            for index, other in zip(order, lowest, strict=True)
            if norms[index] < other
        ]

    def _record(self, test: StopTest, final: Ranks, reason: str) -> SearchRecord:
        evaluator, posterior, incumbent = self._evaluator, self._fitter.posterior(), final[None]
        return SearchRecord(
            evaluations=evaluator.count,
            image_passes=evaluator.image_passes,
            seconds=evaluator.seconds,
            surrogate_seconds=self._fitter.seconds,
            stopped_because=reason,
            objective=float(posterior.mean(incumbent)[0]),
            objective_sd=float(posterior.sd(incumbent)[0]),
            certificate=recording.certificate_record(test, self._settings),
            calibration=recording.calibrate(posterior),
            history=recording.history(evaluator.state, self._space, posterior),
        )
