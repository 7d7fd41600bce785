"""Which of the report's warnings a run gives, before the search and at its end."""

from compressor.fidelity.structured.precision import NEEDS
from compressor.fidelity.structured.truth import tells_accuracy
from compressor.network.calibration.moments import MAX_INPUTS, has_moments
from compressor.network.layers import FoundLayer
from compressor.pipeline.context import Context
from compressor.pipeline.delivery.verdict import loss_when_lost
from compressor.pipeline.image_splits import MAX_CALIBRATION_SHARE, MIN_CALIBRATION_IMAGES
from compressor.pipeline.state import SearchResult, State, needed
from compressor.report import warnings as advice
from compressor.report.records import StageRecord
from compressor.search.stopping.joint_certificate import can_be_met


def early_warnings(context: Context, gamma: float, loss_when_lost: float) -> list[str]:
    """What can be said before the search, one sentence each.

    Args:
        context: settings and images.
        gamma: what a unit of L is worth in R.
        loss_when_lost: L of a network that tells nothing of its inputs.
    """
    on_gamma = [] if context.settings.target else advice.on_gamma(gamma, loss_when_lost, context.settings.fidelity)
    search = context.settings.search
    reachable = search.certificate != "joint" or can_be_met(search.failure_probability)
    on_epsilon = advice.on_epsilon(search.failure_probability, reachable)
    return on_gamma + _on_drop(context) + advice.on_form(context.settings.form) + on_epsilon


def _on_drop(context: Context) -> list[str]:
    target, images = context.settings.target, context.search_images
    if target is None or target.kind != "drop" or tells_accuracy(images):
        return []
    return advice.on_unlabelled_drop(images.label_note if images.boxes is None else NEEDS)


def all_warnings(context: Context, state: State) -> list[str]:
    """What a person should know of a finished run, most basic first."""
    result = needed(state.result, "a plan")
    warnings = [*context.source.notes]
    warnings += context.search_images.notes
    if not context.calibration:
        num_images = len(context.search_images) + len(context.test_images)
        wanted = context.settings.num_calibration
        warnings += advice.on_calibration(num_images, wanted, MIN_CALIBRATION_IMAGES, MAX_CALIBRATION_SHARE)
    else:
        warnings += advice.on_wide_layers(_wide_layers(context, result), MAX_INPUTS)
    if result.search is not None:
        warnings += early_warnings(context, result.gamma or 0.0, loss_when_lost(context, state))
        warnings += advice.on_certificate(result.search.certificate, result.search.stopped_because)
        warnings += advice.on_prune(context.settings.prune_fraction or 0.0)
        warnings += advice.on_samples(context.settings.search.samples, len(context.search_images))
    if state.tuning is not None:
        warnings += advice.on_tuning(state.tuning)
    for stage in state.records:
        warnings += [f"stage {stage.name}: {warning}" for warning in _stage_warnings(stage)]
    for provider, record in needed(state.latency, "latency").items():
        warnings += advice.on_latency(provider, record.ratio_low)
    for precision in state.precisions:
        warnings += advice.on_precision(precision)
    warnings += state.failures
    return warnings


def _wide_layers(context: Context, result: SearchResult) -> list[str]:
    """Factorized layers that were too wide for their factors to be fitted."""
    if context.settings.factors == "weight":
        return []
    factorized = zip(result.layers, result.ranks, strict=True)
    changed = [each for each, rank in factorized if isinstance(each, FoundLayer) and rank < each.dense_rank]
    return [layer.name for layer in changed if result.kinds.get(layer.name) == "weight" and not has_moments(layer)]


def _stage_warnings(stage: StageRecord) -> list[str]:
    warnings = []
    if stage.search is not None:
        warnings += advice.on_certificate(stage.search.certificate, stage.search.stopped_because)
    if stage.tuning is not None:
        warnings += advice.on_tuning(stage.tuning)
    return warnings
