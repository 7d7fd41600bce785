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
from compressor.fidelity.structured.outputs import OutputLosses, run_whole
from compressor.fidelity.structured.segmentation import PixelEvaluation
from compressor.network.clips.flow import OUTPUT as FLOW
from compressor.network.clips.flow import FlowNetwork
from compressor.network.detection.proposals import without_proposals
from compressor.outputs.rows import gives_scores, view_of, whole
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
        found = {"segmentation": test.segmentation, "detection": test.detection, "flow": test.flow}
        state = replace(state, network=state.network.cpu(), test=test, **found)  # type: ignore[arg-type]
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
    count, view = context.num_test_images, view_of(context.original)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []  # targets, outputs and squared distances of batches
    all_labels: list[Tensor] = []
    losses = None if view is None else OutputLosses(view)
    pixels = None if context.class_map is None else PixelEvaluation(context.class_map)
    flow = FlowEvaluation() if isinstance(context.original, FlowNetwork) else None
    with context.progress.stage(f"evaluating on {count} test images", count) as stage:
        for images in iterate_test_images(context):
            norm, every = FunctionNorm(context.original, images, context.device), torch.arange(len(images))
            outputs = norm.outputs(network, every)
            squares = torch.from_numpy(norm.compare(outputs, every))
            parts.append((norm.targets.cpu(), outputs.cpu(), squares))
            all_labels += [] if norm.labels is None else [norm.labels]
            if losses is not None:
                _add_whole(losses, pixels, flow, context, network, images)
            stage.update(sum(len(part[0]) for part in parts))
    targets, outputs, squares = (torch.cat(column) for column in zip(*parts, strict=True))
    energy, decides = float(targets.double().square().sum(1).mean()), gives_scores(context.original)
    if losses is not None:
        squares, energy = losses.squares(), losses.energy()
    labels = torch.cat(all_labels) if len(all_labels) == len(parts) else None
    fidelity = make_fidelity(squares, energy, outputs, targets, decides)
    if losses is not None:
        fidelity = fidelity.model_copy(update={"outputs": losses.records()})
    segmentation = None if pixels is None else pixels.record(context.source.class_names)
    flows = None if flow is None else flow.record()
    return TestOutputs(targets, outputs, fidelity, labels, decides, segmentation, flow=flows)


def _compare_detections(context: Context, network: nn.Module) -> DetectionRecord | None:
    """Detections in the test images that are held, boxes of others are not read; None where nothing is detected."""
    original, compressed = (detector_of(each) for each in (context.original, network))
    if original is None or compressed is None:
        return None
    found = DetectionEvaluation()
    with context.progress.stage(f"detecting in {len(context.test_images)} test images"):
        found.add(original, compressed, context.test_images, context.device)
        return found.record(context.settings.search.seed)


def _add_whole(
    losses: OutputLosses,
    pixels: PixelEvaluation | None,
    flow: FlowEvaluation | None,
    context: Context,
    network: nn.Module,
    images: ImageSet,
) -> None:
    """Add what all outputs lost on these images, at all positions, and the classes or flows of their pixels."""
    runs = (run_whole(whole(each), images, context.device) for each in (context.original, network))
    for (indices, targets), (_, outputs) in zip(*runs, strict=True):
        losses.add(targets, outputs)
        if pixels is not None:
            pixels.add(targets, outputs, None if images.masks is None else images.masks[indices])
        if flow is not None:
            flow.add(targets[FLOW], outputs[FLOW])


def _change(before: Tensor, after: Tensor) -> PairedChange:
    both, lost, gained = (int(hits.sum()) for hits in (before & after, before & ~after, ~before & after))
    return paired_change(both, lost, gained, len(before) - both - lost - gained)
