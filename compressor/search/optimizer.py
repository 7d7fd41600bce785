"""The search loop: evaluate, fit, propose and test, until the certificate holds or the budget is spent."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from compressor.arrays import Array, Ranks
from compressor.search import result
from compressor.search.acquisition.optimize import should_remeasure
from compressor.search.evaluation.evaluator import Evaluator, OnEvaluation
from compressor.search.evaluation.history import (
    CANDIDATE,
    INITIAL,
    REFINEMENT,
    REMEASURE,
    TARGET,
    Evaluation,
    ParetoPlan,
)
from compressor.search.evaluation.journal import Journal
from compressor.search.evaluation.parallel import Workers
from compressor.search.evaluation.racing import Racing, challengers_of
from compressor.search.expected_gain import ExpectedGain
from compressor.search.fitting import SurrogateFitter
from compressor.search.initial.design import BudgetSpent, InitialDesign
from compressor.search.initial.refinement import NUM_STEPS
from compressor.search.limit import LimitUpdate
from compressor.search.objective import Objective
from compressor.search.problem import SearchProblem
from compressor.search.records import SearchRecord
from compressor.search.settings import SearchSettings as SearchSettings
from compressor.search.stopping.criterion import StopRule, StopTest
from compressor.search.surrogate.energy_prior import EnergyPrior
from compressor.search.target.target import SearchTarget

# Evaluations allowed for another target. Near the last one, the posterior is good and two confirm its best plan.
MAX_EVALUATIONS_NEARBY, MAX_EVALUATIONS_FAR_AWAY = 2, 20


@dataclass(frozen=True)
class SearchListener:
    """Who follows a search.

    Attributes:
        on_evaluation: called after each evaluation with their number and the state of the search in words.
        on_incumbent: called during the initial design and after each test with the image passes so far and the ranks
            (d,) of the plan that is then the best.
    """

    on_evaluation: OnEvaluation = lambda count, text: None
    on_incumbent: Callable[[int, Ranks], None] = lambda image_passes, ranks: None


class Search:
    """One search; `run` returns the chosen ranks and the record of how they were found.

    Args:
        problem: the space, the objective and how losses are found.
        settings: what a person may choose.
        journal: keeps every evaluation, and answers those of an earlier run.
        target: what is limited, in place of weighing L against R; None for the objective's gamma.
        workers: run evaluations that do not depend on one another; None runs one after the other.
        listener: is called as the search proceeds.
    """

    def __init__(
        self,
        problem: SearchProblem,
        settings: SearchSettings,
        journal: Journal,
        target: SearchTarget | None = None,
        workers: Workers | None = None,
        listener: SearchListener | None = None,
    ) -> None:
        listener = listener or SearchListener()
        prior = EnergyPrior(problem.energies) if settings.prior_mean == "energies" else None
        self._settings = settings
        self._on_incumbent = listener.on_incumbent
        self._evaluator = Evaluator(problem, settings, journal, workers, listener.on_evaluation)
        self._fitter = SurrogateFitter(self._evaluator, prior)
        self._limits = LimitUpdate(self._evaluator, self._fitter, target)
        self._rule = self._make_rule()
        self._initial_design = InitialDesign(
            self._evaluator, self._fitter, self._limits, problem.linearize, listener.on_incumbent
        )
        self._initial_best: Ranks | None = None
        self._has_only_begun = False

    @property
    def objective(self) -> Objective:
        """J, with the limit of R and the unit of L where there is a target."""
        return self._evaluator.objective

    @property
    def target(self) -> SearchTarget | None:
        """What is limited, as far as it is learnt."""
        return self._limits.target

    @property
    def takes_steps(self) -> bool:
        """Whether the initial design takes Gauss-Newton steps."""
        return self._initial_design.takes_steps

    def run(self) -> tuple[Ranks, SearchRecord]:
        """Search until the certificate holds or `max_evaluations` or `max_seconds` are spent.

        Returns:
            The chosen plan (d,) and the record; at least one plan is evaluated.
        """
        return self._start(NUM_STEPS)

    def begin(self) -> tuple[Ranks, SearchRecord]:
        """Run the initial design without its last Gauss-Newton step, while the target is not known well yet.

        `continue_for` then takes the last step and searches.

        Returns:
            The best plan (d,) so far and the record.
        """
        self._has_only_begun = True
        return self._start(NUM_STEPS - 1)

    def continue_for(self, target: SearchTarget) -> tuple[Ranks, SearchRecord]:
        """After `run` or `begin`, search for another target with all evaluations so far; the clock runs on.

        The certificate holds for this target alone, and its schedule of failure probabilities starts anew. After `run`
        it may not be met within the few evaluations that are allowed.

        Returns:
            As `run`.
        """
        begun, self._has_only_begun, self._initial_best = self._has_only_begun, False, None
        if not begun:
            target = target.after(self.target)
        self._limits.target = target
        self._rule = self._make_rule()
        allowed = self._evaluator.count + (MAX_EVALUATIONS_NEARBY if target.is_near else MAX_EVALUATIONS_FAR_AWAY)
        self._evaluator.max_evaluations = self._settings.max_evaluations if begun else allowed
        with threadpool_limits(limits=1, user_api="blas"):
            with suppress(BudgetSpent):
                self._initial_design.move_to_target(1 if begun else 0 if target.is_near else NUM_STEPS, may_keep=begun)
                self._evaluate_least_loss()
            return self._iterate()

    def continue_with(self, gain: ExpectedGain, plan: Ranks) -> tuple[Ranks, SearchRecord]:
        """After `run`, search on by what reconstruction is found to leave, with all evaluations so far.

        Nothing more is evaluated where the certificate holds of the plan by the new gain, too.

        Args:
            gain: replaces that of the problem.
            plan: the plan (d,) that `run` chose.

        Returns:
            A plan (d,) that is better than `plan` by more than delta, or `plan`; and the record.
        """
        evaluator = self._evaluator
        evaluator.use_gain(gain)
        self._fitter.forget_hyperparameters()
        self._initial_design.use_gain(gain)
        self._limits.target = None
        self._rule = self._make_rule()
        evaluator.max_evaluations = min(evaluator.count + MAX_EVALUATIONS_FAR_AWAY, self._settings.max_evaluations)
        with threadpool_limits(limits=1, user_api="blas"):
            self._initial_best = plan
            test = self._test()
            if not test.met:
                with suppress(BudgetSpent):
                    self._initial_best = self._initial_design.refine(test.incumbent)
            test, found, reason = self._search_on()
            values, delta = self._fitter.posterior().mean(np.stack([found, plan])), self._settings.delta
            smallest = delta * abs(float(values[1])) if self._settings.delta_is_relative else delta
            if values[0] - values[1] <= smallest and not np.array_equal(found, plan):
                test = self._rule.certify(test, plan, np.array(evaluator.history.ranks), self._may_stop())
                found, reason = plan, reason if test.met else "no plan was found that is better by more than delta"
            return found, self._record(test, found, reason)

    def _make_rule(self) -> StopRule:
        """The tests for the target as it is, in a schedule that starts anew."""
        measure = self.target.measure if self.target else None
        return StopRule(self._settings, measure, self._evaluator.noise_spec.floor)

    def _evaluate_least_loss(self) -> None:
        """Evaluate the plan of least posterior mean of L within the limit."""
        limit = self.objective.limit
        assert limit is not None
        plan, _ = self._limits.least_loss(limit)
        images = self._evaluator.images_for(plan)
        if len(images):
            self._evaluator.run([Evaluation(TARGET, plan, images)])

    def _start(self, num_steps: int) -> tuple[Ranks, SearchRecord]:
        self._evaluator.start_clock()
        with threadpool_limits(limits=1, user_api="blas"):
            with suppress(BudgetSpent):
                self._initial_best = self._initial_design.run(num_steps)
                self._limits.is_started = True
            if self._has_only_begun:
                self._evaluator.max_evaluations = self._evaluator.count
            return self._iterate()

    def _iterate(self) -> tuple[Ranks, SearchRecord]:
        test, final, reason = self._search_on()
        return final, self._record(test, final, reason)

    def _search_on(self) -> tuple[StopTest, Ranks, str]:
        """Evaluate, fit, propose and test until there is a reason to stop: the last test, the plan (d,), the reason."""
        evaluator, timed = self._evaluator, self._fitter.timed
        while True:
            with timed():
                test = self._test()
            best = test.incumbent if self._initial_best is None else self._initial_best
            self._on_incumbent(evaluator.image_passes, best)
            with timed():
                following = self._next_evaluation(test)
            reason = self._reason_to_stop(test, following)
            if reason or following is None:
                break
            with timed():
                batch = self._with_fantasies(test, following)
            evaluator.run(batch)
        with timed():
            test = self._rule.complete(test, np.array(evaluator.history.ranks), self._may_stop())
        final = self._final_plan(test)
        if self._initial_best is not None:
            self._on_incumbent(evaluator.image_passes, final)
        return test, final, reason

    def _final_plan(self, test: StopTest) -> Ranks:
        """The winner (d,) of the racing between the best initial plan, the incumbent and plans of high posterior mean.

        What the certificate states of the incumbent holds for a better plan, too.
        """
        evaluator, initial_best, incumbent = self._evaluator, self._initial_best, test.incumbent
        if initial_best is None or evaluator.is_out_of_time():
            return incumbent if initial_best is None else initial_best
        visited = np.array(evaluator.history.ranks)
        plans = [initial_best, incumbent, *challengers_of(initial_best, test.posterior, visited)]
        plans = list({ranks.tobytes(): ranks for ranks in plans}.values())
        evaluator.log("comparing the best plans")
        return Racing(evaluator, self._initial_design.fitted_images).run(plans)

    # What to evaluate next, and when to stop

    def _test(self) -> StopTest:
        self._limits.update_if_due()
        visited, fitter = np.array(self._evaluator.history.ranks), self._fitter
        test = self._rule.test(fitter.posterior(), visited, self._may_stop())
        if test.met and self._settings.refit == "stopping" and not fitter.is_fitted_to_all:
            fitter.forget_hyperparameters()
            test = self._rule.test(fitter.posterior(), visited, self._may_stop())
        return test

    def _next_evaluation(self, test: StopTest, pending: Sequence[Evaluation] = ()) -> Evaluation | None:
        """What to evaluate next, beside what is pending; None where every plan has been evaluated on all images."""
        candidate = self._candidate(test, pending)
        proposals = [(REMEASURE, test.incumbent)] if self._settings.remeasure else []
        if candidate is not None:
            noise = self._expected_noise(test, candidate)
            again = proposals and should_remeasure(test.posterior, test.incumbent, candidate, noise)
            proposals.insert(int(bool(again)), (CANDIDATE, candidate))
        for source, ranks in proposals:
            images = self._evaluator.images_for(ranks, pending)
            if len(images):
                return Evaluation(source, ranks, images)
        return None

    def _candidate(self, test: StopTest, pending: Sequence[Evaluation]) -> Ranks | None:
        """The plan (d,) that the acquisition function proposes among those that have images left."""
        evaluator = self._evaluator
        if len(evaluator.images_for(test.candidate, pending)):
            return test.candidate
        visited = np.unique([*evaluator.history.ranks, *(evaluation.ranks for evaluation in pending)], axis=0)
        spent = np.array([ranks for ranks in visited if not len(evaluator.images_for(ranks, pending))])
        return self._rule.propose_without(test, spent, len(evaluator.history.ranks))

    def _expected_noise(self, test: StopTest, candidate: Ranks) -> Array:
        """Expected noise variances (2,) of one more evaluation of the candidate and of the incumbent."""
        plans = np.stack([candidate, test.incumbent])
        return self._fitter.evaluation_noise(test.posterior, plans, self._evaluator.sampler.samples)

    def _with_fantasies(self, test: StopTest, first: Evaluation) -> list[Evaluation]:
        """`first` and those to follow it, each proposed as if those before had found the posterior mean.

        The first few of a batch do not depend on how many follow.
        """
        left = min(self._settings.max_evaluations, self._evaluator.max_evaluations) - self._evaluator.count
        count = min(self._settings.candidates, left)
        batch = [first]
        while len(batch) < count:
            posterior = self._fitter.fantasize(test.posterior, batch[-1])
            visited = np.array([*self._evaluator.history.ranks, *(evaluation.ranks for evaluation in batch)])
            test = self._rule.propose(posterior, visited)
            following = self._next_evaluation(test, batch)
            if following is None:
                break
            batch.append(following)
        return batch

    def _reason_to_stop(self, test: StopTest, following: Evaluation | None) -> str:
        if test.met:
            return "certificate met"
        if test.is_refuted:
            return "the last evaluations brought no gain of delta, though it was expected"
        return self._evaluator.spent_budget() or ("" if following else "all plans evaluated on all images")

    def _may_stop(self) -> bool:
        """Whether the certificate counts: the initial design is complete, and one plan more has been evaluated."""
        proposed = any(source not in (INITIAL, REFINEMENT) for source in self._evaluator.history.sources)
        return self._limits.is_started and proposed

    # Results

    def posterior_loss(self, ranks: Ranks) -> float:
        """The posterior mean of L of a plan (d,)."""
        return float(self._fitter.posterior().loss(ranks[None])[0][0])

    def gamma(self, ranks: Ranks) -> float | None:
        """The gamma at which a chosen plan (d,) is best: the objective's, or with a limit the multiplier, if any."""
        ratio = float(self._evaluator.ratio(ranks))
        return self.objective.gamma if self.objective.limit is None else self._limits.multiplier(ratio)

    def pareto_front(self) -> list[ParetoPlan]:
        """Evaluated plans that no other beats in both R and the posterior mean of L, smallest first."""
        return result.pareto_front(self._evaluator.history, self._fitter.posterior())

    def _record(self, test: StopTest, final: Ranks, reason: str) -> SearchRecord:
        evaluator, posterior, plan = self._evaluator, self._fitter.posterior(), final[None]
        unit = result.unit_of(self.objective)
        return SearchRecord(
            evaluations=evaluator.count,
            image_passes=evaluator.image_passes,
            seconds=evaluator.seconds,
            surrogate_seconds=self._fitter.seconds,
            stopped_because=reason,
            objective=float(posterior.mean(plan)[0]) * unit,
            objective_sd=float(posterior.sd(plan)[0]) * unit,
            limit=self.objective.limit,
            certificate=result.certificate_record(test, self._settings, self.target),
            calibration=result.calibration_record(posterior),
            history=result.evaluation_records(evaluator.history, posterior),
        )
