"""The search loop: look, fit, propose, test, until the certificate holds or the budget is spent."""

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from threadpoolctl import threadpool_limits

from compressor.arrays import Array, Ranks
from compressor.fidelity.linear_model import Linearise
from compressor.fidelity.losses import LossLaw
from compressor.search import result as recording
from compressor.search.acquisition.optimize import measure_again
from compressor.search.evaluation.evaluator import Looks
from compressor.search.evaluation.history import FrontPlan, Look
from compressor.search.evaluation.journal import Journal
from compressor.search.evaluation.parallel import Evaluate, Workers
from compressor.search.initial.design import Beginning, BudgetSpent
from compressor.search.initial.refinement import NUM_STEPS
from compressor.search.multiplier import Aim
from compressor.search.objective import Objective
from compressor.search.racing import Race, rivals_of
from compressor.search.records import SearchRecord
from compressor.search.settings import SearchSettings as SearchSettings
from compressor.search.space import RankSpace
from compressor.search.stopping.criterion import StopRule, StopTest
from compressor.search.surrogate.energy_prior import Energies
from compressor.search.surrogate.fitting import Posterior
from compressor.search.target.target import Target

# For another target, at most; what is believed holds nearby, and the plan is looked at that it says is the best.
LOOKS_NEARBY, LOOKS_FAR_AWAY = 2, 20


