"""The stopping rule: after every evaluation, the incumbent, the next candidate and the tests of the certificates."""

from dataclasses import dataclass, replace

import numpy as np

from compressor.arrays import Ranks
from compressor.search.acquisition.base import AcquisitionFunction
from compressor.search.acquisition.optimize import ExcludedPoints, optimize_acquisition
from compressor.search.acquisition.registry import PAC, make_acquisition
from compressor.search.settings import SearchSettings
from compressor.search.stopping.joint_certificate import Failure, JointTest, Schedule, certify_jointly
from compressor.search.surrogate.posterior import Posterior
from compressor.search.target.target import Measure
from compressor.streams import Stream, generator

NUM_ANCHORS = 5
TEST_EVERY = 5  # evaluations between tests of Eq. (12) under acquisition functions that do not compute it
# Evaluations without a gain of delta in J after which a search from measured sensitivities ends: in many dimensions the
# surrogate may go on to expect what it does not find. Sooner where Eq. (7) is above a half all the while.
PATIENCE, PATIENCE_IF_EXPECTED = 25, 12
JOINT_WAIT = 0.05  # share of the evaluations so far that must be added before the joint test is tried again


@dataclass(frozen=True)
class StopTest:
    """The state of the search after an evaluation.

    Attributes:
        posterior: over J.
        incumbent: the best plan (d,) evaluated so far.
        delta: differences of J up to this do not matter.
        limit: R of other plans is at most this; None where all are compared.
        scale: a difference of J that matters, where delta is one of R.
        candidate: the plan (d,) that the acquisition function proposes.
        anchors: the best plans (k, d) evaluated so far.
        challenger: argmax (d,) of Eq. (11), the plan most probably better by more than delta; None where the pointwise
            test was not due.
        pointwise: its probability, the left side of Eq. (12); None likewise.
        joint: None where Eq. (12) fails already or the test was not due.
        met: whether the search may stop.
        is_refuted: whether it should, since evaluations do not bear out the posterior.
    """

    posterior: Posterior
    incumbent: Ranks
    delta: float
    candidate: Ranks
    anchors: Ranks
    challenger: Ranks | None = None
    pointwise: float | None = None
    joint: JointTest | None = None
    met: bool = False
    limit: float | None = None
    scale: float | None = None
    is_refuted: bool = False


def best_first(posterior: Posterior, visited: Ranks) -> Ranks:
    """The plans `visited` (n, d), best first: by the posterior mean of J, those beyond a limit of R last."""
    ratios = posterior.space.ratio(visited)
    excess = np.where(posterior.objective.allows(ratios), 0.0, ratios)
    return visited[np.lexsort([-posterior.mean(visited), excess])]


