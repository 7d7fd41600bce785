"""From a plan to the network that is shipped: factors in their places, channels removed, refitted, pruned."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.layers import FoundLayer, factorized_ranks
from compressor.network.pruning import prune_smallest
from compressor.network.surgery import build_candidate, detach_from_original
from compressor.pipeline.channels.building import remove_channels
from compressor.pipeline.context import Context
from compressor.pipeline.expected_costs import reconstruction_passes
from compressor.pipeline.stage import Stage
from compressor.pipeline.stages.search_ranks import RankSearch
from compressor.pipeline.state import BuiltNetwork, SearchResult, State, needed
from compressor.process.memory import release_memory
from compressor.recovery.ranges import equalize_ranges
from compressor.recovery.reconstruction import Reconstruction
from compressor.recovery.records import ReconstructionRecord, ReconstructionStep
from compressor.search.objective import Objective

MAX_CHECK_IMAGES = 100  # of the search's images say whether a step of the reconstruction is kept


@dataclass(frozen=True)
class Build(Stage):
    """Fills in `network` and `reconstruction` from `result`."""

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        return state.with_built(build(context, needed(state.result, "a plan"), needed(state.norm, "a function norm")))


@dataclass(frozen=True)
class SearchAndBuild(Stage):
    """Fills in `result`, `network` and `reconstruction`, for the gamma of the state.

    What reconstruction leaves of L is learnt from the first network that is built. Where that makes another plan better
    by more than delta, it is built, too, and of the two networks the better is delivered.
    """

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        norm, gamma = needed(state.norm, "a function norm"), needed(state.gamma, "gamma")
        objective = Objective(gamma, context.settings.form)
        with RankSearch(context, state) as search:
            built = build(context, search.run(), norm)
            following = search.continue_after(built.reconstruction)
        if following is not None and _is_another(following, built.result):
            other, check = build(context, following, norm), _check_norm(context, norm)
            built = max(built, other, key=lambda network: _worth(network, objective, check))
        elif following is not None:
            built = replace(built, result=following)
        return state.with_built(built)


def _is_another(following: SearchResult, before: SearchResult) -> bool:
    """Whether the plans make other networks: by their ranks, or by what is pruned of them."""
    return following.ranks != before.ranks or following.plan.prune_fraction != before.plan.prune_fraction


def _worth(built: BuiltNetwork, objective: Objective, check: FunctionNorm) -> float:
    """J of a network that was built, on the images that reconstruction is checked on."""
    loss = check.of_outputs(check.outputs(built.network, torch.arange(len(check.images))))
    return float(objective.value(np.array(loss), np.array(needed(built.result.ratio, "the ratio"))))


def _check_norm(context: Context, norm: FunctionNorm) -> FunctionNorm:
    return norm.subset(min(MAX_CHECK_IMAGES, len(context.search_images)))


def build(context: Context, result: SearchResult, norm: FunctionNorm) -> BuiltNetwork:
    """The network of a plan, refitted where the settings say so, on the context's device.

    Args:
        context: the original, images and settings.
        result: the plan and its factors.
        norm: the function norm on the search images.
    """
    release_memory()
    ranks = factorized_ranks(result.layers, result.ranks)
    of_layers = [layer for layer in result.layers if isinstance(layer, FoundLayer) and layer.name in ranks]
    of_layers_alone = {layer.name: ranks[layer.name] for layer in of_layers}
    network = detach_from_original(build_candidate(context.original, result.factors, of_layers_alone))
    refits = context.settings.recalibrate and ranks and len(context.calibration)
    check = _check_norm(context, norm) if refits else None
    began = time.perf_counter()
    network, steps = remove_channels(context, network, result.factors, ranks, check)
    reconstruction = None
    if check is not None and of_layers:
        network, reconstruction = _reconstruct(context, of_layers, network, check)
    if check is not None and steps:
        reconstruction = _record(context, check, steps, reconstruction, began)
    images = context.calibration if len(context.calibration) else context.search_images
    pruned = prune_smallest(network, result.plan.prune_fraction)
    return BuiltNetwork(result, equalize_ranges(pruned, images, context.device), reconstruction)


def _reconstruct(
    context: Context, layers: Sequence[FoundLayer], network: nn.Module, check: FunctionNorm
) -> tuple[nn.Module, ReconstructionRecord]:
    """The network with its factorized layers refitted."""
    weights = reconstruction_passes(context, layers)
    with context.progress.stage("reconstructing layers", len(layers), weights) as stage:
        reconstruction = Reconstruction(
            original=context.original,
            network=network,
            layers=layers,
            calibration=context.calibration,
            check=check,
            device=context.device,
            seed=context.settings.search.seed,
            gradients=context.gradients,
            on_step=stage.update,
        )
        record = reconstruction.run()
    return reconstruction.network, record


def _record(
    context: Context,
    check: FunctionNorm,
    steps: Sequence[ReconstructionStep],
    then: ReconstructionRecord | None,
    began: float,
) -> ReconstructionRecord:
    """The refits of layers that read fewer channels, and the reconstruction of factorized layers after them."""
    return ReconstructionRecord(
        calibration_images=len(context.calibration),
        check_images=len(check.images),
        before=steps[0].before,
        after=min(steps[-1].before, steps[-1].after) if then is None else then.after,
        seconds=time.perf_counter() - began,
        steps=[*steps, *(then.steps if then else [])],
    )
