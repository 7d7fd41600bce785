"""How far the export check allows a file to be off where the network's own rounding is large.

Outputs that are small differences of large numbers, as those of a network that is destroyed, change by far more than
single precision's seven digits with the order in which kernels add up, in torch itself as well.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.outputs.structure import named_tensors
from exporters.records import ExportCheckRecord

TIMES_ROUNDING = 4.0  # what torch's single precision is off its double, a file may be off torch
MAX_TOLERANCE = 0.05  # beyond it, a file in single precision says nothing of the network


def allow_for_rounding(
    record: ExportCheckRecord, model: nn.Module, images: Tensor, outputs: Mapping[str, NDArray[Any]]
) -> ExportCheckRecord:
    """The record of a file that is off by too much, with the tolerance that torch's own rounding asks for.

    Args:
        record: of the export check.
        model: the torch network, in eval mode, on the CPU.
        images: that ran (N, ...).
        outputs: torch's for them, by name.
    """
    if record.max_rel_error <= record.tolerance:
        return record
    rounding = own_rounding(model, images, outputs)
    tolerance = min(MAX_TOLERANCE, TIMES_ROUNDING * rounding)
    if tolerance <= record.tolerance:
        return record
    return record.model_copy(update={"tolerance": tolerance, "rounding": rounding})


def own_rounding(model: nn.Module, images: Tensor, outputs: Mapping[str, NDArray[Any]]) -> float:
    """What torch's outputs, of batches and of single images, are off those in double precision, over the largest.

    0 where the network does not run in double precision. Arguments as of `allow_for_rounding`.
    """
    try:
        with torch.no_grad():
            exact = named_tensors(copy.deepcopy(model).double()(images.double()))
            alone = [named_tensors(model(image[None])) for image in images]
    except (RuntimeError, TypeError, ValueError):
        return 0.0
    found = 0.0
    for name, value in exact.items():
        if value.is_floating_point():
            others = torch.from_numpy(outputs[name]), torch.cat([each[name] for each in alone])
            off = max(float((other.double() - value).abs().max()) for other in others)
            found = max(found, off / max(float(value.abs().max()), torch.finfo(torch.float32).tiny))
    return found
