"""Networks with fewer hidden channels, beside factorized layers."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from compressor.channels.factors import ChannelFactors
from compressor.channels.reduction import Reduction, start
from compressor.factorization.base import Factors, JointFactors
from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.layers import Ranked, factorized_ranks
from compressor.network.surgery import build_candidate
from compressor.pipeline.context import Context
from compressor.recovery.records import ReconstructionStep

AnyFactors = Mapping[str, Factors | JointFactors]


def build_plain(original: nn.Module, layers: Sequence[Ranked], factors: AnyFactors, ranks: Sequence[int]) -> nn.Module:
    """The network at these ranks as the search takes it to be: nothing is refitted.

    It shares tensors with the original, unless channels are removed.

    Args:
        original: the network, left unchanged.
        layers: what has ranks, groups among them.
        factors: of each of them, by name.
        ranks: in the order of `layers`; a `dense_rank` leaves one as it is.
    """
    kept = factorized_ranks(layers, ranks)
    groups = _narrowed(factors, kept)
    network = build_candidate(original, factors, {name: rank for name, rank in kept.items() if name not in groups})
    return start(original, network, list(groups.values()), [kept[name] for name in groups]) if groups else network


def remove_channels(
    context: Context, network: nn.Module, factors: AnyFactors, ranks: Mapping[str, int], check: FunctionNorm | None
) -> tuple[nn.Module, list[ReconstructionStep]]:
    """The network with fewer hidden channels, and the refits of the layers that read them.

    Args:
        context: of the run.
        network: the network, with other layers factorized.
        factors: of all layers and groups.
        ranks: of those that are compressed, by name.
        check: the function norm that decides on every refit; None for none.
    """
    groups = _narrowed(factors, ranks)
    if not groups:
        return network, []
    widths = np.array([ranks[name] for name in groups], dtype=np.int64)
    if check is None:
        return start(context.original, network, list(groups.values()), widths), []
    readers = {name for one in groups.values() for name in one.group.reader_names}
    with context.progress.stage("refitting to the channels left", len(readers)) as stage:
        reduction = Reduction(
            context.original,
            list(groups.values()),
            context.calibration,
            check,
            context.device,
            base=network,
            seed=context.settings.search.seed,
            on_step=stage.update,
        )
        network = reduction.run(widths)
    rows = [(step.layer, step.before, step.after, step.kept) for step in reduction.steps]
    steps = [
        ReconstructionStep(layer=layer, kind="channels left", before=before, after=after, kept=kept)
        for layer, before, after, kept in rows
    ]
    return network, steps


def _narrowed(factors: AnyFactors, ranks: Mapping[str, int]) -> dict[str, ChannelFactors]:
    return {name: one for name, one in factors.items() if isinstance(one, ChannelFactors) and name in ranks}
