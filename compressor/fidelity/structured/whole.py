"""Everything that both networks return for the test images: what each output lost, and the classes or flows of pixels.

Only networks with other outputs than one matrix of scores need it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.fidelity.records import FlowRecord, OutputRecord, SegmentationRecord
from compressor.fidelity.structured.flow import FlowEvaluation
from compressor.fidelity.structured.outputs import OutputLosses, run_whole
from compressor.fidelity.structured.segmentation import PixelEvaluation
from compressor.network.clips.flow import OUTPUT as FLOW
from compressor.outputs.rows import RowView, whole


class WholeEvaluation:
    """Both networks' whole outputs, compared batch by batch.

    Args:
        view: the original's, which says what counts in L.
        pixels: classes of pixels, where the networks give them.
        flow: how far flows are apart, where the networks give them.
    """

    def __init__(self, view: RowView, pixels: PixelEvaluation | None, flow: FlowEvaluation | None) -> None:
        self._losses, self._pixels, self._flow = OutputLosses(view), pixels, flow

    def add(self, original: nn.Module, network: nn.Module, images: ImageSet, device: torch.device) -> None:
        """Add what both networks, on the device, return for these images."""
        runs = (run_whole(whole(each), images, device) for each in (original, network))
        for (indices, targets), (_, outputs) in zip(*runs, strict=True):
            self._losses.add(targets, outputs)
            if self._pixels is not None:
                self._pixels.add(targets, outputs, None if images.masks is None else images.masks[indices])
            if self._flow is not None:
                self._flow.add(targets[FLOW], outputs[FLOW])

    def squares(self) -> Tensor:
        """L of each image (N,)."""
        return self._losses.squares()

    def energy(self) -> float:
        """The original's output energy, in the same unit."""
        return self._losses.energy()

    def outputs(self) -> list[OutputRecord]:
        """What each output lost."""
        return self._losses.records()

    def segmentation(self, class_names: Sequence[str] | None) -> SegmentationRecord | None:
        """Classes of pixels, by their names."""
        return None if self._pixels is None else self._pixels.record(class_names)

    def flow(self) -> FlowRecord | None:
        """How far flows are apart."""
        return None if self._flow is None else self._flow.record()
