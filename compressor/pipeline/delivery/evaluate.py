"""The compressed network on the test images, which nothing was fitted to or chosen by."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.fidelity.decisions import decide, share
from compressor.fidelity.evaluation import TestOutputs, make_fidelity
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.intervals import paired_change
from compressor.fidelity.records import DetectionRecord, PairedChange
from compressor.fidelity.risk import compare_risks
from compressor.fidelity.structured.detection import DetectionEvaluation, detector_of
from compressor.fidelity.structured.flow import FlowEvaluation
from compressor.fidelity.structured.segmentation import PixelEvaluation
from compressor.fidelity.structured.whole import WholeEvaluation
from compressor.network.clips.flow import FlowNetwork
from compressor.network.detection.proposals import without_proposals
from compressor.outputs.rows import gives_scores, view_of
from compressor.pipeline.context import Context
from compressor.pipeline.stage import Stage
from compressor.pipeline.state import State
from compressor.schema import Pair


@dataclass(frozen=True)
class Evaluate(Stage):
    """Fills in `test`, and with labels `top1`, its `top1_change` and `risk`; both networks then move to the CPU."""

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        test = _compare_outputs(context, state.network)
        test = replace(test, detection=_compare_detections(context, state.network))
        context.original.cpu()
        state = replace(state, network=state.network.cpu(), test=test)
        if test.labels is None:
            return state
        targets, outputs, labels = test.targets, test.outputs, test.labels
        before, after = decide(targets) == labels, decide(outputs) == labels
        return replace(
            state,
            top1=Pair[float](original=share(before), compressed=share(after)),
            top1_change=_change(before, after),
            risk=compare_risks(targets, outputs, labels),
        )


def iterate_test_images(context: Context) -> Iterator[ImageSet]:
    """Yields all test images: those held in memory, then the others, a batch at a time."""
    yield context.test_images
    further = context.further_tests
    if further is not None:
        yield from further.batches(context.test_images)


def evaluate_as_in_files(context: Context, network: nn.Module, found: TestOutputs) -> TestOutputs:
    """What files are compared with: `found`, or where files work on other boxes than the networks, that of those.

    Args:
        context: the original, on the CPU, and the test images.
        network: the compressed network, likewise.
        found: what was computed on the test images.
    """
    plain, original = without_proposals(network), without_proposals(context.original)
    if plain is network:
        return found
    return _compare_outputs(
        replace(context, original=original, settings=replace(context.settings, device="cpu")), plain
    )


def _compare_outputs(context: Context, network: nn.Module) -> TestOutputs:
    """Both networks' outputs and how far they are apart."""
    count, everything = context.num_test_images, _whole_evaluation(context)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []  # targets, outputs and squared distances of batches
    all_labels: list[Tensor] = []
    with context.progress.stage(f"evaluating on {count} test images", count) as stage:
        for images in iterate_test_images(context):
            norm, every = FunctionNorm(context.original, images, context.device), torch.arange(len(images))
            outputs = norm.outputs(network, every)
            squares = torch.from_numpy(norm.compare(outputs, every))
            parts.append((norm.targets.cpu(), outputs.cpu(), squares))
            all_labels += [] if norm.labels is None else [norm.labels]
            if everything is not None:
                everything.add(context.original, network, images, context.device)
            stage.update(sum(len(part[0]) for part in parts))
    targets, outputs, squares = (torch.cat(column) for column in zip(*parts, strict=True))
    energy, decides = float(targets.double().square().sum(1).mean()), gives_scores(context.original)
    labels = torch.cat(all_labels) if len(all_labels) == len(parts) else None
    if everything is None:
        return TestOutputs(targets, outputs, make_fidelity(squares, energy, outputs, targets, decides), labels, decides)
    fidelity = make_fidelity(everything.squares(), everything.energy(), outputs, targets, decides)
    fidelity = fidelity.model_copy(update={"outputs": everything.outputs()})
    segmentation, flow = everything.segmentation(context.source.class_names), everything.flow()
    return TestOutputs(targets, outputs, fidelity, labels, decides, segmentation, flow=flow)


def _whole_evaluation(context: Context) -> WholeEvaluation | None:
    """What compares whole outputs; None where they are one matrix."""
    view = view_of(context.original)
    if view is None:
        return None
    pixels = None if context.class_map is None else PixelEvaluation(context.class_map)
    return WholeEvaluation(view, pixels, FlowEvaluation() if isinstance(context.original, FlowNetwork) else None)


def _compare_detections(context: Context, network: nn.Module) -> DetectionRecord | None:
    """Detections in the test images that are held, boxes of others are not read; None where nothing is detected."""
    original, compressed = (detector_of(each) for each in (context.original, network))
    if original is None or compressed is None:
        return None
    found = DetectionEvaluation()
    with context.progress.stage(f"detecting in {len(context.test_images)} test images"):
        found.add(original, compressed, context.test_images, context.device)
        return found.record(context.settings.search.seed)


def _change(before: Tensor, after: Tensor) -> PairedChange:
    both, lost, gained = (int(hits.sum()) for hits in (before & after, before & ~after, ~before & after))
    return paired_change(both, lost, gained, len(before) - both - lost - gained)