class StopRule:
    """The tests of one search in order; the joint certificate shares its failure probability out over them.

    The joint probability is at least the pointwise one, so it is estimated only where Eq. (12) holds.

    Args:
        settings: acquisition function, certificate, delta and epsilon.
        measure: what a target limits, if there is one: a limit of L is reported by differences of R.
        floor: loss taken for that of the original itself, to which differences of L are relative, too.
    """

    def __init__(self, settings: SearchSettings, measure: Measure | None = None, floor: float = 0.0) -> None:
        self._measure = measure
        self._floor = floor
        self._settings = settings
        self._num_joint = 0
        self._gained_at, self._unexpected_at, self._best_value = 0, 0, -np.inf
        self._next_test = 0
        self._next_joint = 0

    def test(self, posterior: Posterior, visited: Ranks, may_stop: bool) -> StopTest:
        """The test after an evaluation.

        Args:
            posterior: over J.
            visited: the plans evaluated so far (n, d).
            may_stop: whether the initial design is complete.
        """
        test = self._incumbent(posterior, visited)
        count, is_pac = len(visited), self._settings.acquisition == PAC
        if is_pac or count >= self._next_test:
            self._next_test = count + TEST_EVERY
            test = self._test_pointwise(test, count)
        if not is_pac or self._to_propose(test) is not test:
            test = self._propose(test, count)
        if test.pointwise is not None and self._settings.start == "sensitivity":
            test = replace(test, is_refuted=may_stop and self._is_refuted(test, count))
        keeps_limit = bool(posterior.objective.allows(posterior.space.ratio(test.incumbent[None]))[0])
        if (
            not (may_stop and keeps_limit)
            or test.pointwise is None
            or test.pointwise > self._settings.failure_probability
        ):
            return test
        if self._settings.certificate == "pointwise":
            return replace(test, met=True)
        return self._test_jointly(test, count) if count >= self._next_joint else test

    def _is_refuted(self, test: StopTest, count: int) -> bool:
        """Whether the last PATIENCE evaluations gained less than delta, or fewer, all expected to gain more."""
        value = float(test.posterior.mean(test.incumbent[None])[0])
        gain = test.delta if test.scale is None else test.scale
        assert test.pointwise is not None
        if value > self._best_value + gain:
            self._gained_at, self._unexpected_at, self._best_value = count, count, value
        if test.pointwise <= 0.5:
            self._unexpected_at = count
        return count - self._gained_at >= PATIENCE or count - self._unexpected_at >= PATIENCE_IF_EXPECTED

    def propose(self, posterior: Posterior, visited: Ranks) -> StopTest:
        """The next candidate after the evaluations of `visited` (n, d), without testing the joint certificate."""
        test = self._incumbent(posterior, visited)
        is_same = self._settings.acquisition == PAC and self._to_propose(test) is test
        return (self._test_pointwise if is_same else self._propose)(test, len(visited))

    def propose_without(self, test: StopTest, excluded: Ranks, count: int) -> Ranks | None:
        """The next candidate (d,) that is none of some plans; None if there is none.

        Args:
            test: the last one.
            excluded: the plans (k, d).
            count: evaluations so far.
        """
        test = self._to_propose(test)
        plan, value = self._optimize(test, ExcludedPoints(self._acquisition(test), excluded), count)
        return plan if np.isfinite(value) else None

    def complete(self, test: StopTest, visited: Ranks, may_stop: bool) -> StopTest:
        """The last test with both probabilities, for the record.

        Args:
            test: the last one.
            visited: the plans evaluated so far (n, d).
            may_stop: whether the initial design is complete.
        """
        count = len(visited)
        if test.pointwise is None:
            test = replace(self._test_pointwise(test, count), candidate=test.candidate)
        if test.joint is None or test.joint.upper == 1.0:  # a pilot or a test that ended early bounds nothing
            joint = self._certify(test, count, in_full=True)
            suffices = may_stop and self._settings.certificate == "joint" and joint.met
            test = replace(test, joint=joint, met=test.met or suffices)
        return test

    def certify(self, test: StopTest, plan: Ranks, visited: Ranks, may_stop: bool) -> StopTest:
        """The last test with both probabilities, of a plan that is delivered though another may be a little better.

        Args:
            test: the last one.
            plan: the plan (d,), in the incumbent's place.
            visited: the plans evaluated so far (n, d).
            may_stop: whether the initial design is complete.
        """
        best = np.concatenate([plan[None], best_first(test.posterior, visited)])
        test = self.complete(self._against(test.posterior, best), visited, may_stop)
        assert test.pointwise is not None
        holds = self._settings.certificate == "pointwise" and test.pointwise <= self._settings.failure_probability
        return replace(test, met=test.met or (may_stop and holds))

    def _incumbent(self, posterior: Posterior, visited: Ranks) -> StopTest:
        """The best plan, and by how much another must be better: in J, or where L is limited in R."""
        return self._against(posterior, best_first(posterior, visited))

    def _against(self, posterior: Posterior, best: Ranks) -> StopTest:
        """The test of the first of some plans (n, d), best first."""
        settings = self._settings
        ratio = float(posterior.space.ratio(best[:1])[0])
        of_objective, of_ratio = abs(float(posterior.mean(best[:1])[0])), ratio
        if self._measure is not None:
            of_objective += posterior.objective.gamma * self._floor
        if not settings.delta_is_relative:
            of_objective = of_ratio = 1.0
        test = StopTest(posterior, best[0], settings.delta * of_objective, best[0], best[:NUM_ANCHORS])
        if self._measure in (None, "ratio"):
            return replace(test, limit=posterior.objective.limit)
        return replace(test, delta=0.0, limit=ratio - settings.delta * of_ratio, scale=test.delta)

    def _acquisition(self, test: StopTest, name: str | None = None) -> AcquisitionFunction:
        """The acquisition function of this name, by default that of the settings."""
        return make_acquisition(name or self._settings.acquisition, test.posterior, test.incumbent, test.delta)

    def _optimize(self, test: StopTest, acquisition: AcquisitionFunction, count: int) -> tuple[Ranks, float]:
        """The best plan within the test's limit, and its value; the incumbent where nothing keeps to it."""
        rng = self._rng(Stream.ACQUISITION, count)
        plan, value = optimize_acquisition(acquisition, test.posterior.space, test.anchors, rng, test.limit)
        return (plan if np.isfinite(value) else test.incumbent), value

    def _test_pointwise(self, test: StopTest, count: int) -> StopTest:
        challenger, value = self._optimize(test, self._acquisition(test, PAC), count)
        return replace(test, candidate=challenger, challenger=challenger, pointwise=float(np.exp(value)))

    def _propose(self, test: StopTest, count: int) -> StopTest:
        """The test with the candidate of the settings' acquisition function."""
        asked = self._to_propose(test)
        proposed, _ = self._optimize(asked, self._acquisition(asked), count)
        return replace(test, candidate=proposed)

    def _to_propose(self, test: StopTest) -> StopTest:
        """The test by which candidates are proposed: another one where L is limited and R is left unused.

        Smaller plans than the incumbent are then no way to a lower L.
        """
        limit, ratio = test.posterior.objective.limit, float(test.posterior.space.ratio(test.incumbent[None])[0])
        if test.scale is None or test.limit is None or limit is None or limit - ratio <= ratio - test.limit:
            return test
        return replace(test, delta=test.scale, limit=limit)

    def _test_jointly(self, test: StopTest, count: int) -> StopTest:
        joint = self._certify(test, count)
        self._num_joint += joint.confidence > 0
        self._next_joint = count + int(np.ceil(JOINT_WAIT * count))
        return replace(test, joint=joint, met=joint.met)

    def _certify(self, test: StopTest, count: int, in_full: bool = False) -> JointTest:
        assert test.challenger is not None
        anchors = np.concatenate([test.challenger[None], test.anchors])
        schedule = Schedule.of(self._settings.failure_probability, self._num_joint + 1)
        rng = self._rng(Stream.CERTIFICATE, count)
        failure = Failure(test.posterior, test.incumbent, test.delta, test.limit, test.scale)
        return certify_jointly(failure, anchors, schedule, rng, in_full)

    def _rng(self, stream: Stream, count: int) -> np.random.Generator:
        return generator(self._settings.seed, stream, count)
