"""The search loop: look, fit, propose, test, until the certificate holds or the budget is spent."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from threadpoolctl import threadpool_limits

from compressor.fidelity import ImageSampler, Losses, NoiseModel
from compressor.objective import Objective
from compressor.records import CalibrationRecord, CertificateRecord, EvaluationRecord, JointRecord, SearchRecord
from compressor.search import gp, start
from compressor.search.acquisition import measure_again
from compressor.search.belief import Belief, LogSurrogate, PlainSurrogate, Surrogate
from compressor.search.journal import Journal
from compressor.search.settings import SearchSettings as SearchSettings
from compressor.search.space import Ranks, RankSpace
from compressor.search.stopping import StopRule, StopTest

Evaluate = Callable[[Ranks, np.ndarray], Losses]
REFIT_GROWTH = 1.1  # hyperparameters are fitted again when there are this many times as many looks
FRESH_GROWTH = 1.5  # likewise from fixed first guesses beside the last fit
START_STREAM = 3  # keeps the random streams of one seed apart


class BudgetSpent(Exception):
    """The budget ended before the start was complete."""


@dataclass
class SearchState:
    """All looks so far, in order; `ranks` (n, d) and their losses on the images seen."""

    ranks: list[Ranks] = field(default_factory=list)
    losses: list[Losses] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


class Search:
    """One search; `run` returns the chosen ranks and the record of how they were found.

    Args:
        space, objective: what is searched and what for.
        evaluate: ranks (d,) and image indices (m,) in, per-image losses out.
        num_images: size of the pool the indices point into.
        journal: keeps every look, and answers the ones an earlier run made.
        on_look: told after each look how many there were and how the search stands.
        on_incumbent: told after each test the image passes so far and the ranks (d,) of the plan then best.
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
    ) -> None:
        self._space = space
        self._objective = objective
        self._evaluate = evaluate
        self._num_images = num_images
        self._settings = settings
        self._journal = journal
        self._on_look = on_look
        self._on_incumbent = on_incumbent
        self._sampler = ImageSampler(num_images, settings.samples, settings.seed)
        self._state = SearchState()
        self._noise = NoiseModel(num_images)
        self._image_passes = 0
        self._num_probes = 0
        self._num_glances = 0
        self._started = False
        self._began = time.perf_counter()
        self._surrogate_seconds = 0.0
        self._rule = StopRule(settings)
        self._surrogate: Surrogate = PlainSurrogate(space, objective)
        self._hyper: gp.Hyperparameters | None = None
        self._fitted_at = 0
        self._fitted_afresh_at = 0

    def run(self) -> tuple[Ranks, SearchRecord]:
        """Search until the certificate holds, `max_evaluations` or `max_seconds`; at least one plan is looked at."""
        self._began = time.perf_counter()
        with threadpool_limits(limits=1, user_api="blas"):
            with suppress(BudgetSpent):
                self._start()
                self._started = True
            while True:
                test = self._test()
                self._on_incumbent(self._image_passes, test.score.incumbent)
                following = self._next_look(test)
                reason = self._reason_to_stop(test, following)
                if reason or following is None:
                    break
                self._look(*following)
            record = self._record(self._complete(test), reason)
        return test.score.incumbent, record

    # Looks

    def _first_look(self, source: str, ranks: Ranks, images: np.ndarray | None = None) -> float:
        """Evaluate a plan of the start on these images, or on the next ones; returns the observed J."""
        if self._spent_budget():
            raise BudgetSpent
        return self._look(source, ranks, self._sampler.draw(len(self._state.ranks)) if images is None else images)

    def _look(self, source: str, ranks: Ranks, images: np.ndarray) -> float:
        """Evaluate a plan on the images with these indices; returns the observed J."""
        losses = self._observe(source, ranks, images)
        self._state.ranks.append(ranks)
        self._state.losses.append(losses)
        self._state.norms.append(losses.mean)
        self._state.sources.append(source)
        self._noise.add(losses)
        observed = self._observed_objective(ranks, losses)
        self._on_look(self._num_evaluations, f"{source}: J {observed:.4f}, ratio {self._ratio(ranks):.3f}")
        return observed

    def _probe(self, ranks: Ranks) -> Losses:
        images = np.arange(min(start.PROBE_IMAGES, self._num_images))
        losses = self._observe("probe", ranks, images)
        self._num_probes += 1
        self._on_look(0, f"measuring layers one at a time, {self._num_probes} looks so far")
        return losses

    def _observe(self, source: str, ranks: Ranks, indices: np.ndarray) -> Losses:
        self._image_passes += len(indices)
        known = self._journal.recall(ranks, indices)
        if known is not None:
            return known
        losses = self._evaluate(ranks, indices)
        observed = self._observed_objective(ranks, losses)
        self._journal.append(source, ranks, losses, self._ratio(ranks), observed)
        return losses

    def _ratio(self, ranks: Ranks) -> float:
        return float(self._space.ratio(ranks[None])[0])

    def _observed_objective(self, ranks: Ranks, losses: Losses) -> float:
        return float(self._objective.value(np.array(losses.mean), np.array(self._ratio(ranks))))

    # Start

    def _start(self) -> None:
        space = self._space
        if self._settings.start == "random":
            self._surrogate = self._choose_surrogate(None)
            rng = np.random.default_rng([self._settings.seed, START_STREAM])
            for ranks in space.sample(2 * space.num_dims + 2, rng):
                self._first_look("start", ranks)
            return
        sensitivities = start.probe_sensitivities(space, self._probe)
        self._surrogate = self._choose_surrogate(sensitivities)
        best = start.look_along_curve(space, self._objective, sensitivities, self._first_look)
        saturation = max(start.LOSS_FLOOR, *self._state.norms)
        self._surrogate = self._choose_surrogate(sensitivities, saturation)
        for _ in range(start.NUM_REALLOCATIONS):
            best = self._reallocate(best)

    def _reallocate(self, plan: Ranks) -> Ranks:
        """`start.reallocate` on images that the plan has not been looked at with, if there are any left."""
        images = self._images_for(plan)
        if not len(images):
            return plan

        def look(ranks: Ranks, some: np.ndarray = images) -> Losses:
            self._first_look("start", ranks, some)
            return self._state.losses[-1]

        def glance(ranks: Ranks) -> Losses:
            losses = look(ranks, images[: start.CONTEXT_IMAGES])
            self._num_glances += 1
            return losses

        return start.reallocate(self._space, self._objective, plan, look, glance)

    def _choose_surrogate(self, sensitivities: list[np.ndarray] | None, saturation: float = np.inf) -> Surrogate:
        if self._settings.surrogate == "plain":
            return PlainSurrogate(self._space, self._objective)
        if sensitivities is None:
            return LogSurrogate(self._space, self._objective, None)
        return LogSurrogate(self._space, self._objective, start.sum_of(sensitivities), saturation)

    # Surrogate and acquisition

    def _believe(self) -> Belief:
        state = self._state
        ranks = np.array(state.ranks)
        thetas = self._space.encode(ranks)
        norms = np.array(state.norms)
        targets = self._surrogate.targets(ranks, norms, self._noise.covariance(norms))
        if self._hyper is None or len(norms) >= REFIT_GROWTH * self._fitted_at:
            afresh = len(norms) >= FRESH_GROWTH * self._fitted_afresh_at
            self._hyper = gp.fit(thetas, targets.values, targets.noise, start=self._hyper, restarts=2 if afresh else 0)
            self._fitted_at = len(norms)
            self._fitted_afresh_at = len(norms) if afresh else self._fitted_afresh_at
        return self._surrogate.belief(gp.GaussianProcess(thetas, targets.values, targets.noise, self._hyper))

    def _test(self) -> StopTest:
        began = time.perf_counter()
        test = self._rule.test(self._believe(), np.array(self._state.ranks), self._may_stop())
        self._surrogate_seconds += time.perf_counter() - began
        return test

    def _complete(self, test: StopTest) -> StopTest:
        began = time.perf_counter()
        complete = self._rule.complete(test, np.array(self._state.ranks), self._may_stop())
        self._surrogate_seconds += time.perf_counter() - began
        return complete

    def _next_look(self, test: StopTest) -> tuple[str, Ranks, np.ndarray] | None:
        """What to look at next and on which images; None where neither plan has images left that it has not seen."""
        looks = [("candidate", test.candidate), ("re-measure", test.score.incumbent)]
        if measure_again(test.score, test.candidate, self._expected_noise(test)):
            looks.reverse()
        for source, ranks in looks:
            images = self._images_for(ranks)
            if len(images):
                return source, ranks, images
        return None

    def _images_for(self, ranks: Ranks) -> np.ndarray:
        """The next images of the pool, or for a plan looked at before, images that it has not seen."""
        number = len(self._state.ranks)
        again = (np.array(self._state.ranks).reshape(number, -1) == ranks).all(1).nonzero()[0]
        seen = [self._state.losses[index].indices for index in again]
        return self._sampler.draw_unseen(number, np.concatenate(seen)) if seen else self._sampler.draw(number)

    def _expected_noise(self, test: StopTest) -> np.ndarray:
        """Variances of one more look at the candidate and at the incumbent."""
        expected, _ = test.score.belief.function_norm(np.stack([test.candidate, test.score.incumbent]))
        relative_variance = self._noise.relative_variance / self._sampler.samples
        return self._surrogate.look_noise(relative_variance, np.maximum(expected, min(self._state.norms)))

    def _reason_to_stop(self, test: StopTest, following: tuple[str, Ranks, np.ndarray] | None) -> str:
        if test.met:
            return "certificate met"
        return self._spent_budget() or ("" if following else "no images left that could tell more")

    def _may_stop(self) -> bool:
        """The certificate speaks only after the whole start and a look at what the model itself proposed."""
        return self._started and any(source != "start" for source in self._state.sources)

    def _spent_budget(self) -> str:
        """Which budget is spent, in words; empty while there is some left."""
        settings, looks = self._settings, self._num_evaluations
        if looks >= settings.max_evaluations:
            return f"{settings.max_evaluations} evaluations spent"
        if looks and settings.max_seconds is not None and self._seconds() >= settings.max_seconds:
            return f"{settings.max_seconds:g} seconds spent"
        return ""

    @property
    def _num_evaluations(self) -> int:
        """Looks at whole plans, without those at plans that differ in one layer from the start's best."""
        return len(self._state.ranks) - self._num_glances

    def _seconds(self) -> float:
        return time.perf_counter() - self._began

    # Record

    def _record(self, test: StopTest, reason: str) -> SearchRecord:
        belief, incumbent = test.score.belief, test.score.incumbent[None]
        return SearchRecord(
            evaluations=self._num_evaluations,
            image_passes=self._image_passes,
            seconds=self._seconds(),
            surrogate_seconds=self._surrogate_seconds,
            stopped_because=reason,
            objective=float(belief.mean(incumbent)[0]),
            objective_sd=float(belief.sd(incumbent)[0]),
            certificate=self._certificate(test),
            calibration=_calibrate(belief),
            history=[self._history_row(index) for index in range(len(self._state.ranks))],
        )

    def _certificate(self, test: StopTest) -> CertificateRecord:
        assert test.pointwise is not None
        assert test.joint is not None
        joint = test.joint
        return CertificateRecord(
            pointwise=test.pointwise,
            joint=JointRecord(
                failures=joint.failures, paths=joint.paths, upper=joint.upper, confidence=joint.confidence
            ),
            delta=test.score.delta,
            epsilon=self._settings.risk,
            asked=self._settings.certificate,
            met=test.met,
        )

    def _history_row(self, index: int) -> EvaluationRecord:
        ranks, losses = self._state.ranks[index], self._state.losses[index]
        return EvaluationRecord(
            index=index,
            source=self._state.sources[index],
            ranks=[
                None if rank == dense else rank for rank, dense in zip(ranks.tolist(), self._space.caps, strict=True)
            ],
            function_norm=losses.mean,
            variance=losses.variance,
            ratio=self._ratio(ranks),
            objective=self._observed_objective(ranks, losses),
            images=len(losses.indices),
        )


def _calibrate(belief: Belief) -> CalibrationRecord:
    """Leave-one-out check of the process on its own targets."""
    means, deviations = belief.process.leave_one_out()
    z = (belief.process.targets - means) / deviations
    return CalibrationRecord(
        z_rms=float(np.sqrt((z**2).mean())), within_two_sd=float((np.abs(z) <= 2.0).mean()), looks=len(z)
    )
