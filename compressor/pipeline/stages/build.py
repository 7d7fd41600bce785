"""From a plan to the network that is shipped: factors in their places, recalibrated, pruned."""

from torch import nn

from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.layers import factorized_ranks
from compressor.network.pruning import prune_smallest
from compressor.network.surgery import build_candidate, detach_from_original
from compressor.pipeline.state import BuiltNetwork, Job, SearchResult
from compressor.recovery.reconstruction import Reconstruction
from compressor.recovery.records import ReconstructionRecord

MAX_CHECK_IMAGES = 100  # of the search's images decide over recalibration


def build(job: Job, result: SearchResult, norm: FunctionNorm) -> BuiltNetwork:
    """The network of a choice, on the job's device; `norm` is that of the search's images."""
    ranks = factorized_ranks(result.layers, result.ranks)
    network = detach_from_original(build_candidate(job.original, result.factors, ranks))
    network, reconstruction = _reconstruct(job, result, network, norm)
    return BuiltNetwork(result, prune_smallest(network, result.plan.prune_fraction), reconstruction)


def _reconstruct(
    job: Job, result: SearchResult, network: nn.Module, norm: FunctionNorm
) -> tuple[nn.Module, ReconstructionRecord | None]:
    """The network with its factorized layers refitted, where that is wanted and there are images to fit on."""
    ranks = factorized_ranks(result.layers, result.ranks)
    layers = [layer for layer in result.layers if layer.name in ranks]
    if not (job.settings.recalibrate and layers and len(job.calibration)):
        return network, None
    check = norm.subset(min(MAX_CHECK_IMAGES, len(job.search_images)))
    with job.progress.stage("recalibrating layers", len(layers)) as stage:
        reconstruction = Reconstruction(
            original=job.original,
            network=network,
            layers=layers,
            calibration=job.calibration,
            evaluator=check,
            device=job.device,
            seed=job.settings.search.seed,
            on_step=stage.update,
        )
        record = reconstruction.run()
    return reconstruction.network, record
