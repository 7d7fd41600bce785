"""The smallest network that loses at most so much, found by building and measuring a few.

The drop is known only of a network that was built and reconstructed, and with labels it is noisy: of 800 images a point
of top-1 is eight. All networks measured are taken together, the drop as a power of L, so that none is chosen by luck.
Each time the search goes on with every evaluation it has made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from compressor.fidelity.accuracy_drop import DEVIATIONS, DropCurve, DropEstimator, Measurement
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.structured.detection import detector_of
from compressor.fidelity.structured.drop import AveragePrecisionDrop, MeanIoUDrop
from compressor.fidelity.structured.precision import can_be_measured
from compressor.pipeline.context import Context
from compressor.pipeline.settings import Target
from compressor.pipeline.stage import Stage
from compressor.pipeline.stages.build import build
from compressor.pipeline.stages.search_ranks import RankSearch
from compressor.pipeline.state import BuiltNetwork, SearchResult, State, needed
from compressor.search.records import TargetRecord, TargetStep
from compressor.search.target.accuracy_drop import drop_target
from compressor.search.target.target import SearchTarget

MAX_STEPS = 2
MAX_STEPS_UNTIL_MET = 7  # while nothing meets the target
GOOD_SHARE = 0.9  # a step that meets the target and uses this share of it is good enough
SHARE_OF_DROP = 0.95  # of what is asked for
GAIN = 0.5  # of L by reconstruction, a first guess
MAX_MOVE = 4.0  # of the limit of L, in one step
MAX_LOSS = 1e30


@dataclass(frozen=True)
class _Try:
    """A built plan with what it was measured to lose."""

    built: BuiltNetwork
    measured: Measurement


@dataclass(frozen=True)
class MeetDrop(Stage):
    """Searches for the smallest network whose drop is at most the target, and builds it.

    Fills in what `SearchAndBuild` does, and `target`. The drop is measured on the search's images and on the
    context's validation images.
    """

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        target = needed(context.settings.target, "a target")
        images = needed(context.validation, "validation images")
        with RankSearch(context, state) as search:
            estimator = _make_estimator(context, [search.norm, FunctionNorm(context.original, images, context.device)])
            first = _first_target(context, target, estimator)
            sampled = estimator.importance_sampled(first.upper, context.settings.search.seed)
            return state.with_built(_Drop(context, search, target.value, sampled).reach(first))


def _make_estimator(context: Context, norms: Sequence[FunctionNorm]) -> DropEstimator:
    """Of mean IoU where all images have masks, of average precision where they have boxes and it can be measured, of
    top-1 where they have labels, else of the function norm."""
    output, detector = context.class_map, detector_of(context.original)
    if output is not None and all(norm.images.masks is not None for norm in norms):
        return MeanIoUDrop(norms, context.original, output, context.device)
    if detector is not None and can_be_measured() and all(norm.images.boxes is not None for norm in norms):
        return AveragePrecisionDrop(norms, detector, context.device)
    return DropEstimator(norms)


def _first_target(context: Context, wanted: Target, estimator: DropEstimator) -> SearchTarget:
    """The limit of L by what is known of networks at large."""
    gain = GAIN if context.settings.recalibrate and len(context.calibration) else 1.0
    asked = SHARE_OF_DROP * wanted.value
    if estimator.is_labelled and estimator.of != "mean AP":
        target = drop_target(asked, estimator.energy, estimator.num_images, DEVIATIONS, gain)
        return target if estimator.of == "top-1" else SearchTarget("loss", target.upper)  # evaluations tell no more
    return SearchTarget("loss", asked / 100.0 * estimator.energy / gain)


class _Drop:
    """A target of drop: at most `asked`."""

    def __init__(self, context: Context, search: RankSearch, asked: float, estimator: DropEstimator) -> None:
        self._context = context
        self._search = search
        self._asked = asked
        self._estimator = estimator

    def reach(self, target: SearchTarget) -> BuiltNetwork:
        """The result, the first limit of L being `target`."""
        asked, begun_with, tries = self._asked, list[_Try](), list[_Try]()
        begun = self._search.begin(target)
        if begun is not None:
            begun_with.append(self._build(begun))
            target = self._between(self._search.target, self._next_target(begun_with, self._learn(begun_with)))
        result = self._search.run(target)
        while result.ranks not in [one.built.result.ranks for one in tries]:
            tries.append(self._taken_from(begun_with, result) or self._build(result))
            curve = self._learn([*begun_with, *tries])
            best = max(tries, key=lambda one: self._worth(one, curve))
            at_most = curve.at_most(best.measured.loss)
            if (
                len(tries) >= (MAX_STEPS if at_most <= asked else MAX_STEPS_UNTIL_MET)
                or GOOD_SHARE * asked <= at_most <= asked
            ):
                break
            result = self._search.run(self._next_target([*begun_with, *tries], curve))
        return replace(best.built, target=self._record([*begun_with, *tries], best, curve))

    def _taken_from(self, begun_with: list[_Try], result: SearchResult) -> _Try | None:
        """What was built and measured before the search came to the same plan; no longer in `begun_with`."""
        same = next((one for one in begun_with if one.built.result.ranks == result.ranks), None)
        if same is None:
            return None
        begun_with.remove(same)
        return replace(same, built=replace(same.built, result=result))

    def _learn(self, measured: Sequence[_Try]) -> DropCurve:
        """The curve through all that was measured; the last is logged."""
        estimator = self._estimator
        known = estimator.informative([one.measured for one in measured])
        curve = DropCurve(known, estimator.is_labelled, estimator.exponent)
        self._log(measured[-1], curve)
        return curve

    def _build(self, result: SearchResult) -> _Try:
        built = build(self._context, result, self._search.norm)
        with self._context.progress.stage(
            f"measuring the drop on {self._estimator.image_passes} of {self._estimator.num_images} images"
        ):
            return _Try(built, self._estimator.measure(built.network))

    def _next_target(self, tries: Sequence[_Try], curve: DropCurve) -> SearchTarget:
        """The limit of L to search with, from the built network whose L is nearest to the one asked for."""
        wanted = min(curve.limit(SHARE_OF_DROP * self._asked), MAX_LOSS)
        nearest = min(tries, key=lambda one: abs(np.log(wanted / one.measured.loss)))
        move = np.clip(wanted / nearest.measured.loss, 1 / MAX_MOVE, MAX_MOVE)
        return SearchTarget("loss", float(nearest.built.result.posterior_loss * move))

    def _between(self, learnt: SearchTarget | None, measured: SearchTarget) -> SearchTarget:
        """With labels, half way between what the evaluations' flips say and what one network does: either is as noisy,
        and what is searched for a wrong limit is lost."""
        if learnt is None or not self._estimator.is_labelled or self._estimator.of != "top-1":
            return measured
        return replace(measured, upper=float((learnt.upper * measured.upper) ** 0.5))

    def _worth(self, one: _Try, curve: DropCurve) -> tuple[bool, float]:
        """Sorts those that meet the target first, the smaller the better; then those that nearly do."""
        at_most = curve.at_most(one.measured.loss)
        kept = at_most <= self._asked
        return kept, -(one.built.result.ratio or 0.0) if kept else -at_most

    def _record(self, tries: Sequence[_Try], best: _Try, curve: DropCurve) -> TargetRecord:
        steps = [
            TargetStep(
                gamma=one.built.result.gamma,
                ratio=one.built.result.ratio or 0.0,
                measured=one.measured.drop,
                at_most=curve.at_most(one.measured.loss),
            )
            for one in tries
        ]
        at_most = curve.at_most(best.measured.loss)
        return TargetRecord(
            kind="drop",
            asked=self._asked,
            reached=best.measured.drop,
            at_most=at_most,
            met=at_most <= self._asked,
            labelled=self._estimator.is_labelled,
            of=self._estimator.of,
            images=self._estimator.num_images,
            image_passes=len(tries) * self._estimator.image_passes,
            steps=steps,
        )

    def _log(self, one: _Try, curve: DropCurve) -> None:
        what = f"points of {self._estimator.of}" if self._estimator.is_labelled else "% of the output energy"
        self._context.progress.log(
            f"at ratio {one.built.result.ratio:.3f} the network loses {one.measured.drop:.2f} {what}, at most "
            f"{curve.at_most(one.measured.loss):.2f}"
        )
