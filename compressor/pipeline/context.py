"""What stays the same while stages run: the original, its layers, the images, the folder, the settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.channels.grouping import find_groups
from compressor.channels.groups import ChannelGroup
from compressor.data.images import ImageSet, Unread
from compressor.data.transforms import Transform
from compressor.fidelity.structured.segmentation import class_map
from compressor.network.acceleration.folding import Folded, fold_norms
from compressor.network.calibration.gradients import OutputGradients
from compressor.network.layers import FoundLayer
from compressor.outputs.rows import view_of
from compressor.outputs.structure import Output
from compressor.pipeline.image_splits import TrainingImages
from compressor.pipeline.outputs import JOURNAL
from compressor.pipeline.settings import Settings
from compressor.progress import Progress
from compressor.search.evaluation.journal import stored_header

MAX_TEST_IMAGES = 10_000
MAX_TEST_MACS = 2e13  # of one network on all test images: some minutes on one core


@dataclass(frozen=True)
class Source:
    """Where the network came from, for the report and the files' metadata.

    Attributes:
        arch: its name.
        notes: remarks of the loader.
        command: as typed.
        transform: how an image becomes its input; None where the caller prepares inputs.
        class_names: of its outputs in order, where they are known.
        preset: what --preset stands for in this run, as typed; empty without one.
    """

    arch: str
    notes: Sequence[str] = ()
    command: str = ""
    transform: Transform | None = None
    class_names: tuple[str, ...] | None = None
    preset: str = ""


@dataclass(frozen=True)
class Context:
    """What every stage may read.

    Attributes:
        original: the network to compress, in eval mode, on `device`.
        layers: its convolutions and linear layers, with the reason for each that cannot be compressed.
        calibration: images that factors and layers are fitted on; may be empty.
        search_images: images of the search.
        test_images: images that nothing is fitted to or chosen by, as far as they are held in memory.
        validation: images outside the search that say whether `--max-drop` is met; None without it.
        training: images to fine-tune on; None without fine-tuning.
        folder: where files go; with `resume` it holds what an earlier run left.
        began: `time.perf_counter()` at the start of the run.
    """

    original: nn.Module
    layers: list[FoundLayer]
    calibration: ImageSet
    search_images: ImageSet
    test_images: ImageSet
    folder: Path
    settings: Settings
    source: Source
    progress: Progress
    began: float
    validation: ImageSet | None = None
    training: TrainingImages | None = None
    resume: bool = False

    @property
    def device(self) -> torch.device:
        """Where candidates are evaluated."""
        return torch.device(self.settings.device)

    @property
    def example(self) -> Tensor:
        """One input (1, ...)."""
        return self.search_images.batch([0])

    @property
    def further_tests(self) -> Unread | None:
        """Test images that are not held in memory, as many as the original takes in a few minutes.

        None where there are none, or where other images were given to train on: they may be among these.
        """
        further, macs = self.test_images.further, max(1, sum(layer.macs for layer in self.layers))
        were_given = self.training is not None and self.training.check is self.search_images
        if further is None or were_given:
            return None
        count = min(MAX_TEST_IMAGES, int(MAX_TEST_MACS / macs)) - len(self.test_images)
        return further.first(count) if count > 0 else None

    @property
    def num_test_images(self) -> int:
        """All images of the final test, those that cannot be read among them."""
        return len(self.test_images) + len(self.further_tests or ())

    @cached_property
    def num_outputs(self) -> int:
        """How many numbers the original gives for an image."""
        with torch.inference_mode():
            outputs = self.original(self.example.to(next(self.original.parameters()).device))
        return int(outputs.reshape(1, -1).shape[1])

    @cached_property
    def channel_groups(self) -> list[ChannelGroup]:
        """All groups of the original's layers with hidden channels between them; finding them takes up to a second."""
        return find_groups(self.original, self.example.to(self.device))

    @cached_property
    def folded(self) -> Folded:
        """The original without the batch norms that layers can stand in for, for passes that only measure."""
        return fold_norms(self.original, self.example.to(self.device))

    @cached_property
    def gradients(self) -> OutputGradients:
        """Of the original, on the calibration images."""
        folded = self.folded
        return OutputGradients(folded.network, self.calibration, self.device, self.settings.search.seed, folded.scales)

    @property
    def class_map(self) -> Output | None:
        """The output that gives a class to every pixel; None where there is none."""
        has_masks = self.search_images.masks is not None
        return class_map(view_of(self.original), self.search_images.input_shape[1:], has_masks)

    def earlier_search(self) -> dict[str, Any]:
        """The header of the journal that an interrupted search left; empty where nothing is resumed."""
        return stored_header(self.folder / JOURNAL) if self.resume else {}
