"""Whether a run is a success, and what would do where it is not: found from the Pareto fronts of its own searches."""

from compressor.fidelity.risk import loss_of_guessing
from compressor.pipeline.context import Context
from compressor.pipeline.state import State, needed
from compressor.report.records import VerdictRecord
from compressor.report.verdict import MEAN_AP, MEAN_IOU, TOP1, reach_verdict, round_up, sufficient_gamma
from compressor.schema import Pair
from compressor.search.objective import default_gamma
from compressor.search.records import TARGET_OPTIONS, SearchRecord

ALTERNATIVE = "--max-drop 1, which finds gamma itself"


def make_verdict(context: Context, state: State) -> VerdictRecord:
    """The verdict on a run that is finished but for its report."""
    fidelity = needed(state.test, "test outputs").fidelity
    gamma = gamma_that_would_do(context, state)
    verdict = reach_verdict(
        fidelity, state.precisions, state.target, _advise(context, state, gamma), *accuracy_of(state)
    )
    named = gamma is not None and f"{gamma:g}" in verdict.advice
    return verdict.model_copy(update={"gamma": gamma}) if named else verdict


def accuracy_of(state: State) -> tuple[Pair[float] | None, str]:
    """The accuracy that labels, masks or boxes give, of both networks, and its name; None where there are none."""
    test = needed(state.test, "test outputs")
    if test.segmentation is not None:
        return test.segmentation.mean_iou, MEAN_IOU
    if test.detection is not None:
        return test.detection.average_precision, MEAN_AP
    return state.top1, TOP1


def gamma_that_would_do(context: Context, state: State) -> float | None:
    """The smallest gamma at which all searches of the run would have kept the network useful, as far as they tell.

    Where a search took its own plan for useful, it is the default gamma, if that is larger than the one used.

    Returns:
        None where nothing was searched, or all searches took their plans for useful at no less than the default gamma.
    """
    result, lost = needed(state.result, "a plan"), loss_when_lost(context, state)
    searches: list[tuple[float, SearchRecord | None]] = [(result.gamma or 0.0, result.search)]
    searches += [(stage.gamma or result.gamma or 0.0, stage.search) for stage in state.records]
    usual = round_up(default_gamma(lost)) if lost > 0 else 0.0
    found = []
    for used, search in searches:
        if search is None:
            continue
        gamma = sufficient_gamma(search.pareto_front, lost, context.settings.form)
        if gamma is None or gamma <= used:
            gamma = usual if gamma is not None or used < usual else None
        if gamma is not None:
            found.append(max(gamma, round_up(2 * used)) if used > 0 else gamma)
    return max(found, default=None)


def loss_when_lost(context: Context, state: State) -> float:
    """L of a network that has lost its output altogether, in what the search took for L."""
    kind = context.settings.fidelity
    if kind == "norm":
        return needed(state.test, "test outputs").fidelity.output_energy
    return loss_of_guessing(kind, context.num_outputs)


def _advise(context: Context, state: State, gamma: float | None) -> str:
    """What to do where the network is destroyed."""
    settings, target = context.settings, state.target
    if state.records:
        if gamma is None:
            return "prune less, fine-tune longer, or give the stages that compress a larger gamma"
        return f"give the stages that compress gamma = {gamma:g}"
    if needed(state.result, "a plan").search is None:
        return f"the plan compresses too far: search for another with {ALTERNATIVE}"
    if target is not None:
        instead = f"--gamma {gamma:g}" if gamma else "a larger one"
        return f"{TARGET_OPTIONS[target.kind]} {target.asked:g} asks for too much: try {instead}, or {ALTERNATIVE}"
    if gamma is not None:
        return f"try --gamma {gamma:g}, or {ALTERNATIVE}"
    pruned = "prune less (--prune), " if settings.prune_fraction else ""
    samples = settings.search.samples
    return (
        f"the search did not see it on the {samples} images of an evaluation: {pruned}give more (--samples "
        f"{4 * samples}), a larger gamma, or {ALTERNATIVE}"
    )
