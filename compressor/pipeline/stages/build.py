"""From a plan to the network that is shipped: factors in their places, reconstructed layer by layer, pruned."""

from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.layers import factorized_ranks
from compressor.network.pruning import prune_smallest
from compressor.network.surgery import build_candidate, detach_from_original
from compressor.pipeline.context import Context
from compressor.pipeline.expected_costs import reconstruction_passes
from compressor.pipeline.stage import Stage
from compressor.pipeline.stages.search_ranks import RankSearch
from compressor.pipeline.state import BuiltNetwork, SearchResult, State, needed
from compressor.recovery.reconstruction import Reconstruction
from compressor.recovery.records import ReconstructionRecord
from compressor.search.objective import Objective

MAX_CHECK_IMAGES = 100  # of the search's images say whether a step of the reconstruction is kept


@dataclass(frozen=True)
class Build(Stage):
    """Fills in `network` and `reconstruction` from `result`."""

    def run(self, context: Context, state: State) -> State:
        return state.with_built(build(context, needed(state.result, "a plan"), needed(state.norm, "a function norm")))


@dataclass(frozen=True)
class SearchAndBuild(Stage):
    """Fills in what `SearchRanks` and `Build` do, for the gamma of the state.

    What reconstruction leaves of L is learnt from the first network that is built. Where that makes another plan better
    by more than delta, it is built, too, and of the two networks the better is delivered.
    """

    def run(self, context: Context, state: State) -> State:
        norm, gamma = needed(state.norm, "a function norm"), needed(state.gamma, "gamma")
        objective = Objective(gamma, context.settings.form)
        with RankSearch(context, state) as search:
            built = build(context, search.run(), norm)
            following = search.continue_after(built.reconstruction)
        if following is not None and following.ranks != built.result.ranks:
            other = build(context, following, norm)
            built = max(built, other, key=lambda network: _worth(network, objective))
        elif following is not None:
            built = replace(built, result=following)
        return state.with_built(built)


def _worth(built: BuiltNetwork, objective: Objective) -> float:
    """J of a network that was built, on the images that its reconstruction was checked on."""
    loss = built.reconstruction.after if built.reconstruction else 0.0
    return float(objective.value(np.array(loss), np.array(needed(built.result.ratio, "the ratio"))))


def build(context: Context, result: SearchResult, norm: FunctionNorm) -> BuiltNetwork:
    """The network of a plan, on the context's device; `norm` is that of the search's images."""
    ranks = factorized_ranks(result.layers, result.ranks)
    network = detach_from_original(build_candidate(context.original, result.factors, ranks))
    network, reconstruction = _reconstruct(context, result, network, norm)
    return BuiltNetwork(result, prune_smallest(network, result.plan.prune_fraction), reconstruction)


def _reconstruct(
    context: Context, result: SearchResult, network: nn.Module, norm: FunctionNorm
) -> tuple[nn.Module, ReconstructionRecord | None]:
    """The network with its factorized layers refitted, where that is asked for and there are images to fit on."""
    ranks = factorized_ranks(result.layers, result.ranks)
    layers = [layer for layer in result.layers if layer.name in ranks]
    if not (context.settings.recalibrate and layers and len(context.calibration)):
        return network, None
    check = norm.subset(min(MAX_CHECK_IMAGES, len(context.search_images)))
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
            on_step=stage.update,
        )
        record = reconstruction.run()
    return reconstruction.network, record
