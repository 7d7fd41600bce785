"""The smallest network that loses at most so much, found by building and measuring a few.

A drop is known only of a network that was built and recalibrated, and with labels it is noisy: of 800 images a point of
top-1 is eight. All networks measured are taken together, the drop as a power of L, so that none is chosen because it
was lucky. Each time the search goes on with every look it has made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from compressor.fidelity.accuracy_drop import DEVIATIONS, DropCurve, DropGauge, Measurement
from compressor.fidelity.function_norm import FunctionNorm
from compressor.pipeline.settings import Wanted
from compressor.pipeline.stages.build import realise
from compressor.pipeline.stages.search_ranks import RankSearch
from compressor.pipeline.state import Choice, Job, Realised
from compressor.search.records import TargetRecord, TargetStep
from compressor.search.target.accuracy_drop import drop_target
from compressor.search.target.target import Target

MAX_STEPS = 2
MOST_STEPS = 7  # while nothing keeps to the wish
GOOD_SHARE = 0.9  # a step that keeps to the wish and uses this share of it is good enough
AIM = 0.95  # of what is asked for
GAIN = 0.5  # of L by recalibration, a first guess
LARGEST_MOVE = 4.0  # of the limit of L, in one step
LARGEST_LOSS = 1e30
# Decisions change where the original's two best outputs lie close together, beside what two outputs move apart by at
# this L, the root of 2 L / C: in six ResNet-18 of L from 0.04 to 0.19 none changed beyond 7.2 of that. Those within are
# looked at in full, up to the closest 30 % (larger drops are larger beside their noise), of the others a few, which
# count for all.


@dataclass(frozen=True)
class _Try:
    """A realised plan with what it was found to lose."""

    realised: Realised
    measured: Measurement


def reach_drop(job: Job, search: RankSearch, norm: FunctionNorm, wanted: Wanted) -> Realised:
    """The smallest network found whose drop keeps to the wish; the job has images to decide over that, beside the
    search's, whose function norm is `norm`."""
    assert job.deciding is not None
    deciding = FunctionNorm(job.teacher, job.deciding, job.device)
    gauge = DropGauge([norm, deciding])
    first = _first_target(job, wanted, gauge)
    return _Drop(job, search, norm, wanted, gauge.thrifty(first.most, job.settings.search.seed)).reach(first)


def _first_target(job: Job, wanted: Wanted, gauge: DropGauge) -> Target:
    """The limit of L by what is known of networks at large."""
    gain = GAIN if job.settings.recalibrate and len(job.calibration) else 1.0
    asked = AIM * wanted.value
    if gauge.is_labelled:
        return drop_target(asked, gauge.energy, gauge.num_images, DEVIATIONS, gain)
    return Target("loss", asked / 100.0 * gauge.energy / gain)


class _Drop:
    """A wish about what is lost."""

    def __init__(self, job: Job, search: RankSearch, norm: FunctionNorm, wanted: Wanted, gauge: DropGauge) -> None:
        self._job = job
        self._search = search
        self._norm = norm
        self._asked = wanted.value
        self._gauge = gauge

    def reach(self, target: Target) -> Realised:
        """The result, the first limit of L being `target`."""
        asked, probes, tries = self._asked, list[_Try](), list[_Try]()
        begun = self._search.begin(target)
        if begun is not None:
            probes.append(self._build(begun))
            target = self._between(self._search.target, self._next_target(probes, self._learn(probes)))
        choice = self._search.run(target)
        while choice.ranks not in [one.realised.choice.ranks for one in tries]:
            tries.append(self._taken_from(probes, choice) or self._build(choice))
            curve = self._learn([*probes, *tries])
            best = max(tries, key=lambda one: self._worth(one, curve))
            at_most = curve.at_most(best.measured.loss)
            if len(tries) >= (MAX_STEPS if at_most <= asked else MOST_STEPS) or GOOD_SHARE * asked <= at_most <= asked:
                break
            choice = self._search.run(self._next_target([*probes, *tries], curve))
        return replace(best.realised, target=self._record([*probes, *tries], best, curve))

    def _taken_from(self, probes: list[_Try], choice: Choice) -> _Try | None:
        """What was built and measured before the search came to the same plan; no longer among `probes`."""
        same = next((one for one in probes if one.realised.choice.ranks == choice.ranks), None)
        if same is None:
            return None
        probes.remove(same)
        return replace(same, realised=replace(same.realised, choice=choice))

    def _learn(self, measured: Sequence[_Try]) -> DropCurve:
        """The curve through all that was measured; the last is told to whoever watches."""
        curve = DropCurve([one.measured for one in measured], self._gauge.is_labelled)
        self._say(measured[-1], curve)
        return curve

    def _build(self, choice: Choice) -> _Try:
        realised = realise(self._job, choice, self._norm)
        with self._job.progress.stage(
            f"measuring the drop on {self._gauge.image_passes} of {self._gauge.num_images} images"
        ):
            return _Try(realised, self._gauge.measure(realised.network))

    def _next_target(self, tries: Sequence[_Try], curve: DropCurve) -> Target:
        """The limit of L to search with, from the network nearest to what is wanted of one that is built."""
        wanted = min(curve.limit(AIM * self._asked), LARGEST_LOSS)
        nearest = min(tries, key=lambda one: abs(np.log(wanted / one.measured.loss)))
        move = np.clip(wanted / nearest.measured.loss, 1 / LARGEST_MOVE, LARGEST_MOVE)
        return Target("loss", float(nearest.realised.choice.believed_loss * move))

    def _between(self, learnt: Target | None, measured: Target) -> Target:
        """With labels, half way between what the looks' decisions say and what one network does: either is as noisy,
        and what the search does for a wrong limit is lost."""
        if learnt is None or not self._gauge.is_labelled:
            return measured
        return replace(measured, most=float((learnt.most * measured.most) ** 0.5))

    def _worth(self, one: _Try, curve: DropCurve) -> tuple[bool, float]:
        """Those that keep to the wish first, the smaller the better; then those that nearly do."""
        at_most = curve.at_most(one.measured.loss)
        kept = at_most <= self._asked
        return kept, -(one.realised.choice.ratio or 0.0) if kept else -at_most

    def _record(self, tries: Sequence[_Try], best: _Try, curve: DropCurve) -> TargetRecord:
        steps = [
            TargetStep(
                gamma=one.realised.choice.gamma,
                ratio=one.realised.choice.ratio or 0.0,
                measured=one.measured.drop,
                at_most=curve.at_most(one.measured.loss),
            )
            for one in tries
        ]
        at_most = curve.at_most(best.measured.loss)
        return TargetRecord(
            wish="drop",
            asked=self._asked,
            reached=best.measured.drop,
            at_most=at_most,
            met=at_most <= self._asked,
            labelled=self._gauge.is_labelled,
            images=self._gauge.num_images,
            image_passes=len(tries) * self._gauge.image_passes,
            steps=steps,
        )

    def _say(self, one: _Try, curve: DropCurve) -> None:
        what = "points of top-1" if self._gauge.is_labelled else "% of the output energy"
        self._job.progress.say(
            f"at ratio {one.realised.choice.ratio:.3f} the network loses {one.measured.drop:.2f} {what}, at most "
            f"{curve.at_most(one.measured.loss):.2f}"
        )
