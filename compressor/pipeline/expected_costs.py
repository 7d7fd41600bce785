"""What the stages of a run are expected to cost, from the time that one image takes the original: see `remaining`.

Passes of images and decompositions make nearly all of it. Both are multiply-accumulates, which take the time here that
the original's take; the factors below were measured on ResNet-18 (docs/method/pipeline.md).
"""

from collections.abc import Sequence

import torch

from compressor.channels.groups import ChannelGroup
from compressor.factorization.registry import CHANNELS
from compressor.network.layers import FoundLayer, compressible
from compressor.pipeline.channels.factors import moment_sizes
from compressor.pipeline.channels.found import groups_to_search
from compressor.pipeline.context import Context
from compressor.remaining import ExpectedStage

USUAL_EVALUATIONS = 30  # until a certificate is met; most searches are allowed more
TRIAL_PASSES = 20  # of an image, for the choice of a layer's method and factors
GRADIENT_PASSES = 450  # of the gradients' second moments, all layers together
DECOMPOSITIONS = 6.0  # n^3 multiply-accumulates for n inputs of a layer: all candidates
REFITS = 6.0  # likewise, of a layer's reconstruction
COMPARISON_PASSES = (600, 200)  # of an image, of ranks with channels before these are ordered and after
CHECK_PASSES = 300  # of an image, for the ridges that a reader's refit tries
SEARCH_OVERHEAD = 0.5  # seconds of the Gaussian process, an evaluation
NETWORKS_OF_DROP = 3  # built and measured to meet --max-drop
EXPORT_SECONDS, EXPORT_PASSES = 15.0, 300.0  # of a file, and of its verification
LATENCY_SECONDS = 10.0
PRECISION_SECONDS = 30.0


def expected_costs(context: Context, seconds_per_image: float) -> list[ExpectedStage]:
    """The stages to come of a search, in order.

    Args:
        context: of the run.
        seconds_per_image: that the original takes.
    """
    layers, settings = compressible(context.layers), context.settings
    evaluations = min(settings.search.max_evaluations, USUAL_EVALUATIONS)
    passes = 2 * min(settings.search.samples, len(context.search_images))  # linear models take as many again
    search = [passes * seconds_per_image + SEARCH_OVERHEAD] * evaluations
    by_drop = settings.target is not None and settings.target.kind == "drop"
    built = _reconstruction(context, layers, seconds_per_image)
    groups = groups_to_search(context)
    built = [*_refits(context, groups, seconds_per_image), *built]
    stages = [
        _factorization(context, layers, seconds_per_image),
        *_ordering(context, groups, seconds_per_image),
        ExpectedStage("searching ranks", search, may_end_early=True),
    ]
    stages += [*built, ExpectedStage("searching ranks", [sum(search) / 2])] * (NETWORKS_OF_DROP - 1) if by_drop else []
    return [*stages, *built, *_delivery(context, seconds_per_image)]


def reconstruction_passes(context: Context, layers: Sequence[FoundLayer]) -> list[float]:
    """What layer-wise reconstruction of each layer costs, in passes of an image."""
    return [0.5 * len(context.calibration) + REFITS * _decomposition_passes(context, layer) for layer in layers]


def factorization_passes(context: Context, layers: Sequence[FoundLayer]) -> list[float]:
    """What the choice of each layer's factors costs, in passes of an image."""
    return [TRIAL_PASSES + DECOMPOSITIONS * _decomposition_passes(context, layer) for layer in layers]


def _decomposition_passes(context: Context, layer: FoundLayer) -> float:
    """n^3 multiply-accumulates for the n inputs of an output, in passes of an image."""
    inputs: int = torch.Size(layer.shape[1:]).numel()
    return float(inputs**3 / max(1, sum(other.macs for other in context.layers)))


def _factorization(context: Context, layers: Sequence[FoundLayer], seconds_per_image: float) -> ExpectedStage:
    before = 2 * len(context.calibration) + GRADIENT_PASSES if len(context.calibration) else 0
    steps = [passes * seconds_per_image for passes in factorization_passes(context, layers)]
    return ExpectedStage("factorizing layers", steps, before * seconds_per_image)


def _ordering(context: Context, groups: Sequence[ChannelGroup], seconds_per_image: float) -> list[ExpectedStage]:
    """What it takes to put hidden channels in order, and to compare them with ranks."""
    if not groups:
        return []
    macs = max(1, sum(layer.macs for layer in context.layers))
    products = [sum(size**3 for size in moment_sizes(context, group)) for group in groups]
    steps = [DECOMPOSITIONS * count / macs * seconds_per_image for count in products]
    before = (len(context.calibration) + GRADIENT_PASSES) * seconds_per_image
    ordering = ExpectedStage("ordering channels", steps, before)
    if context.settings.method == CHANNELS:
        return [ordering]
    first, second = (
        ExpectedStage("comparing channels with ranks", [passes * seconds_per_image]) for passes in COMPARISON_PASSES
    )
    return [first, ordering, second]


def _refits(context: Context, groups: Sequence[ChannelGroup], seconds_per_image: float) -> list[ExpectedStage]:
    """What refits of all readers take; groups that keep their channels need none."""
    if not (context.settings.recalibrate and groups):
        return []
    passes = 2 * len(context.calibration) + CHECK_PASSES
    readers = {name for group in groups for name in group.reader_names}
    steps = [passes * seconds_per_image] * len(readers)
    return [ExpectedStage("refitting to the channels left", steps, may_end_early=True)]


def _reconstruction(context: Context, layers: Sequence[FoundLayer], seconds_per_image: float) -> list[ExpectedStage]:
    if not (context.settings.recalibrate and len(context.calibration)):
        return []
    steps = [passes * seconds_per_image for passes in reconstruction_passes(context, layers)]
    return [ExpectedStage("reconstructing layers", steps, 2 * len(context.calibration) * seconds_per_image)]


def _delivery(context: Context, seconds_per_image: float) -> list[ExpectedStage]:
    settings = context.settings
    training = len(context.training.train) if context.training else 0
    stages = (
        [ExpectedStage("fine-tuning", [3 * training * settings.tune.epochs * seconds_per_image])] if training else []
    )
    stages += [
        ExpectedStage("evaluating on", [2 * context.num_test_images * seconds_per_image]),
        ExpectedStage("exporting and verifying ONNX", [EXPORT_SECONDS + EXPORT_PASSES * seconds_per_image] * 2),
        ExpectedStage("latency on", [LATENCY_SECONDS + EXPORT_PASSES * seconds_per_image]),
    ]
    others = [precision for precision in settings.precisions if precision != "fp32"]
    seconds = PRECISION_SECONDS + context.num_test_images * seconds_per_image
    return stages + [ExpectedStage(f"latency of model.{precision}", [seconds]) for precision in others]
