"""After every look: who is best, what to look at next, and whether a certificate lets the search stop."""

from dataclasses import dataclass, replace

import numpy as np

from compressor.arrays import Ranks
from compressor.search.acquisition.improvement import Improvement
from compressor.search.acquisition.optimize import ExcludedPoints, optimize_acquisition
from compressor.search.settings import SearchSettings
from compressor.search.stopping.joint_certificate import JointTest, certify_jointly
from compressor.search.surrogate.base import Posterior, Score
from compressor.search.target.target import SearchTarget
from compressor.streams import Stream, generator

NUM_ANCHORS = 5
TEST_EVERY = 5  # looks between the tests of Eq. (12) under acquisitions that do not compute it
JOINT_WAIT = 0.05  # of the looks so far pass before the joint test is tried again


@dataclass(frozen=True)
class StopTest:
    """The state after a look: `candidate` (d,) is what the acquisition proposes, `score` holds incumbent and delta.

    `rival` (d,) and `pointwise` are the argmax of Eq. (11) and its probability, None where the test was not due;
    `joint` is None where Eq. (12) failed already or the test was not due. `met`: the search may stop.
    """

    candidate: Ranks
    score: Score
    anchors: Ranks
    challenger: Ranks | None = None
    pointwise: float | None = None
    joint: JointTest | None = None
    met: bool = False


class StopRule:
    """The tests of one search, in order: the joint certificate's risk is shared out over them.

    The joint probability is never below the pointwise one, so that it is computed only where Eq. (12) holds already.
    """

    def __init__(self, settings: SearchSettings, target: SearchTarget | None = None) -> None:
        self.target = target
        self._settings = settings
        self._num_joint = 0
        self._next_test = 0
        self._next_joint = 0

    def test(self, posterior: Posterior, visited: Ranks, may_stop: bool) -> StopTest:
        """Test after looks at the plans `visited` (n, d); `may_stop` is false while the start is not complete."""
        test = self._incumbent(posterior, visited)
        count, kind = len(visited), self._settings.acquisition
        if kind == "pac" or count >= self._next_test:
            self._next_test = count + TEST_EVERY
            test = self._test_pointwise(test, count)
        if kind != "pac":
            test = self._improve(test, count)
        if not may_stop or test.pointwise is None or test.pointwise > self._settings.risk:
            return test
        if self._settings.certificate == "pointwise":
            return replace(test, met=True)
        return self._test_jointly(test, count) if count >= self._next_joint else test

    def rank(self, posterior: Posterior, visited: Ranks) -> Ranks:
        """The plans `visited` (n, d), best first: by the posterior mean of J, or as the target prefers them."""
        values = posterior.mean(visited) if self.target is None else self.target.preference(posterior, visited)
        return visited[np.argsort(-values, kind="stable")]

    def propose(self, posterior: Posterior, visited: Ranks) -> StopTest:
        """The next candidate alone, without any test of the certificates."""
        test = self._incumbent(posterior, visited)
        return (self._test_pointwise if self._settings.acquisition == "pac" else self._improve)(test, len(visited))

    def elsewhere(self, test: StopTest, spent: Ranks, count: int) -> Ranks | None:
        """What the acquisition proposes after `count` looks, but for the plans `spent` (k, d); None if nothing."""
        kind, space = self._settings.acquisition, test.score.posterior.space
        criterion = test.score if kind == "pac" else Improvement(test.score, kind)
        plan, value = optimize_acquisition(
            ExcludedPoints(criterion, spent), space, test.anchors, self._rng(Stream.ACQUISITION, count)
        )
        return plan if np.isfinite(value) else None

    def complete(self, test: StopTest, visited: Ranks, may_stop: bool) -> StopTest:
        """The last test with both figures, for the record."""
        count = len(visited)
        if test.pointwise is None:
            test = replace(self._test_pointwise(test, count), candidate=test.candidate)
        if test.joint is None or test.joint.upper == 1.0:  # a pilot or a test ended early bounds nothing
            joint = self._certify(test, count, in_full=True)
            test = replace(test, joint=joint, met=test.met or self._joint_is_enough(test, joint, may_stop))
        return test

    def _joint_is_enough(self, test: StopTest, joint: JointTest, may_stop: bool) -> bool:
        return may_stop and self._settings.certificate == "joint" and joint.met

    def _incumbent(self, posterior: Posterior, visited: Ranks) -> StopTest:
        best = self.rank(posterior, visited)
        delta = self._settings.delta
        if self._settings.delta_is_relative:
            delta *= abs(float(posterior.mean(best[:1])[0]))
        return StopTest(best[0], posterior.score(best[0], delta), best[:NUM_ANCHORS])

    def _test_pointwise(self, test: StopTest, count: int) -> StopTest:
        space = test.score.posterior.space
        challenger, value = optimize_acquisition(test.score, space, test.anchors, self._rng(Stream.ACQUISITION, count))
        return replace(test, candidate=challenger, challenger=challenger, pointwise=float(np.exp(value)))

    def _improve(self, test: StopTest, count: int) -> StopTest:
        """The test with the candidate that another acquisition than Eq. (11) proposes."""
        improvement, space = Improvement(test.score, self._settings.acquisition), test.score.posterior.space
        proposed, _ = optimize_acquisition(improvement, space, test.anchors, self._rng(Stream.ACQUISITION, count))
        return replace(test, candidate=proposed)

    def _test_jointly(self, test: StopTest, count: int) -> StopTest:
        joint = self._certify(test, count)
        self._num_joint += joint.confidence > 0
        self._next_joint = count + int(np.ceil(JOINT_WAIT * count))
        return replace(test, joint=joint, met=joint.met)

    def _certify(self, test: StopTest, count: int, in_full: bool = False) -> JointTest:
        assert test.challenger is not None
        anchors = np.concatenate([test.challenger[None], test.anchors])
        rng = self._rng(Stream.CERTIFICATE, count)
        return certify_jointly(test.score, anchors, self._settings.risk, self._num_joint + 1, rng, in_full)

    def _rng(self, stream: Stream, count: int) -> np.random.Generator:
        return generator(self._settings.seed, stream, count)