class Search:
    """One search; `run` returns the chosen ranks and the record of how they were found.

    Args:
        space, objective: what is searched and what for.
        evaluate: ranks (d,) and image indices (m,) in, per-image losses out.
        num_images: size of the pool the indices point into.
        journal: keeps every look, and answers the ones an earlier run made.
        on_look: told after each look how many there were and how the search stands.
        on_incumbent: told in the start and after each test the image passes so far and the ranks (d,) of the plan then
            best.
        workers: evaluate looks that do not depend on one another, None for one after the other.
        law: how the losses behave, None for those of the function norm.
        target: gamma is chosen to meet it; the objective's own then does not matter.
        linearise: the linear model around a plan, None where losses are all there is.
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
        on_look: Callable[[int, str], None] = lambda count, text: None,
        on_incumbent: Callable[[int, Ranks], None] = lambda image_passes, ranks: None,
        workers: Workers | None = None,
        law: LossLaw | None = None,
        target: Target | None = None,
        linearise: Linearise | None = None,
        energies: Sequence[Array] = (),
    ) -> None:
        self._space = space
        self._settings = settings
        self._on_incumbent = on_incumbent
        self._looks = Looks(
            space, objective, evaluate, num_images, settings, journal, on_look, workers or Workers(), law or LossLaw()
        )
        self._posterior = Posterior(self._looks, Energies(energies) if settings.prior_mean == "energies" else None)
        self._aim = Aim(self._looks, self._posterior, StopRule(settings, target))
        self._beginning = Beginning(self._looks, self._posterior, self._aim, linearise, on_incumbent)
        self._champion: Ranks | None = None
        self._has_only_begun = False

    @property
    def objective(self) -> Objective:
        """J, with the gamma found where there is a target."""
        return self._looks.objective

    def run(self) -> tuple[Ranks, SearchRecord]:
        """Search until the certificate holds, `max_evaluations` or `max_seconds`; at least one plan is looked at."""
        return self._start(NUM_STEPS)

    @property
    def target(self) -> Target | None:
        """What gamma is found for, as far as it is learnt."""
        return self._aim.target

    @property
    def takes_steps(self) -> bool:
        """Whether the start takes steps by a linear model."""
        return self._beginning.takes_steps

    def begin(self) -> tuple[Ranks, SearchRecord]:
        """The start without its last step, in place of `run`: where the target leads, before it is known well.

        `aim_at` takes the last step and searches.
        """
        self._has_only_begun = True
        return self._start(NUM_STEPS - 1)

    def aim_at(self, target: Target) -> tuple[Ranks, SearchRecord]:
        """After `run` or `begin`, the same for another target: all looks so far count, and time goes on.

        The certificate speaks of this target alone, and its schedule of risks begins anew. After `run` it may not be
        met within the looks that are allowed for it.
        """
        begun, self._has_only_begun, self._champion = self._has_only_begun, False, None
        if not begun:
            target = target.after(self.target)
        self._aim.rule = StopRule(self._settings, target)
        looks = LOOKS_NEARBY if target.is_near else LOOKS_FAR_AWAY
        self._looks.most = self._settings.max_evaluations if begun else self._looks.count + looks
        with threadpool_limits(limits=1, user_api="blas"):
            with suppress(BudgetSpent):
                self._beginning.move_to_target(1 if begun else 0 if target.is_near else NUM_STEPS, may_settle=begun)
            return self._go_on()

    def _start(self, num_steps: int) -> tuple[Ranks, SearchRecord]:
        self._looks.start_clock()
        with threadpool_limits(limits=1, user_api="blas"):
            with suppress(BudgetSpent):
                self._champion = self._beginning.run(num_steps)
                self._aim.is_started = True
            if self._has_only_begun:
                self._looks.most = self._looks.count
            return self._go_on()

    def _go_on(self) -> tuple[Ranks, SearchRecord]:
        looks, thinking = self._looks, self._posterior.thinking
        while True:
            with thinking():
                test = self._test()
            self._on_incumbent(looks.image_passes, test.score.incumbent if self._champion is None else self._champion)
            with thinking():
                following = self._next_look(test)
            reason = self._reason_to_stop(test, following)
            if reason or following is None:
                break
            with thinking():
                batch = self._with_fantasies(test, following)
            looks.take(batch)
        with thinking():
            test = self._rule.complete(test, np.array(looks.state.ranks), self._may_stop())
        final = self._settle(test)
        if self._champion is not None:
            self._on_incumbent(looks.image_passes, final)
        return final, self._record(test, final, reason)

    def _settle(self, test: StopTest) -> Ranks:
        """The plan (d,) that wins the race of the champion, the incumbent and others that the process holds for good.

        What the certificate says of the incumbent holds for a better plan.
        """
        looks, champion, incumbent = self._looks, self._champion, test.score.incumbent
        if champion is None or looks.spent_time():
            return incumbent if champion is None else champion
        visited = np.array(looks.state.ranks)
        plans = [champion, incumbent, *rivals_of(champion, test.score.belief, visited)]
        plans = list({ranks.tobytes(): ranks for ranks in plans}.values())
        looks.tell("comparing the best plans")
        return Race(looks, self._beginning.flattering_images).run(plans)

    # What to look at, and when to stop

    @property
    def _rule(self) -> StopRule:
        return self._aim.rule

    def _test(self) -> StopTest:
        self._aim.keep()
        return self._rule.test(self._posterior.believe(), np.array(self._looks.state.ranks), self._may_stop())

    def _next_look(self, test: StopTest, pending: Sequence[Look] = ()) -> Look | None:
        """What to look at next, beside what is under way; None where no plan has images that it has not seen."""
        landing = None if pending else self._aim.landing(test)
        if landing is not None:
            return Look("target", landing, self._looks.images_for(landing))
        candidate = self._candidate(test, pending)
        proposals = [("re-measure", test.score.incumbent)]
        if candidate is not None:
            again = measure_again(test.score, candidate, self._expected_noise(test, candidate))
            proposals.insert(int(again), ("candidate", candidate))
        for source, ranks in proposals:
            images = self._looks.images_for(ranks, pending)
            if len(images):
                return Look(source, ranks, images)
        return None

    def _candidate(self, test: StopTest, pending: Sequence[Look]) -> Ranks | None:
        """What the acquisition proposes among the plans that have images left."""
        looks = self._looks
        if len(looks.images_for(test.candidate, pending)):
            return test.candidate
        visited = np.unique([*looks.state.ranks, *(look.ranks for look in pending)], axis=0)
        spent = np.array([ranks for ranks in visited if not len(looks.images_for(ranks, pending))])
        return self._rule.elsewhere(test, spent, len(looks.state.ranks))

    def _expected_noise(self, test: StopTest, candidate: Ranks) -> Array:
        """Variances of one more look at the candidate and at the incumbent."""
        plans = np.stack([candidate, test.score.incumbent])
        return self._posterior.look_noise(test.score.belief, plans, self._looks.sampler.samples)

    def _with_fantasies(self, test: StopTest, first: Look) -> list[Look]:
        """`first` and the looks to follow it, each proposed as if those before it had found what is expected of them.

        The first few of a batch do not depend on how many follow.
        """
        left = min(self._settings.max_evaluations, self._looks.most) - self._looks.count
        count = min(self._settings.candidates, left)
        batch = [first]
        while len(batch) < count:
            belief = self._posterior.expect_look(test.score.belief, batch[-1])
            visited = np.array([*self._looks.state.ranks, *(look.ranks for look in batch)])
            test = self._rule.propose(belief, visited)
            following = self._next_look(test, batch)
            if following is None:
                break
            batch.append(following)
        return batch

    def _reason_to_stop(self, test: StopTest, following: Look | None) -> str:
        if test.met and not (following and following.source == "target"):
            return "certificate met"
        return self._looks.spent_budget() or ("" if following else "no images left that could tell more")

    def _may_stop(self) -> bool:
        """The certificate speaks only after the whole start and a look at what the model itself proposed."""
        proposed = any(source not in ("start", "refinement") for source in self._looks.state.sources)
        return self._aim.is_started and proposed

    # Record

    def believed_loss(self, ranks: Ranks) -> float:
        """The posterior mean of L of a plan (d,)."""
        return float(self._posterior.believe().function_norm(ranks[None])[0][0])

    def front(self) -> list[FrontPlan]:
        """Plans looked at that no other beats in both R and the posterior mean of L, smallest first."""
        ranks = np.unique(np.array(self._looks.state.ranks), axis=0)
        norms, deviations = self._posterior.believe().function_norm(ranks)
        ratios = self._space.ratio(ranks)
        order = np.lexsort([norms, ratios])
        lowest = np.minimum.accumulate(np.concatenate([[np.inf], norms[order][:-1]]))
        return [
            FrontPlan(ranks[index], float(ratios[index]), float(norms[index]), float(deviations[index]))
            for index, other in zip(order, lowest, strict=True)
            if norms[index] < other
        ]

    def _record(self, test: StopTest, final: Ranks, reason: str) -> SearchRecord:
        looks, belief, incumbent = self._looks, self._posterior.believe(), final[None]
        return SearchRecord(
            evaluations=looks.count,
            image_passes=looks.image_passes,
            seconds=looks.seconds,
            surrogate_seconds=self._posterior.seconds,
            stopped_because=reason,
            objective=float(belief.mean(incumbent)[0]),
            objective_sd=float(belief.sd(incumbent)[0]),
            certificate=recording.certificate_record(test, self._settings),
            calibration=recording.calibrate(belief),
            history=recording.history(looks.state, self._space, belief),
        )
