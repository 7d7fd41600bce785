"""What the stages of a run are expected to cost, from the time that one image takes the original: see `remaining`.

Passes of images and decompositions make nearly all of it. Both are multiply-accumulates, which take the time here that
the original's take; the factors below were measured on five networks (docs/method/pipeline.md).
"""

from collections.abc import Sequence

import torch

from compressor.channels.groups import ChannelGroup
from compressor.factorization.registry import CHANNELS
from compressor.network.calibration.moments import MAX_INPUTS
from compressor.network.layers import FoundLayer, compressible
from compressor.pipeline.channels.choice import outside
from compressor.pipeline.channels.factors import moment_sizes
from compressor.pipeline.channels.found import groups_to_search
from compressor.pipeline.context import Context
from compressor.remaining import ExpectedStage

USUAL_EVALUATIONS = 30  # until a certificate is met; most searches are allowed more
MODEL_PASSES = 20  # of an image, for a search's linear models
CONTINUED_SHARE = 0.2  # of a search: what going on with it takes, once a network is built
TRIAL_PASSES = 20  # of an image, for the choice of a layer's method and factors
GRADIENT_PASSES = 450  # of the gradients' second moments, all layers together
LAYER_SECONDS = 0.2  # for that of a layer however small it is
DECOMPOSITIONS = 2.2  # n^3 multiply-accumulates for n inputs of a layer: all candidates
ORDERINGS = 12.0  # likewise, of the hidden channels that a layer reads
REFITS = 2.0  # likewise, of a layer's reconstruction
REPLAYED_SHARE = 0.4  # of a pass: what reconstruction runs anew for a layer, from the last cut before it
COMPARISON_PASSES = (700, 300)  # of an image, of ranks with channels before these are ordered and after
CHECK_PASSES = 75  # of an image, for the ridges that a reader's refit tries
SEARCH_OVERHEAD = 0.05  # seconds of the Gaussian process, an evaluation
NETWORKS_OF_DROP = 3  # built and measured to meet --max-drop
EXPORT_SECONDS, EXPORT_PASSES = 3.5, 100.0  # of a file, and of its verification
LATENCY_SECONDS, LATENCY_PASSES = 1.5, 220.0
PRECISION_SECONDS = 30.0


def expected_costs(context: Context, seconds_per_image: float) -> list[ExpectedStage]:
    """The stages to come of a search, in order.

    Args:
        context: of the run.
        seconds_per_image: that the original takes.
    """
    groups, layers = groups_to_search(context), compressible(context.layers)
    ordering = _ordering(context, groups, seconds_per_image)
    if context.settings.method == CHANNELS:
        factorization = _factorization(context, outside(groups, layers), seconds_per_image)
        return [*ordering, factorization, *expected_from_search_on(context, groups, seconds_per_image)]
    # Which groups lose channels is found on the way; with ranks, networks take about as long.
    factorization = _factorization(context, layers, seconds_per_image)
    return [factorization, *ordering, *expected_from_search_on(context, (), seconds_per_image)]


def expected_from_search_on(
    context: Context, groups: Sequence[ChannelGroup], seconds_per_image: float
) -> list[ExpectedStage]:
    """Those that come once layers are factorized.

    Args:
        context: of the run.
        groups: whose channels are searched; all other layers have ranks.
        seconds_per_image: that the original takes.
    """
    settings = context.settings
    evaluations = min(settings.search.max_evaluations, USUAL_EVALUATIONS)
    num_images, samples = len(context.search_images), settings.search.samples
    passes = 2 * min(samples, num_images)  # factors of many layers take longer than the original
    steps = [passes * seconds_per_image + SEARCH_OVERHEAD] * evaluations
    models = MODEL_PASSES * min(4 * samples, num_images // 2) * seconds_per_image
    search = ExpectedStage("searching ranks", steps, models, may_end_early=True)
    built = [*_refits(context, groups, seconds_per_image), *_reconstruction(context, groups, seconds_per_image)]
    continued = ExpectedStage("searching ranks", [CONTINUED_SHARE * search.seconds])
    if settings.target is not None and settings.target.kind == "drop":
        return [search, *[*built, continued] * (NETWORKS_OF_DROP - 1), *built, *_delivery(context, seconds_per_image)]
    return [search, *built, *([continued] if built else []), *_delivery(context, seconds_per_image)]


def reconstruction_passes(context: Context, layers: Sequence[FoundLayer]) -> list[float]:
    """What layer-wise reconstruction of each layer costs, in passes of an image."""
    replayed = REPLAYED_SHARE * len(context.calibration)
    return [replayed + REFITS * _decomposition_passes(context, layer) for layer in layers]


def _decomposition_passes(context: Context, layer: FoundLayer) -> float:
    """n^3 multiply-accumulates for the n inputs of an output, in passes of an image; none where they are too many for
    second moments."""
    inputs: int = torch.Size(layer.shape[1:]).numel()
    return float(inputs**3 / max(1, sum(other.macs for other in context.layers))) if inputs <= MAX_INPUTS else 0.0


def _factorization(context: Context, layers: Sequence[FoundLayer], seconds_per_image: float) -> ExpectedStage:
    before = 2 * len(context.calibration) + GRADIENT_PASSES if len(context.calibration) else 0
    passes = [TRIAL_PASSES + DECOMPOSITIONS * _decomposition_passes(context, layer) for layer in layers]
    steps = [LAYER_SECONDS + count * seconds_per_image for count in passes]
    return ExpectedStage("factorizing layers", steps, before * seconds_per_image)


def _ordering(context: Context, groups: Sequence[ChannelGroup], seconds_per_image: float) -> list[ExpectedStage]:
    """What it takes to put hidden channels in order, and to compare them with ranks."""
    if not groups:
        return []
    macs = max(1, sum(layer.macs for layer in context.layers))
    products = [sum(size**3 for size in moment_sizes(context, group)) for group in groups]
    steps = [ORDERINGS * count / macs * seconds_per_image for count in products]
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
    passes = 0.5 * len(context.calibration) + CHECK_PASSES
    readers = {name for group in groups for name in group.reader_names}
    steps = [passes * seconds_per_image] * len(readers)
    return [ExpectedStage("refitting to the channels left", steps, may_end_early=True)]


def _reconstruction(context: Context, groups: Sequence[ChannelGroup], seconds_per_image: float) -> list[ExpectedStage]:
    layers = outside(groups, compressible(context.layers))
    if not (context.settings.recalibrate and len(context.calibration) and layers):
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
        ExpectedStage("latency on", [LATENCY_SECONDS + LATENCY_PASSES * seconds_per_image]),
    ]
    others = [precision for precision in settings.precisions if precision != "fp32"]
    seconds = PRECISION_SECONDS + context.num_test_images * seconds_per_image
    return stages + [ExpectedStage(f"latency of model.{precision}", [seconds]) for precision in others]
