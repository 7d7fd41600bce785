"""From a plan to the network that is shipped: factors in their places, recalibrated, pruned."""

from torch import nn

from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.layers import factorised_ranks
from compressor.network.pruning import prune_smallest
from compressor.network.surgery import build_candidate, detach_from_original
from compressor.pipeline.state import Choice, Job, Realised
from compressor.recovery.reconstruction import Recalibration
from compressor.recovery.records import RecalibrationRecord

MAX_CHECK_IMAGES = 100  # of the search's images decide over recalibration


def realise(job: Job, choice: Choice, norm: FunctionNorm) -> Realised:
    """The network of a choice, on the job's device; `norm` is that of the search's images."""
    ranks = factorised_ranks(choice.layers, choice.ranks)
    network = detach_from_original(build_candidate(job.teacher, choice.factors, ranks))
    network, recalibration = _recalibrate(job, choice, network, norm)
    return Realised(choice, prune_smallest(network, choice.plan.prune_fraction), recalibration)


def _recalibrate(
    job: Job, choice: Choice, network: nn.Module, norm: FunctionNorm
) -> tuple[nn.Module, RecalibrationRecord | None]:
    """The network with its factorised layers refitted, where that is wanted and there are images to fit on."""
    ranks = factorised_ranks(choice.layers, choice.ranks)
    layers = [layer for layer in choice.layers if layer.name in ranks]
    if not (job.settings.recalibrate and layers and len(job.calibration)):
        return network, None
    check = norm.subset(min(MAX_CHECK_IMAGES, len(job.search_images)))
    with job.progress.stage("recalibrating layers", len(layers)) as stage:
        recalibration = Recalibration(
            original=job.teacher,
            network=network,
            layers=layers,
            calibration=job.calibration,
            judge=check,
            device=job.device,
            seed=job.settings.search.seed,
            on_step=stage.update,
        )
        record = recalibration.run()
    return recalibration.network, record
